"""`livefactor.Recommender` beside implicit's ALS at its default settings.

    python -m benchmarks.recommender

Both learn the first 80 % of Online Retail in the order of time: the first purchase of each item by
each customer. The lists of both leave out what a customer has, and NDCG@10 is over the customers
with a new item in the last 20 %.
The fits are timed in turns, and each figure is the best of its turns, so that other work on the
machine counts little. Compiling is not counted: each fit runs once before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.progressive.data import read_purchases
from benchmarks.quality.data import HELD_BACK_FROM, Division, Events, cut, numbered
from livefactor import Recommender

K = 10
ROUNDS = 3


def pairs(events: Events) -> np.ndarray:
    """The users and the items, int64[n, 2]."""
    return np.column_stack([events.users, events.items]).astype(np.int64)


def matrix(events: Events) -> Any:
    """Sparse users × items, 1 where there is an event."""
    from scipy import sparse

    ones = np.ones(len(events), np.float32)
    shape = (events.user_count, events.item_count)
    return sparse.csr_matrix((ones, (events.users, events.items)), shape)


def ndcg(lists: Callable[[np.ndarray], np.ndarray], division: Division) -> float:
    """Mean NDCG@10 of users who have learned and new judged items."""
    learned, judged = matrix(division.learned), matrix(division.judged)
    new = judged - judged.multiply(learned)
    new.eliminate_zeros()
    users = np.flatnonzero((np.diff(learned.indptr) > 0) & (np.diff(new.indptr) > 0)).astype(np.int32)
    found = lists(users)
    gains = 1.0 / np.log2(np.arange(2, K + 2))
    reached = []
    for user, row in zip(users, found, strict=True):
        wanted = new.indices[new.indptr[user] : new.indptr[user + 1]]
        best = gains[: min(K, wanted.size)].sum()
        reached.append(gains[np.isin(row, wanted)].sum() / best)
    return float(np.mean(reached))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


def measure(preset: str, batch: int | None, rounds: int = ROUNDS) -> dict[str, float]:
    """The figures of one preset beside ALS."""
    division = cut(numbered(read_purchases(), once=True), by_user=False, start=HELD_BACK_FROM, stop=1.0)
    events, counts = pairs(division.learned), matrix(division.learned)
    recommender = Recommender(preset, batch=batch)
    recommender.fit(events[:2_000])
    own, other = [], []
    for _ in range(rounds):
        seconds, als = timed(lambda: fitted_als(counts))
        other.append(seconds)
        own.append(timed(lambda: recommender.fit(events))[0])
    users = recommender.users_
    recommender.recommend(users[:64].tolist(), K)
    lists_s = min(timed(lambda: recommender.recommend(k=K))[0] for _ in range(rounds))

    def own_lists(asked: np.ndarray) -> np.ndarray:
        answer = recommender.recommend(asked.tolist(), K, exclude_seen=True)
        return answer.item_keys.astype(np.int64).reshape(asked.size, K)

    figures = {
        "fit_s": min(own),
        "als_fit_s": min(other),
        "fit_ratio": min(own) / min(other),
        "ndcg10": ndcg(own_lists, division),
        "als_ndcg10": ndcg(lambda asked: als.recommend(asked, counts[asked], N=K)[0], division),
        "users_per_s": users.size / lists_s,
    }
    recommender.close()
    return figures


def fitted_als(counts: Any) -> Any:
    """ALS of implicit at its default settings."""
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(random_state=0)
    model.fit(counts, show_progress=False)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", nargs="+", default=["auto", "clicks", "purchases"])
    parser.add_argument("--batch", type=int, help="events of a record; default: that of Recommender")
    arguments = parser.parse_args()
    for name in arguments.preset:
        print(
            name, json.dumps({key: round(value, 4) for key, value in measure(name, arguments.batch).items()})
        )
