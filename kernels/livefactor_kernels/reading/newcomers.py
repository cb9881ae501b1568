"""The popularity of items that are known by their vectors or features alone.

The semantics are in `reading/__init__.py`, under "Newcomers".
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from livefactor_kernels.reading import BLEND, SQUARES, SUM
from livefactor_kernels.reading.remembered import Source, distinct
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.update import Update

_NO_ROWS = np.empty(0, np.uint32)


class Counting(Protocol):
    """The part of `learning.Arithmetic` that newcomers need."""

    def add_events(self, rows: np.ndarray, weights: np.ndarray, popularity: np.ndarray, bias: np.ndarray,
                   mix: np.ndarray) -> None:  # fmt: skip
        """See `learning.Arithmetic.add_events`."""
        ...


class Newcomers:
    """Gives newcomers their popularity, and keeps them out of the sums until their first event."""

    def __init__(self, arithmetic: Counting) -> None:
        self._arithmetic = arithmetic
        self._joining = _NO_ROWS

    def describe(self, source: Source, rows: np.ndarray, had_prior: np.ndarray, has_prior: np.ndarray,
                 popularity: np.ndarray, bias: np.ndarray, mix: np.ndarray, items: float) -> None:  # fmt: skip
        """See `learning.Mixer.describe`. `items` is the number of items with events.

        `popularity` float32[any, kinds] has the counts of all items.
        """
        seen = source.read(ITEMS, rows, ("seen_count",))["seen_count"]
        changed = (seen == 0) & (has_prior != had_prior)
        popularity[rows[changed]], bias[rows[changed]] = np.float32(0.0), np.float32(0.0)
        mean = mix[SUM] / max(items, 1.0)
        start = _count_of(np.float32(mean / (1.0 + mix[BLEND]) if popularity.shape[1] > 1 else mean))
        rows = distinct(rows[changed & has_prior])
        # The sums are those of items with events, so a copy takes what this adds to them.
        self._arithmetic.add_events(rows, np.full(len(rows), start), popularity, bias, mix.copy())

    def begin(self, update: Update, source: Source, items: int) -> None:
        """Finds the items whose first events are in a record that is learned next.

        `items` is the number of items before it.
        """
        rows = distinct(update.item_rows[: update.fresh])
        rows = rows[rows < items]
        self._joining = rows[source.read(ITEMS, rows, ("seen_count",))["seen_count"] == 0]

    def join(self, bias: np.ndarray, mix: np.ndarray) -> None:
        """Adds the found items to the sums, as they are before the events of the record count."""
        for popularity in bias[self._joining].astype(np.float64).tolist():
            mix[SUM] += popularity
            mix[SQUARES] += popularity * popularity

    def leave_out(self, source: Source, bias: np.ndarray, mix: np.ndarray) -> None:
        """Makes the sums of a decay again from the items with events. `bias` is that of all."""
        rows = np.arange(len(bias), dtype=np.uint32)
        has_events = source.read(ITEMS, rows, ("seen_count",))["seen_count"] > 0
        found = np.where(has_events, bias, np.float32(0.0)).astype(np.float64)
        mix[SUM], mix[SQUARES] = np.cumsum(found)[-1], np.cumsum(found * found)[-1]


def _count_of(popularity: np.float32) -> np.float32:
    """The count a with log(1 + a) = `popularity`, by the log of the semantics."""
    exponent = np.floor(popularity)
    return np.float32(np.ldexp(np.float32(popularity - exponent + 1), int(exponent)) - np.float32(1.0))
