"""The last judged events of one kind. Figures are computed from them on demand."""

from __future__ import annotations

import numpy as np

HALF_LIVES_KEPT = 8
"""Number of half-lives that decayed figures cover.

Older events have a weight below 1 / 2^8 and are left out.
"""


class Window:
    """A ring buffer of rows float64[columns] with their event types.

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

    def push(self, rows: np.ndarray, types: np.ndarray) -> None:
        """Appends rows float64[n, columns] with event types uint32[n]."""
        self.pushed += max(0, len(rows) - self.size)
        rows, types = rows[-self.size :], types[-self.size :]
        start = self.pushed % self.size
        first = min(len(rows), self.size - start)
        self._rows[start : start + first], self._types[start : start + first] = rows[:first], types[:first]
        self._rows[: len(rows) - first], self._types[: len(rows) - first] = rows[first:], types[first:]
        self.pushed += len(rows)

    def rows(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns the columns by name, float64[n] each, and the types uint32[n], oldest first."""
        if self.pushed <= self.size:
            rows, types = self._rows[: self.pushed].copy(), self._types[: self.pushed].copy()
        else:
            turn = self.pushed % self.size
            rows = np.concatenate((self._rows[turn:], self._rows[:turn]))
            types = np.concatenate((self._types[turn:], self._types[:turn]))
        return dict(zip(self.columns, rows.T, strict=True)), types
