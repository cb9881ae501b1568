"""Keeps bags, and learns and applies the rows of features.

The semantics are in `solve/features/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from livefactor_kernels.solve.features import BAGGED, FEATURES, FITTED, NONE, SIDE_NAMES, Bags
from livefactor_kernels.solve.prior import CHANGES, COUNTED
from livefactor_kernels.solve.prior.rows import PriorRows
from livefactor_kernels.spec.model import USERS, ModelSpec, Rule
from livefactor_kernels.tables.recent import Recent
from livefactor_kernels.update import Update

_NO_ROWS = np.empty(0, np.uint32)


class Arithmetic(Protocol):
    """The parts of the semantics that a backend computes (`reference.py`, `cpu.py`)."""

    def summed(self, bags: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """p as float32[n, w] for bags uint32[n, m] and weights float32[n, m].

        `rows` float32[F + 1, w] are those of the features; w is k, or k + 1 with biases.
        """
        ...

    def fit(self, bags: np.ndarray, weights: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> None:
        """Fits `rows` float32[F + 1, w] to the targets float64[n, w] of n bags, n > 0."""
        ...


def width_of(spec: ModelSpec) -> int:
    """How many numbers the row of a feature has: factors, and a bias if the rule has biases."""
    return spec.k + (spec.rule != Rule.SOLVE)


class FeatureRows(PriorRows):
    """The features of one side. A part of a model (`tables.state.Part`).

    Attributes:
        changed: the rows whose bags the last record of bags changed, uint32[n], ascending.
    """

    def __init__(
        self, spec: ModelSpec, side: int, array_of: Callable[[str], np.ndarray], arithmetic: Arithmetic,
        vectors: PriorRows | None = None,
    ) -> None:  # fmt: skip
        """No features. `vectors` are the embeddings of the same rows, if there are any."""
        follows = spec.rule == Rule.SOLVE and spec.features.prior_events > 0
        super().__init__(spec, side, array_of, side == USERS and follows)
        self._width = width_of(spec)
        self._arithmetic, self._vectors = arithmetic, vectors
        self._name = f"{FEATURES}.{SIDE_NAMES[side]}."
        self._numbers: dict[int, int] = {}
        self._rows = np.zeros((64, self._width), np.float32)
        if spec.features.prior_events > 0:
            self._events = np.float32(spec.features.prior_events)
        self.changed = _NO_ROWS

    def __len__(self) -> int:
        return len(self._numbers)

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        keys = np.fromiter(self._numbers, np.uint64, len(self))
        arrays = {"keys": keys, "progress": self._progress, "rows": self._present.reshape(-1)}
        return {self._name + name: array for name, array in arrays.items()}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        self._numbers = {key: at for at, key in enumerate(sections[self._name + "keys"].tolist(), 1)}
        self._grow()
        self._present[:] = sections[self._name + "rows"].reshape(-1, self._width)
        self._progress[:] = sections[self._name + "progress"]

    @property
    def _present(self) -> np.ndarray:
        return self._rows[: len(self) + 1]

    def has(self, rows: np.ndarray | slice) -> np.ndarray:
        """See `PriorRows.has`."""
        told = np.asarray(self._array_of("bagged")[rows] != NONE)
        return told if self._vectors is None else told | self._vectors.has(rows)

    def mapped(self, rows: np.ndarray) -> np.ndarray:
        """See `PriorRows.mapped`."""
        bags, weights = self._array_of("bag")[rows], self._array_of("bag_weights")[rows]
        told = self._array_of("bagged")[rows] != NONE
        found = np.where(
            told[:, None], self._clamped(self._arithmetic.summed(bags, weights, self._present)), np.float32(0)
        )
        return found if self._vectors is None else self._clamped(self._said(rows) + found)

    def _said(self, rows: np.ndarray) -> np.ndarray:
        """What the vectors say of rows uint32[n], float32[n, k]; 0 without a vector."""
        assert self._vectors is not None
        return np.where(self._vectors.has(rows)[:, None], self._vectors.mapped(rows), np.float32(0.0))

    def _clamped(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(rows, -self._factor_max, self._factor_max))

    def has_learned(self) -> bool:
        """See `PriorRows.has_learned`."""
        by_vectors = self._vectors is not None and self._vectors.has_learned()
        return by_vectors or bool(self._present.any())

    def learn(self) -> None:
        """See `PriorRows.learn`."""
        rows = np.flatnonzero(self._array_of("bagged")[: self._count] == FITTED).astype(np.uint32)
        targets = self._array_of("factors")[rows, : self._k].astype(np.float64)
        if self._has_bias:
            targets = np.column_stack([targets, self._array_of("bias")[rows]])
        if self._vectors is not None:
            targets = targets - self._said(rows)
        fitted = self._present.copy()
        bags, weights = self._array_of("bag")[rows], self._array_of("bag_weights")[rows]
        self._arithmetic.fit(bags, weights, targets, fitted)
        self._present[:] = self._clamped(fitted)

    # ------------------------------------------------------------------ a record of interactions

    def begin(self, events: int, count: int) -> np.ndarray:
        """See `PriorRows.begin`."""
        if self._vectors is None:
            return super().begin(events, count)
        self._vectors.begin(events, count)
        super().begin(events, count)
        return self.take(self._vectors)

    def solved(self, rows: np.ndarray, old: np.ndarray) -> None:
        """See `PriorRows.solved`."""
        if self._vectors is not None:
            self._vectors.solved(rows, old)

    def follow(self, rows: np.ndarray) -> None:
        """Ends a record of events with the distinct rows uint32[n]."""
        ripe = rows[self._is_ripe(rows)]
        ripe = ripe[self._array_of("bagged")[ripe] != NONE]
        self._join(ripe)
        self._progress[CHANGES] += ripe.size

    def _join(self, rows: np.ndarray) -> None:
        bagged = self._array_of("bagged")
        self._progress[COUNTED] += np.count_nonzero(bagged[rows] == BAGGED)
        bagged[rows] = FITTED

    # ------------------------------------------------------------------ a record of bags

    def put(self, rows: np.ndarray, bags: Bags, count: int) -> np.ndarray:
        """Sets the bags of rows uint32[n], after which the side has `count` rows.

        Returns the further rows that `map_cold` will write, uint32[m].
        """
        table, weights = self._dense(bags)
        # The last bag of a row counts.
        distinct, last = np.unique(rows[::-1], return_index=True)
        places = len(rows) - 1 - last
        bagged = self._array_of("bagged")
        was_fitted = bagged[distinct] == FITTED
        old = self._array_of("bag")[distinct], self._array_of("bag_weights")[distinct]
        differs = (old[0] != table[places]) | (old[1] != weights[places])
        self.changed = distinct[differs.any(axis=1)].astype(np.uint32)
        self._array_of("bag")[distinct] = table[places]
        self._array_of("bag_weights")[distinct] = weights[places]
        bagged[distinct] = np.where(table[places, 0] > 0, BAGGED, NONE)
        self._progress[COUNTED] -= np.count_nonzero(was_fitted)
        joins = self._is_ripe(distinct) & (bagged[distinct] != NONE)
        self._join(distinct[joins])
        self._progress[CHANGES] += np.count_nonzero(was_fitted | joins)
        return self._described(distinct, count)

    def told(self, count: int) -> np.ndarray:
        """The rows below `count` that have a bag, uint32[n]."""
        return np.flatnonzero(self._array_of("bagged")[:count] != NONE).astype(np.uint32)

    def drop(self, keys: np.ndarray, count: int) -> np.ndarray:
        """Takes the features of keys uint64[n] out of all bags of the side, which has `count` rows.

        Keys that are no features do nothing. Returns the rows that `map_cold` will write.
        """
        gone = [self._numbers.pop(key) for key in np.unique(keys).tolist() if key in self._numbers]
        kept = np.setdiff1d(np.arange(1, len(self) + len(gone) + 1), gone)
        number = np.zeros(len(self) + len(gone) + 1, np.uint32)
        number[kept] = np.arange(1, len(kept) + 1)
        self._numbers = {key: int(number[old]) for key, old in self._numbers.items()}
        self._rows[1 : len(kept) + 1] = self._rows[kept]
        self._rows[len(kept) + 1 :] = 0.0
        rows = self.told(count)
        old = self._array_of("bag")[rows]
        new, weights = number[old], self._array_of("bag_weights")[rows]
        loses = ((new == 0) & (old > 0)).any(axis=1)
        weights[new == 0] = 0.0
        order = np.argsort(new == 0, axis=1, kind="stable")
        self._array_of("bag")[rows] = np.take_along_axis(new, order, axis=1)
        self._array_of("bag_weights")[rows] = np.take_along_axis(weights, order, axis=1)
        bagged, lost = self._array_of("bagged"), rows[loses]
        self.changed = lost
        fitted = lost[bagged[lost] == FITTED]
        emptied = lost[self._array_of("bag")[lost, 0] == 0]
        self._progress[CHANGES] += fitted.size
        self._progress[COUNTED] -= np.count_nonzero(bagged[emptied] == FITTED)
        bagged[emptied] = NONE
        return self._described(lost, count)

    def follow_vectors(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Ends a record that gave rows uint32[n] vectors.

        Returns the rows that `map_cold` will write.
        """
        assert self._vectors is not None
        self._described(rows, count)
        return self.take(self._vectors)

    def _dense(self, bags: Bags) -> tuple[np.ndarray, np.ndarray]:
        """The numbers uint32[n, m] and the weights float32[n, m] of bags.

        New features get numbers.
        """
        keys, first, inverse = np.unique(bags.keys, return_index=True, return_inverse=True)
        for key in keys[np.argsort(first)].tolist():
            self._numbers.setdefault(key, len(self._numbers) + 1)
        self._grow()
        numbers = np.fromiter((self._numbers[key] for key in keys.tolist()), np.uint32, len(keys))
        sizes = np.diff(bags.ends, prepend=0)
        width = self._array_of("bag").shape[1]
        table, weights = np.zeros((len(sizes), width), np.uint32), np.zeros((len(sizes), width), np.float32)
        filled = np.arange(width) < sizes[:, None]
        table[filled], weights[filled] = numbers[inverse], bags.weights
        return table, weights

    def _grow(self) -> None:
        while len(self._rows) <= len(self):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])


def solved_again(items: np.ndarray, last: Recent, seen: Callable[[np.ndarray], np.ndarray], revision: int,
                 counts: tuple[int, int]) -> Update | None:  # fmt: skip
    """The replayed events that solve changed items again, None without any.

    Args:
        items: rows uint32[n].
        last: the last event of each of them.
        seen: gives the numbers of events of user rows.
        revision: of the record.
        counts: sizes of the tables.
    """
    items, users = items[last.counts > 0], last.rows[last.counts > 0, 0]
    present = seen(users) > 0
    items, users = items[present], np.ascontiguousarray(users[present])
    if not items.size:
        return None
    return Update(revision, users, items, None, None, *counts, replayed=items.size)
