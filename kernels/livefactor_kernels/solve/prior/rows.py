"""The rows that have a prior: without events they are it, else they are solved towards it.

Embeddings (`solve/prior/__init__.py`) and features (`solve/features/__init__.py`) share this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from livefactor_kernels.solve.prior import CHANGES, COUNTED, EVENTS_MAX, NEXT, REFRESH_MIN, SWEEP_ROWS
from livefactor_kernels.spec.model import ModelSpec

_NO_ROWS = np.empty(0, np.uint32)


class PriorRows(ABC):
    """The rows of one side."""

    def __init__(self, spec: ModelSpec, array_of: Callable[[str], np.ndarray]) -> None:
        """`array_of` gives the sections of the rows by name."""
        self._k, self._array_of = spec.k, array_of
        self._events = np.float32(spec.embeddings.prior_events)
        self._factor_max = np.float32(spec.limits.factor_max)
        self._progress = np.zeros(3, np.int64)
        self._count, self._cold, self._has_starts = 0, _NO_ROWS, spec.solve.start_events > 0

    @abstractmethod
    def has(self, rows: np.ndarray | slice) -> np.ndarray:
        """Which rows uint32[n] have a prior, bool[n]."""

    @abstractmethod
    def mapped(self, rows: np.ndarray) -> np.ndarray:
        """What is said of rows that have a prior, float32[n, k]."""

    @abstractmethod
    def learn(self) -> None:
        """Learns what is said of the first `_count` rows."""

    def begin(self, events: int, count: int) -> np.ndarray:
        """Begins a record of `events` events, after which the side has `count` rows.

        Returns the rows, uint32[n], that `map_cold` will write.
        """
        self._count = count
        self._refresh(REFRESH_MIN)
        return self._sweep(events)

    def _sweep(self, events: int) -> np.ndarray:
        """The rows without events among the next rows to visit, which become `_cold`."""
        start = int(self._progress[NEXT])
        stop = min(start + SWEEP_ROWS * -(-events // SWEEP_ROWS), self._count)
        if start >= stop:
            self._cold = _NO_ROWS
            return _NO_ROWS
        self._progress[NEXT] = stop
        rows = np.arange(start, stop, dtype=np.uint32)
        self._cold = self._without_events(rows[self.has(slice(start, stop))])
        return self._cold

    def _without_events(self, rows: np.ndarray) -> np.ndarray:
        is_cold = self._array_of("seen_count")[rows] == 0
        if self._has_starts:
            is_cold &= self._array_of("start_events")[rows] == 0
        return np.asarray(rows[is_cold])

    def map_cold(self) -> None:
        """Writes the rows that `begin` returned."""
        if self._cold.size:
            rows = np.where(self.has(self._cold)[:, None], self.mapped(self._cold), np.float32(0.0))
            self._write(self._cold, rows)
            self._cold = _NO_ROWS

    def _write(self, rows: np.ndarray, said: np.ndarray) -> None:
        self._array_of("factors")[rows, : self._k] = said

    def towards(self, rows: np.ndarray) -> np.ndarray:
        """z for rows uint32[n], float32[n, k]. Zeros for a row without a prior."""
        z = np.zeros((len(rows), self._k), np.float32)
        seen = self._array_of("seen_count")[rows].astype(np.float32)
        pulled = np.flatnonzero(self.has(rows) & (seen <= np.float32(EVENTS_MAX) * self._events))
        if pulled.size:
            share = self._events / (self._events + seen[pulled])
            z[pulled] = share[:, None] * self.mapped(rows[pulled])
        return z

    @abstractmethod
    def solved(self, rows: np.ndarray, old: np.ndarray) -> None:
        """Follows the solves of rows uint32[n]. `old` float32[n, k] are their factors before."""

    def _is_ripe(self, rows: np.ndarray) -> np.ndarray:
        ripe: np.ndarray = self._array_of("seen_count")[rows].astype(np.float32) >= self._events
        return ripe

    def _refresh(self, least: int) -> None:
        counted, changes = int(self._progress[COUNTED]), int(self._progress[CHANGES])
        if counted and changes >= least and 2 * changes >= counted:
            self.learn()
            self._progress[CHANGES] = self._progress[NEXT] = 0

    def _described(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Ends a record that described rows uint32[n], after which the side has `count` rows.

        Returns the rows that `map_cold` will write, uint32[m].
        """
        self._count = count
        self._refresh(1)
        cold = np.union1d(self._sweep(len(rows)), self._without_events(rows))
        self._cold = cold.astype(np.uint32)
        return self._cold
