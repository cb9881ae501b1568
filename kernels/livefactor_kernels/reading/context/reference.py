"""The sums of features in plain NumPy: the reference for `cpu.py`."""

from __future__ import annotations

import numpy as np


class ReferenceArithmetic:
    """As `learning.Arithmetic`."""

    def add_items(self, gram: np.ndarray, rows: np.ndarray) -> None:
        """See `learning.Arithmetic.add_items`."""
        for e in rows:
            gram += np.outer(e, e)

    def add_features(
        self, sums: np.ndarray, counts: np.ndarray, rows: np.ndarray, ends: np.ndarray, places: np.ndarray,
        weights: np.ndarray,
    ) -> None:  # fmt: skip
        """See `learning.Arithmetic.add_features`."""
        start = 0
        for e, end in zip(rows, ends.tolist(), strict=True):
            for place, weight in zip(places[start:end].tolist(), weights[start:end].tolist(), strict=True):
                if place >= 0:
                    sums[place] += weight * e
                    counts[place] += abs(weight)
            start = end
