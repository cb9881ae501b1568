"""The arithmetic of the map in compiled code. The semantics are in `solve/prior/__init__.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.solve.prior import RIDGE

_0, _1, _TILE = np.uint64(0), np.uint64(1), np.uint64(16)


class CpuArithmetic:
    """As `learning.Arithmetic`."""

    def __init__(self, dimension: int, k: int) -> None:
        """Compiles the kernels, or loads them from Numba's cache."""
        none, one = np.zeros((0, dimension + 1)), np.zeros((0, k), np.float32)
        map_ = np.zeros((dimension + 1, k))
        self.mapped(none, map_)
        self.add_vectors(np.zeros((dimension + 1, dimension + 1)), none, 1.0)
        self.add_rows(map_, none, one, one)
        self.regress(np.ones((1, 1)), np.ones((1, k)), np.ones((1, k)))

    def mapped(self, vectors: np.ndarray, map_: np.ndarray) -> np.ndarray:
        """See `learning.Arithmetic.mapped`."""
        rows = np.zeros((len(vectors), map_.shape[1]))
        livefactor_map_kernel(vectors, map_, rows)
        return rows.astype(np.float32)

    def add_vectors(self, gram: np.ndarray, vectors: np.ndarray, sign: float) -> None:
        """See `learning.Arithmetic.add_vectors`."""
        livefactor_vector_sums_kernel(gram, vectors, np.float64(sign))

    def add_rows(self, sums: np.ndarray, vectors: np.ndarray, new: np.ndarray, old: np.ndarray) -> None:
        """See `learning.Arithmetic.add_rows`."""
        livefactor_row_sums_kernel(sums, vectors, new.astype(np.float64), old.astype(np.float64))

    def regress(self, gram: np.ndarray, sums: np.ndarray, map_: np.ndarray) -> None:
        """See `learning.Arithmetic.regress`."""
        map_[:] = sums
        livefactor_regress_kernel(gram.copy(), map_)


@compiled
def livefactor_map_kernel(vectors: Any, map_: Any, rows: Any) -> None:
    """Adds W'e to rows float64[n, k], which are 0."""
    count = np.uint64(rows.shape[0])
    # A tile of rows stays in the first cache.
    for start in range(_0, count, _TILE):
        stop = min(start + _TILE, count)
        for p in range(np.uint64(map_.shape[0])):
            for i in range(start, stop):
                e = vectors[i, p]
                for q in range(np.uint64(map_.shape[1])):
                    rows[i, q] += e * map_[p, q]


@compiled
def livefactor_vector_sums_kernel(gram: Any, vectors: Any, sign: Any) -> None:
    """Adds sign * e e' for each vector."""
    size = np.uint64(gram.shape[0])
    for i in range(np.uint64(vectors.shape[0])):
        for p in range(size):
            for q in range(size):
                gram[p, q] += sign * (vectors[i, p] * vectors[i, q])


@compiled
def livefactor_row_sums_kernel(sums: Any, vectors: Any, new: Any, old: Any) -> None:
    """Adds e new' - e old' for each vector. new and old are float64[n, k]."""
    size = np.uint64(sums.shape[0])
    # A tile of the sums stays in the first cache.
    for start in range(_0, size, _TILE):
        stop = min(start + _TILE, size)
        for i in range(np.uint64(vectors.shape[0])):
            for p in range(start, stop):
                e = vectors[i, p]
                for q in range(np.uint64(sums.shape[1])):
                    sums[p, q] = (sums[p, q] + e * new[i, q]) - e * old[i, q]


@compiled
def livefactor_regress_kernel(a: Any, b: Any) -> None:
    """Solves (A + lambda I) W = B for a = A, which it overwrites, and b = B, which becomes W."""
    size, width = np.uint64(a.shape[0]), np.uint64(b.shape[1])
    trace: Any = np.float64(0.0)
    for p in range(size - _1):
        trace += a[p, p]
    ridge = RIDGE * (trace / a[size - _1, size - _1])
    for p in range(size - _1):
        a[p, p] += ridge
    for p in range(size):
        root = np.sqrt(a[p, p])
        for j in range(p, size):
            a[p, j] = a[p, j] / root
        for i in range(p + _1, size):
            factor = a[p, i]
            for j in range(i, size):
                a[i, j] -= factor * a[p, j]
    for p in range(size):
        for q in range(width):
            b[p, q] = b[p, q] / a[p, p]
        for i in range(p + _1, size):
            factor = a[p, i]
            for q in range(width):
                b[i, q] -= factor * b[p, q]
    for back in range(size):
        last = size - _1 - back
        for q in range(width):
            b[last, q] = b[last, q] / a[last, last]
        for i in range(last):
            factor = a[i, last]
            for q in range(width):
                b[i, q] -= factor * b[last, q]
