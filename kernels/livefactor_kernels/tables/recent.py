"""The newest events of rows, for readers that need only a few of many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RECENT = ("seen_rows", "seen_values", "seen_weights", "seen_count")
"""The sections from which recent events are taken."""


class Recent(NamedTuple):
    """The last events of n rows, newest first. What is behind them in a line is 0.

    Attributes:
        rows: rows of the other side, uint32[n, most].
        values, weights: float32[n, most].
        counts: number of these events of each row, uint32[n].
        seen: number of all events of each row, uint32[n].
    """

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    seen: np.ndarray

    @staticmethod
    def of(rows: int, most: int) -> Recent:
        """No events of `rows` rows."""
        values, weights = np.zeros((2, rows, most), np.float32)
        counts, seen = np.zeros((2, rows), np.uint32)
        return Recent(np.zeros((rows, most), np.uint32), values, weights, counts, seen)

    def put(self, places: np.ndarray, others: Recent) -> None:
        """Replaces the rows number `places` int64[m] by `others`."""
        for column, other in zip(self, others, strict=True):
            column[places] = other


def recent_of(sections: Mapping[str, np.ndarray], length: int, most: int) -> Recent:
    """The recent events, given the sections `RECENT` of rows with rings of `length` places.

    The sections may end after the last place that has an event.
    """
    seen = sections["seen_count"].astype(np.int64)
    found = Recent.of(len(seen), most)
    found.counts[:], found.seen[:] = np.minimum(seen, min(most, length)), seen
    exists = np.arange(most) < found.counts[:, None]
    places = ((seen[:, None] - 1 - np.arange(most)) % length)[exists]
    lines = np.nonzero(exists)[0]
    for column, name in zip(found, RECENT[:-1], strict=False):
        column[exists] = sections[name][lines, places]
    return found
