"""The sums of features in compiled code (semantics: `reading/context/__init__.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.solve.prior.cpu import livefactor_vector_sums_kernel


class CpuArithmetic:
    """As `learning.Arithmetic`."""

    def __init__(self, k: int) -> None:
        """Compiles the kernels, or loads them from Numba's cache."""
        rows, one = np.zeros((1, k + 1)), np.ones(1, np.int64)
        self.add_items(np.zeros((k + 1, k + 1)), rows)
        self.add_features(rows.copy(), np.zeros(1), rows, one, one - 1, np.zeros(1))

    def add_items(self, gram: np.ndarray, rows: np.ndarray) -> None:
        """See `learning.Arithmetic.add_items`."""
        livefactor_vector_sums_kernel(gram, rows, 1.0)

    def add_features(
        self, sums: np.ndarray, counts: np.ndarray, rows: np.ndarray, ends: np.ndarray, places: np.ndarray,
        weights: np.ndarray,
    ) -> None:  # fmt: skip
        """See `learning.Arithmetic.add_features`."""
        livefactor_context_sums_kernel(sums, counts, rows, ends, places, weights)


@compiled
def livefactor_context_sums_kernel(
    sums: Any, counts: Any, rows: Any, ends: Any, places: Any, weights: Any
) -> None:
    """Adds the weighted rows float64[n, k + 1] to the sums of their features, event by event."""
    start = np.int64(0)
    for i in range(ends.size):
        for at in range(start, ends[i]):
            place = places[at]
            if place < 0:
                continue
            weight = weights[at]
            for q in range(rows.shape[1]):
                sums[place, q] += weight * rows[i, q]
            counts[place] += abs(weight)
        start = ends[i]
