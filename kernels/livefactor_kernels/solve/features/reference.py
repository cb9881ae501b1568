"""The arithmetic of features in plain NumPy: the reference for `cpu.py`."""

from __future__ import annotations

import numpy as np

from livefactor_kernels.solve.features import SWEEPS
from livefactor_kernels.solve.prior import RIDGE


class ReferenceArithmetic:
    """As `learning.Arithmetic`."""

    def summed(self, bags: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `learning.Arithmetic.summed`."""
        wide = rows.astype(np.float64)
        sums = np.repeat(wide[:1], len(bags), axis=0)
        for place in range(bags.shape[1]):
            told = bags[:, place] > 0
            sums[told] = sums[told] + weights[told, place, None].astype(np.float64) * wide[bags[told, place]]
        return sums.astype(np.float32)

    def fit(self, bags: np.ndarray, weights: np.ndarray, targets: np.ndarray, rows: np.ndarray) -> None:
        """See `learning.Arithmetic.fit`."""
        wide, r = weights.astype(np.float64), rows.astype(np.float64)
        told = bags > 0
        e = targets - r[0]
        for place in range(bags.shape[1]):
            at = told[:, place]
            e[at] = e[at] - wide[at, place, None] * r[bags[at, place]]
        ridge = RIDGE * (np.append(0.0, np.cumsum((wide * wide)[told]))[-1] / len(bags))
        for _ in range(SWEEPS):
            _step(r, 0, np.arange(len(bags)), np.ones(len(bags)), 0.0, e)
            for feature in range(1, len(rows)):
                own, places = np.nonzero(bags == feature)
                _step(r, feature, own, wide[own, places], ridge, e)
        rows[:] = r


def _step(r: np.ndarray, feature: int, own: np.ndarray, w: np.ndarray, ridge: float, e: np.ndarray) -> None:
    """Solves the row of a feature, given the rows that have it and its weights."""
    if not own.size:
        r[feature] = 0.0
        return
    c, q = np.cumsum(w[:, None] * e[own], axis=0)[-1], np.cumsum(w * w)[-1]
    new = (c + q * r[feature]) / (q + ridge)
    e[own] = e[own] - w[:, None] * (new - r[feature])
    r[feature] = new
