"""Learns the map from vectors to factors, and applies it (semantics: `solve/prior/__init__.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from livefactor_kernels.solve.prior import (
    CHANGES,
    COUNTED,
    DESCRIBED,
    GRAM,
    MAP,
    NEXT,
    NONE,
    OF_USERS,
    PROGRESS,
    ROWS,
    SECTIONS,
    SUMMED,
    dimension_of,
    with_one,
)
from livefactor_kernels.solve.prior.rows import PriorRows
from livefactor_kernels.solve.prior.sums import VISITED, MapSums, factor_of
from livefactor_kernels.spec.model import ITEMS, USERS, ModelSpec


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


class Prior(PriorRows):
    """The map of a model, and its sums. A part of a model (`tables.state.Part`)."""

    def __init__(
        self, spec: ModelSpec, side: int, array_of: Callable[[str], np.ndarray], arithmetic: Arithmetic
    ) -> None:
        """A map of zeros. `array_of` gives the sections of the rows of the side by name."""
        super().__init__(spec, side, array_of, side == USERS)
        self._spec = spec
        self._arithmetic, d = arithmetic, dimension_of(spec, side)
        self._names = {name: name if side == ITEMS else f"{OF_USERS}{name}" for name in SECTIONS}
        self._gram, self._rows = np.zeros((d + 1, d + 1)), np.zeros((d + 1, spec.k))
        self._map = np.zeros((d + 1, spec.k))

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        arrays = {GRAM: self._gram, MAP: self._map, PROGRESS: self._progress, ROWS: self._rows}
        return {self._names[name]: array.reshape(-1) for name, array in arrays.items()}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        for name, array in self.sections().items():
            array[:] = sections[name]

    def has(self, rows: np.ndarray | slice) -> np.ndarray:
        """See `PriorRows.has`."""
        return np.asarray(self._array_of("described")[rows] != NONE)

    def mapped(self, rows: np.ndarray) -> np.ndarray:
        """See `PriorRows.mapped`."""
        mapped = self._arithmetic.mapped(self._vectors(rows), self._map)
        return np.asarray(np.clip(mapped, -self._factor_max, self._factor_max))

    def has_learned(self) -> bool:
        """See `PriorRows.has_learned`."""
        return bool(self._map.any())

    def learn(self) -> None:
        """See `PriorRows.learn`."""
        learned = np.empty_like(self._map)
        # The sums of others may have no regression.
        with np.errstate(all="ignore"):
            self._arithmetic.regress(self._gram, self._rows, learned)
        if np.isfinite(learned).all():
            self._map[:] = learned

    # ------------------------------------------------------------------ a record of interactions

    def solved(self, rows: np.ndarray, old: np.ndarray) -> None:
        """Takes the solved rows uint32[n] into the sums.

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

    def _add(self, rows: np.ndarray) -> None:
        self._arithmetic.add_vectors(self._gram, self._vectors(rows), 1.0)
        self._array_of("described")[rows] = SUMMED
        self._progress[COUNTED] += len(rows)

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        return with_one(self._array_of("embedding")[rows])

    # ------------------------------------------------------------------ a record of embeddings

    def present(self, rows: np.ndarray) -> np.ndarray:
        """A copy of the factors of rows uint32[n], float32[n, k]."""
        return np.asarray(self._array_of("factors")[rows, : self._k].copy())

    def describe(self, rows: np.ndarray, vectors: np.ndarray, count: int) -> np.ndarray:
        """Sets the vectors float16[n, d] of rows uint32[n], in order.

        Returns the further rows that `map_cold` will write, uint32[m].
        """
        for row, vector in zip(rows, vectors, strict=True):
            self._set(np.array([row]), vector)
        return self._described(rows, count)

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

    # ------------------------------------------------------------------ a record of sums

    def add_sums(self, sums: MapSums, count: int) -> np.ndarray:
        """Adds the sums of others (`sums.py`). The side has `count` rows.

        Returns the rows that `map_cold` will write, uint32[n].
        """
        a = factor_of(self._spec, sums)
        self._gram += a * sums.gram
        self._rows += a * sums.rows
        self.learn()
        self._progress[CHANGES] = self._progress[NEXT] = 0
        self._count = count
        self._sweep(VISITED)
        return self._written()


@contextmanager
def following(prior: Prior | None, rows: np.ndarray) -> Iterator[None]:
    """Follows a record of events with user rows uint32[n], which is learned meanwhile."""
    if prior is None:
        yield
        return
    distinct = np.unique(rows)
    distinct = distinct[prior.has(distinct)]
    old = prior.present(distinct)
    yield
    prior.solved(distinct, old)
