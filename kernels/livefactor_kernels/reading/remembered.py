"""What a user remembers: the source of a read, and the events of a user.

The semantics are in `reading/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from livefactor_kernels.history import DECAY_STEPS
from livefactor_kernels.tables.recent import Recent


def distinct(rows: np.ndarray) -> np.ndarray:
    """The distinct rows of uint32[n], ascending. numpy.unique is slower for few rows."""
    rows = np.sort(rows)
    is_first = np.ones(len(rows), bool)
    np.not_equal(rows[1:], rows[:-1], out=is_first[1:])
    return rows[is_first]


class Remembered(NamedTuple):
    """The remembered events of a user, oldest first.

    Attributes, in order: item rows uint32[n], values float32[n], weights float32[n], and ages
    int64[n] in visits, below `DECAY_STEPS`.
    """

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    ages: np.ndarray


class Source(Protocol):
    """The source of a read: a pin, or a backend whose gate is held."""

    def state(self) -> dict[str, np.ndarray]:
        """See `backend.Backend.state`."""
        ...

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `backend.Backend.gather`."""
        ...

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `backend.Backend.read`."""
        ...

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """See `backend.Backend.recent`."""
        ...


def remembered(user: dict[str, np.ndarray]) -> Remembered:
    """The events of a user, given the sections of the user's row (`tables.history_sections`)."""
    count, length = int(user["seen_count"]), len(user["seen_rows"])
    order = np.arange(max(0, count - length), count) % length
    ages = int(user["visits"]) - user["seen_visits"][order].astype(np.int64)
    return Remembered(
        user["seen_rows"][order],
        user["seen_values"][order],
        user["seen_weights"][order],
        np.clip(ages, 0, DECAY_STEPS - 1),
    )
