"""Opponents that factorise the whole matrix repeatedly: iALS, in our implementation and in
implicit's.

Ours is the algorithm of Hu, Koren, Volinsky (ICDM 2008) in the form of Rendle et al. (RecSys 2022).
With the events S, it minimises sum_S (x_u·y_i - 1)^2 + a0 sum_all (x_u·y_i)^2 + l2 (sum_u f_u
|x_u|^2 + sum_i f_i |y_i|^2). Here a0 is the weight of unobserved pairs, and f_u = (events of u + a0
items)^nu; f_i is similar. nu = 1 scales by frequency, and nu = 0 is plain L2. Each row is solved
exactly, first the users, then the items, for `epochs` epochs.
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
    """iALS. `users` are float32[users, k], `items` are float32[items, k]; `epoch` learns."""

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
        """Solves all users' rows given the items, then all items' rows given the users."""
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
        """The scores of all items for users [n], float[n, items]."""
        return self.users[users] @ self.items.T


def _grouped(rows: np.ndarray, others: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups `others` by row. Returns them and the offsets of the groups, int64[count + 1]."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    return others[np.argsort(rows, kind="stable")], offsets


def ials(events: Events, epochs: int, seed: int, **settings: float) -> Scores:
    """Our iALS, fitted to the events."""
    model = Als(events, **settings, seed=seed)  # type: ignore[arg-type]
    for _ in range(epochs):
        model.epoch()
    return model.scores


def implicit_ials(events: Events, epochs: int, seed: int, k: int, alpha: float, l2: float) -> Scores:
    """implicit's iALS, fitted in one thread.

    `alpha` is the confidence of an event above that of other pairs.
    """
    model = AlternatingLeastSquares(
        factors=k, alpha=alpha, regularization=l2, iterations=epochs, num_threads=1, random_state=seed
    )
    cells = np.ones(len(events), np.float32), (events.users, events.items)
    model.fit(sparse.csr_matrix(cells, shape=(events.user_count, events.item_count)), show_progress=False)
    return lambda users: model.user_factors[users] @ model.item_factors.T
