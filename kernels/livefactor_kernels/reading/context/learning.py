"""Keeps the statistics of context, and makes the rows of features of them.

The semantics are in `reading/context/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Protocol

import numpy as np

from livefactor_kernels.reading.context import (
    COUNT_MIN,
    COUNTS,
    FACTOR_MAX,
    GRAM,
    HALVED_EVENTS,
    KEYS,
    PRIOR_EVENTS,
    SUMS,
    Moves,
    Statistics,
)
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.solve.prior.cpu import livefactor_regress_kernel
from livefactor_kernels.spec.model import ModelSpec

_NO_KEYS = np.empty(0, np.uint64)


class Arithmetic(Protocol):
    """The parts of the semantics that a backend computes (`reference.py`, `cpu.py`)."""

    def add_items(self, gram: np.ndarray, rows: np.ndarray) -> None:
        """Adds e e' to A for each row float64[n, k + 1], in order."""
        ...

    def add_features(
        self, sums: np.ndarray, counts: np.ndarray, rows: np.ndarray, ends: np.ndarray, places: np.ndarray,
        weights: np.ndarray,
    ) -> None:  # fmt: skip
        """Adds w e to the sums and |w| to the counts of the features of rows float64[n, k + 1].

        The features of row i end before ends[i], int64[n]. They have places int64[m], -1 for one
        that is not learned, and weights float64[m].
        """
        ...


class Context:
    """The context of a model. A part of a model (`tables.state.Part`)."""

    def __init__(self, spec: ModelSpec, arithmetic: Arithmetic) -> None:
        """No features. The memory for all of them is reserved."""
        self._arithmetic, width = arithmetic, spec.k + 1
        self._gram = np.zeros((width, width))
        self._sums, self._counts = np.zeros((spec.context.size, width)), np.zeros(spec.context.size)
        self._places: dict[int, int] = {}

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        count = len(self._places)
        keys = np.fromiter(self._places, np.uint64, count)
        arrays = {COUNTS: self._counts[:count], GRAM: self._gram, KEYS: keys, SUMS: self._sums[:count]}
        return {name: array.reshape(-1) for name, array in arrays.items()}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        keys = sections[KEYS]
        self._places = {key: place for place, key in enumerate(keys.tolist())}
        self._gram[:] = sections[GRAM].reshape(self._gram.shape)
        self._counts[: len(keys)] = sections[COUNTS]
        self._sums[: len(keys)] = sections[SUMS].reshape(-1, len(self._gram))

    def learn(self, items: np.ndarray, bags: Bags) -> Moves:
        """Takes the events of a record, whose items have the rows float32[n, k] and these bags."""
        forgotten = self._halve() if self._gram[-1, -1] >= HALVED_EVENTS else _NO_KEYS
        told = np.flatnonzero(np.diff(bags.ends, prepend=0))
        rows = np.ones((len(told), len(self._gram)))
        rows[:, :-1] = items[told]
        self._arithmetic.add_items(self._gram, rows)
        before = len(self._places)
        places = np.fromiter(map(self._placed, bags.keys.tolist()), np.int64, len(bags.keys))
        self._arithmetic.add_features(
            self._sums, self._counts, rows, bags.ends[told], places, bags.weights.astype(np.float64)
        )
        placed = np.fromiter(islice(self._places, before, None), np.uint64, len(self._places) - before)
        return Moves(placed, forgotten)

    def _placed(self, key: int) -> int:
        place = self._places.get(key, -1)
        if place < 0 and len(self._places) < len(self._counts):
            place = self._places[key] = len(self._places)
        return place

    def _halve(self) -> np.ndarray:
        """Halves the statistics. Returns the keys that it forgets, uint64[n]."""
        for array in (self._gram, self._sums, self._counts):
            array *= 0.5
        return self._keep(self._counts[: len(self._places)] >= COUNT_MIN)

    def drop(self, keys: np.ndarray) -> None:
        """Forgets the features of keys uint64[n]. Others among the keys do nothing."""
        stays = np.ones(len(self._places), bool)
        stays[[self._places[key] for key in keys.tolist() if key in self._places]] = False
        self._keep(stays)

    def _keep(self, stays: np.ndarray) -> np.ndarray:
        """Forgets the places where bool[n] is false. Returns their keys uint64[m]."""
        count = len(self._places)
        kept = np.flatnonzero(stays)
        for array in (self._sums, self._counts):
            array[: kept.size] = array[kept]
            array[kept.size : count] = 0.0
        keys = list(self._places)
        self._places = {keys[old]: new for new, old in enumerate(kept.tolist())}
        return np.asarray(np.array(keys, np.uint64)[~stays])

    def statistics(self, keys: np.ndarray) -> Statistics:
        """A copy of what is known of the features of keys uint64[m]."""
        found = [self._places.get(key, -1) for key in keys.tolist()]
        known = sorted({place for place in found if place >= 0})
        at = {place: number for number, place in enumerate(known)}
        places = np.array([at.get(place, -1) for place in found], np.int64)
        return Statistics(self._gram.copy(), places, self._sums[known], self._counts[known])


def factors_of(statistics: Statistics, bags: Bags) -> np.ndarray:
    """q for each of n bags, float32[n, k].

    `statistics` are those of `bags.keys`, in their order.
    """
    rows, places = rows_of(statistics), statistics.places
    q = np.zeros((len(bags.ends), len(rows)))
    start = 0
    for bag, end in enumerate(bags.ends.tolist()):
        for at in range(start, end):
            if places[at] >= 0:
                q[bag] += float(bags.weights[at]) * rows[:, places[at]]
        start = end
    return np.clip(q, -FACTOR_MAX, FACTOR_MAX).astype(np.float32)


def rows_of(statistics: Statistics) -> np.ndarray:
    """r_f of the features of `statistics.sums`, float64[k, any]."""
    gram, _, sums, counts = statistics
    # Without events, or if all items have the row 0, there is nothing to solve.
    if not len(sums) or np.trace(gram[:-1, :-1]) <= 0:
        return np.zeros((len(gram) - 1, len(sums)))
    rows = np.ascontiguousarray(sums.T)
    livefactor_regress_kernel(gram.copy(), rows)
    return np.asarray(gram[-1, -1] / (counts + PRIOR_EVENTS) * rows[:-1])


def strengths_of(statistics: Statistics) -> np.ndarray:
    """The strengths of the m asked features, float64[m]; 0 without statistics."""
    gram, places, _, counts = statistics
    rows, k = rows_of(statistics), len(gram) - 1
    if not rows.any():
        return np.zeros(len(places))
    mean = gram[:-1, -1] / gram[-1, -1]
    covariance = gram[:-1, :-1] / gram[-1, -1] - np.outer(mean, mean)
    squares = np.einsum("kf,kf->f", rows, covariance @ rows)
    found = np.sqrt(counts * np.maximum(squares, 0.0) / k)
    return np.asarray(np.where(places >= 0, found[places], 0.0))
