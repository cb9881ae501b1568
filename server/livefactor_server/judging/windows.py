"""The last judged events of one kind. Figures are computed from them on demand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

HALF_LIVES_KEPT = 8
"""Number of half-lives that decayed figures cover.

Older events have a weight below 1 / 2^8 and are left out.
"""


class Rows(NamedTuple):
    """The rows of a window, oldest first.

    Attributes:
        columns: the columns by name, float64[n] each.
        types: the event type of each row, uint32[n].
        known: whether the model knew the user of the event, bool[n].
    """

    columns: dict[str, np.ndarray]
    types: np.ndarray
    known: np.ndarray


class Window:
    """A ring buffer of rows float64[columns] with the event type and the kind of user of each.

    One thread writes; `rows` returns copies.
    """

    def __init__(self, columns: tuple[str, ...], window_events: int, half_life_events: int) -> None:
        """Allocates the buffer.

        It keeps `window_events` rows, or `HALF_LIVES_KEPT` half-lives if that is more.
        """
        self.columns = columns
        self.size = max(window_events, HALF_LIVES_KEPT * half_life_events)
        self.pushed = 0
        self._rows = np.empty((self.size, len(columns)))
        self._types = np.zeros(self.size, np.uint32)
        self._known = np.zeros(self.size, bool)

    def push(self, rows: np.ndarray, types: np.ndarray, known: np.ndarray) -> None:
        """Appends n rows.

        Args:
            rows: float64[n, columns].
            types: the event types, uint32[n].
            known: whether the model knew the user, bool[n].
        """
        self.pushed += max(0, len(rows) - self.size)
        for kept, new in ((self._rows, rows), (self._types, types), (self._known, known)):
            new = new[-self.size :]
            start = self.pushed % self.size
            first = min(len(new), self.size - start)
            kept[start : start + first] = new[:first]
            kept[: len(new) - first] = new[first:]
        self.pushed += min(len(rows), self.size)

    def rows(self) -> Rows:
        """A copy of all rows, oldest first."""
        full = self.pushed > self.size
        turn = self.pushed % self.size if full else 0
        size = self.size if full else self.pushed
        rows, types, known = (
            np.concatenate((kept[turn:size], kept[:turn])) for kept in (self._rows, self._types, self._known)
        )
        return Rows(dict(zip(self.columns, rows.T, strict=True)), types, known)
