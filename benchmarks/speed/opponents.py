"""implicit's BPR and River's matrix factorization in process, in one thread, on
`benchmarks.speed.streams`.

implicit fits whole matrices. Its rate uses only its epochs: the difference between a fit with 1 +
EPOCHS epochs and one with a single epoch, without the set-up. The matrix keeps repeated events, so
that an epoch has as many samples as events. 63 factors and the bias column make 64. Each sample has
one unverified negative, drawn by popularity. River learns one event per call, with factors, both
biases and the mean, and squared loss.
"""

from __future__ import annotations

import time
import warnings
from itertools import cycle
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.speed.streams import K, Run, zipf_stream

try:
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix
except ImportError:
    BayesianPersonalizedRanking = None
try:
    from river import optim, reco
except ImportError:
    reco = None

EPOCHS = 3
BPR_EVENTS = 1 << 20
RIVER_EVENTS = 20_000


def rows_of(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """Row numbers of keys, int32[n], and the number of rows."""
    known, rows = np.unique(keys, return_inverse=True)
    return rows.astype(np.int32), known.size


def purchases_matrix(events: int) -> Any:
    """The first events of the stream as a CSR matrix of users by items.

    Repeats are kept: nnz = events.
    """
    user_keys, item_keys, _ = zipf_stream(events)
    (users, user_count), (items, item_count) = rows_of(user_keys), rows_of(item_keys)
    starts = np.zeros(user_count + 1, np.int32)
    np.cumsum(np.bincount(users, minlength=user_count), out=starts[1:])
    ones = np.ones(events, np.float32)
    return csr_matrix((ones, items[np.argsort(users, kind="stable")], starts), (user_count, item_count))


def implicit_bpr(events: int = BPR_EVENTS) -> Run | None:
    """A run that returns implicit's events per second, or None if it is not installed.

    Each run continues the last.
    """
    if BayesianPersonalizedRanking is None:
        return None
    matrix = purchases_matrix(events)
    with warnings.catch_warnings():
        # The libraries warn about thread pools, which BPR does not use.
        warnings.simplefilter("ignore")
        model = BayesianPersonalizedRanking(
            factors=K - 1, num_threads=1, verify_negative_samples=False, random_state=1
        )

    def fit(iterations: int) -> float:
        model.iterations = iterations
        started = time.perf_counter()
        model.fit(matrix, show_progress=False)
        return time.perf_counter() - started

    def run() -> float:
        with threadpool_limits(1):
            once = fit(1)
            assert matrix.nnz == events, "implicit has merged repeated events"
            return events * EPOCHS / (fit(1 + EPOCHS) - once)

    return run


def river_mf(events: int = RIVER_EVENTS) -> Run | None:
    """A run that returns River's events per second, or None if it is not installed.

    Each run continues the last.
    """
    if reco is None:
        return None
    rate = optim.SGD(0.01)
    model = reco.BiasedMF(
        n_factors=K, bias_optimizer=rate, latent_optimizer=rate, l2_bias=0.005, l2_latent=0.02, seed=1
    )
    triples = list(zip(*(column.tolist() for column in zipf_stream(events)), strict=True))
    stream = cycle(triples)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(events):
            user, item, value = next(stream)
            model.learn_one(user, item, value)
        return events / (time.perf_counter() - started)

    return run


def main() -> None:
    for name, run in (("implicit BPR", implicit_bpr()), ("River BiasedMF", river_mf())):
        print(f"{name:16}", "missing" if run is None else f"{[round(run()) for _ in range(4)][1:]} events/s")


if __name__ == "__main__":
    main()
