"""The rows that have a prior: without events they are it, else they are solved towards it.

Embeddings (`solve/prior/__init__.py`) and features (`solve/features/__init__.py`) share this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from livefactor_kernels.solve.prior import CHANGES, COUNTED, EVENTS_MAX, NEXT, REFRESH_MIN, SWEEP_ROWS
from livefactor_kernels.spec.model import ITEMS, ModelSpec, Rule

_NO_ROWS = np.empty(0, np.uint32)


class PriorRows(ABC):
    """The rows of one side."""

    def __init__(
        self, spec: ModelSpec, side: int, array_of: Callable[[str], np.ndarray], pulls: bool
    ) -> None:
        """`array_of` gives the sections of the rows by name.

        With `pulls` the sections of starts say what rows with events are solved towards.
        """
        self._k, self._array_of, self._side, self._pulls = spec.k, array_of, side, pulls
        # Implicit loss, the only one of rule SOLVE with a prior, has no biases.
        self._has_bias = spec.rule != Rule.SOLVE
        self._events = np.float32(spec.embeddings.prior_events)
        self._factor_max = np.float32(spec.limits.factor_max)
        self._progress = np.zeros(3, np.int64)
        self._count, self._cold, self._has_starts = 0, _NO_ROWS, spec.solve.start_events > 0
        self._pulled = _NO_ROWS

    @abstractmethod
    def has(self, rows: np.ndarray | slice) -> np.ndarray:
        """Which rows uint32[n] have a prior, bool[n]."""

    @abstractmethod
    def mapped(self, rows: np.ndarray) -> np.ndarray:
        """What is said of rows that have a prior, float32[n, k], or [n, k + 1] with the bias."""

    @abstractmethod
    def has_learned(self) -> bool:
        """Whether anything is said of any row."""

    @abstractmethod
    def learn(self) -> None:
        """Learns what is said of the first `_count` rows."""

    def begin(self, events: int, count: int) -> np.ndarray:
        """Begins a record of `events` events, after which the side has `count` rows.

        Returns the rows, uint32[n], that `map_cold` will write.
        """
        self._count = count
        self._refresh(REFRESH_MIN)
        self._sweep(events)
        return self._written()

    def _written(self) -> np.ndarray:
        return np.union1d(self._cold, self._pulled).astype(np.uint32) if self._pulled.size else self._cold

    def take(self, other: PriorRows) -> np.ndarray:
        """Takes the rows that `other` would write. Returns those that `map_cold` will write."""
        self._cold = np.union1d(self._cold, other._cold).astype(np.uint32)
        self._pulled = np.union1d(self._pulled, other._pulled).astype(np.uint32)
        other._cold = other._pulled = _NO_ROWS
        return self._written()

    def _sweep(self, events: int) -> None:
        """Visits the next rows: `_cold` are those without events, and `_pulled` all of them."""
        start = int(self._progress[NEXT])
        stop = min(start + SWEEP_ROWS * -(-events // SWEEP_ROWS), self._count)
        self._cold = self._pulled = _NO_ROWS
        if start >= stop:
            return
        self._progress[NEXT] = stop
        rows = np.arange(start, stop, dtype=np.uint32)
        rows = rows[self.has(slice(start, stop))]
        self._cold = self._without_events(rows)
        if self._pulls:
            self._pulled = rows

    def _without_events(self, rows: np.ndarray) -> np.ndarray:
        is_cold = self._array_of("seen_count")[rows] == 0
        if self._has_starts:
            is_cold &= self._array_of("start_events")[rows] == 0
        return np.asarray(rows[is_cold])

    def map_cold(self) -> None:
        """Writes the rows that `begin` returned."""
        if self._cold.size:
            # If users and items were 0, no event would move them.
            if self._side == ITEMS or self.has_learned():
                said = self._said_of(self._cold)
                self._array_of("factors")[self._cold, : self._k] = said[:, : self._k]
                if self._has_bias:
                    self._array_of("bias")[self._cold] = said[:, self._k]
            self._cold = _NO_ROWS
        if self._pulled.size:
            if self.has_learned():
                self._array_of("factors_start")[self._pulled, : self._k] = self._said_of(self._pulled)
                has = self.has(self._pulled)
                self._array_of("start_events")[self._pulled] = np.where(has, -self._events, np.float32(0.0))
            self._pulled = _NO_ROWS

    def _said_of(self, rows: np.ndarray) -> np.ndarray:
        """What is said of rows uint32[n], as `mapped`; 0 of a row without a prior."""
        return np.where(self.has(rows)[:, None], self.mapped(rows), np.float32(0.0))

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
        self._sweep(len(rows))
        self._cold = np.union1d(self._cold, self._without_events(rows)).astype(np.uint32)
        if self._pulls:
            self._pulled = np.union1d(self._pulled, rows).astype(np.uint32)
        return self._written()
