"""The arithmetic of features in compiled code (semantics: `solve/features/__init__.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.solve.features import SWEEPS
from livefactor_kernels.solve.prior import RIDGE

_0, _1 = np.uint64(0), np.uint64(1)
_D0 = np.float64(0.0)


class CpuArithmetic:
    """As `learning.Arithmetic`."""

    def __init__(self, k: int) -> None:
        """Compiles the kernels, or loads them from Numba's cache."""
        bag, weights, rows = np.ones((1, 1), np.uint32), np.ones((1, 1), np.float32), np.zeros((2, k))
        self.summed(bag, weights, rows.astype(np.float32))
        self.fit(bag, weights, rows[:1], rows.astype(np.float32))

    def summed(self, bags: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `learning.Arithmetic.summed`."""
        sums = np.empty((len(bags), rows.shape[1]), np.float32)
        livefactor_bag_kernel(bags, weights, rows, np.empty(rows.shape[1]), sums)
        return sums

    def fit(self, bags: np.ndarray, weights: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> None:
        """See `learning.Arithmetic.fit`."""
        own, places = np.nonzero(bags)
        features = bags[own, places]
        order = np.argsort(features, kind="stable")
        ends = np.searchsorted(features[order], np.arange(1, len(rows) + 1, dtype=np.uint32), side="left")
        r = rows.astype(np.float64)
        livefactor_fit_kernel(
            bags, weights, ends, own[order], weights[own, places][order], targets.copy(), r,
            np.empty((2, rows.shape[1])),
        )  # fmt: skip
        rows[:] = r


@compiled
def livefactor_bag_kernel(bags: Any, weights: Any, rows: Any, room: Any, sums: Any) -> None:
    """Writes the weighted sums of bags to float32[n, k]. `room` is float64[k]."""
    k = np.uint64(rows.shape[1])
    for i in range(np.uint64(bags.shape[0])):
        for q in range(k):
            room[q] = np.float64(rows[_0, q])
        for place in range(np.uint64(bags.shape[1])):
            feature = np.uint64(bags[i, place])
            if feature == _0:
                break
            weight = np.float64(weights[i, place])
            for q in range(k):
                room[q] += weight * np.float64(rows[feature, q])
        for q in range(k):
            sums[i, q] = np.float32(room[q])


@compiled
def _step(r: Any, feature: Any, own: Any, weights: Any, start: Any, stop: Any, ridge: Any, e: Any,
          room: Any) -> None:  # fmt: skip
    """Solves the row of a feature, which the rows own[start:stop] have.

    All rows have feature 0, with the weight 1.
    """
    k, row, c, change = np.uint64(r.shape[1]), r[feature], room[_0], room[_1]
    if start == stop:
        row[:] = _D0
        return
    c[:] = _D0
    squares = _D0
    for n in range(start, stop):
        i = np.uint64(own[n]) if feature else n
        weight = np.float64(weights[n]) if feature else np.float64(1.0)
        squares += weight * weight
        for q in range(k):
            c[q] += weight * e[i, q]
    for q in range(k):
        new = (c[q] + squares * row[q]) / (squares + ridge)
        change[q] = new - row[q]
        row[q] = new
    for n in range(start, stop):
        i = np.uint64(own[n]) if feature else n
        weight = np.float64(weights[n]) if feature else np.float64(1.0)
        for q in range(k):
            e[i, q] -= weight * change[q]


@compiled
def livefactor_fit_kernel(
    bags: Any, weights: Any, ends: Any, own: Any, own_weights: Any, e: Any, r: Any, room: Any
) -> None:
    """Fits the rows r float64[F + 1, k].

    e float64[n, k] has the targets, and becomes the residuals.
    The rows of feature f are own[ends[f - 1]:ends[f]], int64, with `own_weights`. room is
    float64[2, k].
    """
    count, k = np.uint64(bags.shape[0]), np.uint64(r.shape[1])
    total: Any = _D0
    for i in range(count):
        for q in range(k):
            e[i, q] -= r[_0, q]
        for place in range(np.uint64(bags.shape[1])):
            feature = np.uint64(bags[i, place])
            if feature == _0:
                break
            weight = np.float64(weights[i, place])
            total += weight * weight
            for q in range(k):
                e[i, q] -= weight * r[feature, q]
    ridge = RIDGE * (total / np.float64(count))
    for _ in range(SWEEPS):
        _step(r, _0, own, own_weights, _0, count, _D0, e, room)
        for number in range(_1, np.uint64(r.shape[0])):
            start, stop = np.uint64(ends[number - _1]), np.uint64(ends[number])
            _step(r, number, own, own_weights, start, stop, ridge, e, room)
