"""Learns the map from vectors to factors, and applies it (semantics: `solve/prior/__init__.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from livefactor_kernels.solve.prior import (
    CHANGES,
    COUNTED,
    DESCRIBED,
    EVENTS_MAX,
    GRAM,
    MAP,
    NEXT,
    NONE,
    PROGRESS,
    REFRESH_MIN,
    ROWS,
    SUMMED,
    SWEEP_ROWS,
    with_one,
)
from livefactor_kernels.spec.model import ModelSpec

_NO_ROWS = np.empty(0, np.uint32)


class Arithmetic(Protocol):
    """The parts of the semantics that a backend computes (`reference.py`, `cpu.py`)."""

    def mapped(self, vectors: np.ndarray, map_: np.ndarray) -> np.ndarray:
        """W'e as float32[n, k] for vectors float64[n, d + 1]."""
        ...

    def add_vectors(self, gram: np.ndarray, vectors: np.ndarray, sign: float) -> None:
        """Adds sign * e e' to A for each vector float64[n, d + 1], in order."""
        ...

    def add_rows(self, sums: np.ndarray, vectors: np.ndarray, new: np.ndarray, old: np.ndarray) -> None:
        """Adds e new' - e old' to B for each vector float64[n, d + 1], in order.

        `new` and `old` float32[n, k] are the rows.
        """
        ...

    def regress(self, gram: np.ndarray, sums: np.ndarray, map_: np.ndarray) -> None:
        """Computes W from A and B."""
        ...


class Prior:
    """The map of a model, and its sums. A part of a model (`tables.state.Part`)."""

    def __init__(
        self, spec: ModelSpec, array_of: Callable[[str], np.ndarray], arithmetic: Arithmetic
    ) -> None:
        """A map of zeros. `array_of` gives the sections of the items' rows by name."""
        d, self._k = spec.embeddings.dimension, spec.k
        self._array_of, self._arithmetic = array_of, arithmetic
        self._events = np.float32(spec.embeddings.prior_events)
        self._factor_max = np.float32(spec.limits.factor_max)
        self._gram, self._rows = np.zeros((d + 1, d + 1)), np.zeros((d + 1, spec.k))
        self._map, self._progress = np.zeros((d + 1, spec.k)), np.zeros(3, np.int64)
        self._cold, self._has_starts = _NO_ROWS, spec.solve.start_events > 0

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        arrays = {GRAM: self._gram, MAP: self._map, PROGRESS: self._progress, ROWS: self._rows}
        return {name: array.reshape(-1) for name, array in arrays.items()}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        for name, array in self.sections().items():
            array[:] = sections[name]

    # ------------------------------------------------------------------ a record of interactions

    def begin(self, events: int, items: int) -> np.ndarray:
        """Begins a record of `events` events, after which there are `items` items.

        Returns the item rows, uint32[n], that `map_cold` will write.
        """
        self._refresh(REFRESH_MIN)
        return self._sweep(events, items)

    def _sweep(self, events: int, items: int) -> np.ndarray:
        """The rows without events among the next rows to visit, which become `_cold`."""
        start = int(self._progress[NEXT])
        stop = min(start + SWEEP_ROWS * -(-events // SWEEP_ROWS), items)
        if start >= stop:
            self._cold = _NO_ROWS
            return _NO_ROWS
        self._progress[NEXT] = stop
        rows = np.arange(start, stop, dtype=np.uint32)
        self._cold = self._without_events(rows[self._array_of("described")[start:stop] != NONE])
        return self._cold

    def map_cold(self) -> None:
        """Writes the rows that `begin` returned."""
        if self._cold.size:
            has_vector = self._array_of("described")[self._cold] != NONE
            rows = np.where(has_vector[:, None], self._mapped(self._cold), np.float32(0.0))
            self._array_of("factors")[self._cold, : self._k] = rows
            self._cold = _NO_ROWS

    def towards(self, rows: np.ndarray) -> np.ndarray:
        """z for item rows uint32[n], float32[n, k]. Zeros for a row without a vector."""
        z = np.zeros((len(rows), self._k), np.float32)
        seen = self._array_of("seen_count")[rows].astype(np.float32)
        pulled = np.flatnonzero(
            (self._array_of("described")[rows] != NONE) & (seen <= np.float32(EVENTS_MAX) * self._events)
        )
        if pulled.size and self._map.any():
            share = self._events / (self._events + seen[pulled])
            z[pulled] = share[:, None] * self._mapped(rows[pulled])
        return z

    def solved(self, rows: np.ndarray, old: np.ndarray) -> None:
        """Takes the solved item rows uint32[n] into the sums.

        `old` float32[n, k] are their factors before. The table has their present factors.
        """
        described = self._array_of("described")
        joins = (described[rows] == DESCRIBED) & self._is_ripe(rows)
        changes = np.flatnonzero(joins | (described[rows] == SUMMED))
        if not changes.size:
            return
        old = np.where(joins[:, None], np.float32(0.0), old)[changes]
        new = self._array_of("factors")[rows[changes], : self._k]
        self._add(rows[joins])
        self._arithmetic.add_rows(self._rows, self._vectors(rows[changes]), new, old)
        self._progress[CHANGES] += changes.size

    def _is_ripe(self, rows: np.ndarray) -> np.ndarray:
        ripe: np.ndarray = self._array_of("seen_count")[rows].astype(np.float32) >= self._events
        return ripe

    def _add(self, rows: np.ndarray) -> None:
        self._arithmetic.add_vectors(self._gram, self._vectors(rows), 1.0)
        self._array_of("described")[rows] = SUMMED
        self._progress[COUNTED] += len(rows)

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        return with_one(self._array_of("embedding")[rows])

    def _mapped(self, rows: np.ndarray) -> np.ndarray:
        mapped = self._arithmetic.mapped(self._vectors(rows), self._map)
        return np.asarray(np.clip(mapped, -self._factor_max, self._factor_max))

    def _refresh(self, least: int) -> None:
        counted, changes = int(self._progress[COUNTED]), int(self._progress[CHANGES])
        if counted and changes >= least and 2 * changes >= counted:
            self._arithmetic.regress(self._gram, self._rows, self._map)
            self._progress[CHANGES] = self._progress[NEXT] = 0

    # ------------------------------------------------------------------ a record of embeddings

    def is_described(self, rows: np.ndarray) -> np.ndarray:
        """Which item rows uint32[n] have a vector, bool[n]."""
        return np.asarray(self._array_of("described")[rows] != NONE)

    def describe(self, rows: np.ndarray, vectors: np.ndarray, items: int) -> np.ndarray:
        """Sets the vectors float16[n, d] of item rows uint32[n], in order.

        Returns the further rows that `map_cold` will write, uint32[m].
        """
        for row, vector in zip(rows, vectors, strict=True):
            self._set(np.array([row]), vector)
        self._refresh(1)
        cold = np.union1d(self._sweep(len(rows), items), self._without_events(rows))
        self._cold = cold.astype(np.uint32)
        return self._cold

    def _without_events(self, rows: np.ndarray) -> np.ndarray:
        is_cold = self._array_of("seen_count")[rows] == 0
        if self._has_starts:
            is_cold &= self._array_of("start_events")[rows] == 0
        return np.asarray(rows[is_cold])

    def _set(self, row: np.ndarray, vector: np.ndarray) -> None:
        described, has_vector = self._array_of("described"), bool(vector.any())
        present = self._array_of("factors")[row, : self._k]
        nothing = np.zeros_like(present)
        if described[row[0]] == SUMMED:
            self._arithmetic.add_vectors(self._gram, self._vectors(row), -1.0)
            self._arithmetic.add_rows(self._rows, self._vectors(row), nothing, present)
            self._progress[COUNTED] -= 1
            self._progress[CHANGES] += 1
        self._array_of("embedding")[row] = vector
        described[row] = DESCRIBED if has_vector else NONE
        if has_vector and self._is_ripe(row)[0]:
            self._add(row)
            self._arithmetic.add_rows(self._rows, self._vectors(row), present, nothing)
            self._progress[CHANGES] += 1
