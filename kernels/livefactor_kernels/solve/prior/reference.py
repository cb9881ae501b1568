"""The arithmetic of the map in plain NumPy: the reference for `cpu.py`."""

from __future__ import annotations

import numpy as np

from livefactor_kernels.solve.prior import RIDGE


class ReferenceArithmetic:
    """As `learning.Arithmetic`."""

    def mapped(self, vectors: np.ndarray, map_: np.ndarray) -> np.ndarray:
        """See `learning.Arithmetic.mapped`."""
        rows = np.zeros((len(vectors), map_.shape[1]))
        for p in range(len(map_)):
            rows = rows + vectors[:, p, None] * map_[p]
        return rows.astype(np.float32)

    def add_vectors(self, gram: np.ndarray, vectors: np.ndarray, sign: float) -> None:
        """See `learning.Arithmetic.add_vectors`."""
        for e in vectors:
            gram += sign * np.outer(e, e)

    def add_rows(self, sums: np.ndarray, vectors: np.ndarray, new: np.ndarray, old: np.ndarray) -> None:
        """See `learning.Arithmetic.add_rows`."""
        for e, new_row, old_row in zip(vectors, new, old, strict=True):
            sums[:] = (sums + np.outer(e, new_row)) - np.outer(e, old_row)

    def regress(self, gram: np.ndarray, sums: np.ndarray, map_: np.ndarray) -> None:
        """See `learning.Arithmetic.regress`."""
        a, b, d = gram.copy(), sums.copy(), len(gram) - 1
        ridge = RIDGE * (np.cumsum(np.diag(gram)[:d])[-1] / gram[d, d])
        a[np.arange(d), np.arange(d)] += ridge
        for p in range(d + 1):
            a[p, p:] = a[p, p:] / np.sqrt(a[p, p])
            a[p + 1 :, p + 1 :] -= np.outer(a[p, p + 1 :], a[p, p + 1 :])
        for p in range(d + 1):
            b[p] = b[p] / a[p, p]
            b[p + 1 :] -= np.outer(a[p, p + 1 :], b[p])
        for p in range(d, -1, -1):
            b[p] = b[p] / a[p, p]
            b[:p] -= np.outer(a[:p, p], b[p])
        map_[:] = b
