"""Opponents that factorise again and again: iALS, our own and implicit's.

Ours: Hu, Koren, Volinsky (ICDM 2008) in the form of Rendle et al. (RecSys 2022). It minimises, S being the
events, sum_S (x_u·y_i - 1)^2 + a0 sum_all (x_u·y_i)^2 + l2 (sum_u f_u |x_u|^2 + sum_i f_i |y_i|^2), a0 the weight
of what is unobserved, f_u = (events of u + a0 items)^nu, f_i alike: nu 1 scales by frequency, 0 is plain L2.
Each row is solved exactly, users, then items, `epochs` times over.
"""

from __future__ import annotations

import numpy as np

from benchmarks.quality.data import Events
from benchmarks.quality.metrics import Scores

try:
    from implicit.als import AlternatingLeastSquares
    from scipy import sparse
except ImportError:
    AlternatingLeastSquares = sparse = None

SOLVED_AT_ONCE = 256


class Als:
    """users float32[users, k], items float32[items, k]; learns with `epoch`."""

    def __init__(
        self, events: Events, k: int, unobserved: float, l2: float, nu: float = 1.0, seed: int = 0
    ) -> None:
        generator = np.random.default_rng(seed)
        scale = 0.1 / np.sqrt(k)
        self.unobserved, self.l2, self.nu = unobserved, l2, nu
        self.users = (scale * generator.standard_normal((events.user_count, k))).astype(np.float32)
        self.items = (scale * generator.standard_normal((events.item_count, k))).astype(np.float32)
        self._of_users = _grouped(events.users, events.items, events.user_count)
        self._of_items = _grouped(events.items, events.users, events.item_count)

    def epoch(self) -> None:
        """Solve every user for the items, then every item for the users."""
        self._solve(self.users, self.items, *self._of_users)
        self._solve(self.items, self.users, *self._of_items)

    def _solve(self, rows: np.ndarray, others: np.ndarray, named: np.ndarray, offsets: np.ndarray) -> None:
        everywhere = np.float32(self.unobserved) * (others.T @ others)
        counts = np.diff(offsets)
        ridge = self.l2 * (counts + self.unobserved * others.shape[0]) ** self.nu
        for start in range(0, rows.shape[0], SOLVED_AT_ONCE):
            stop = min(start + SOLVED_AT_ONCE, rows.shape[0])
            left = np.repeat(everywhere[None], stop - start, axis=0)
            right = np.zeros((stop - start, rows.shape[1]), np.float32)
            for row in range(start, stop):
                own = others[named[offsets[row] : offsets[row + 1]]]
                left[row - start] += own.T @ own
                right[row - start] = own.sum(axis=0)
            diagonal = np.arange(rows.shape[1])
            left[:, diagonal, diagonal] += ridge[start:stop, None].astype(np.float32)
            rows[start:stop] = np.linalg.solve(left, right[..., None])[..., 0]

    def scores(self, users: np.ndarray) -> np.ndarray:
        """float32[n, items]."""
        return self.users[users] @ self.items.T


def _grouped(rows: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(others by row, offsets int64[count + 1])."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    return others[np.argsort(rows, kind="stable")], offsets


def ials(events: Events, epochs: int, seed: int, **settings: float) -> Scores:
    """Our own, learned."""
    model = Als(events, **settings, seed=seed)  # type: ignore[arg-type]
    for _ in range(epochs):
        model.epoch()
    return model.scores


def implicit_ials(events: Events, epochs: int, seed: int, k: int, alpha: float, l2: float) -> Scores:
    """implicit's, one thread. alpha: the confidence of an event, over 1 of others."""
    model = AlternatingLeastSquares(
        factors=k, alpha=alpha, regularization=l2, iterations=epochs, num_threads=1, random_state=seed
    )
    cells = np.ones(len(events), np.float32), (events.users, events.items)
    model.fit(sparse.csr_matrix(cells, shape=(events.user_count, events.item_count)), show_progress=False)
    return lambda users: model.user_factors[users] @ model.item_factors.T
