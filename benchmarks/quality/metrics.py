"""Ranking metrics: NDCG@10, recall@10, recall@20 and hit rate@10, as means over users.

Lists contain items with an event in the learned part, without those that the user has there, by
descending score, then ascending item number. Users count if they have an event in the learned part
and one in the judged part with a new item. Such items are relevant, even if no other user has had
them, so that no list can contain them. NDCG has gains of 1 and the discount 1 / log2(rank + 1), and
is divided by that of the best possible list. Recall is divided by the number of relevant items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.quality.data import Division
from livefactor_kernels.numbers.compiled import compiled

TOP = 20
NAMES = ("ndcg10", "recall10", "recall20", "hit10")
PRIMARY = "ndcg10"

Scores = Callable[[np.ndarray], np.ndarray]
"""A learned ranking: maps users int32[n] to the scores of all items, float[n, items]."""


@compiled(nogil=False, error_model="python")
def top_lists(scores: Any, left_out: Any, top: int) -> Any:
    """The top-k lists, int32[users, top], by descending score, then ascending number; missing
    entries are -1.

    `scores` are float[users, items]. Items with `left_out`, bool[users, items], are never listed.
    """
    lists = np.full((scores.shape[0], top), -1, np.int32)
    best = np.empty(top, scores.dtype)
    for user in range(scores.shape[0]):
        size = 0
        for item in range(scores.shape[1]):
            score = scores[user, item]
            if left_out[user, item] or (size == top and score <= best[top - 1]):
                continue
            place = min(size, top - 1)
            while place > 0 and best[place - 1] < score:
                best[place] = best[place - 1]
                lists[user, place] = lists[user, place - 1]
                place -= 1
            best[place] = score
            lists[user, place] = item
            size = min(size + 1, top)
    return lists


def ranking(lists: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """The metrics of lists int[users, TOP] (-1: no item).

    `relevant` is bool[users, items]; each user has such an item.
    """
    hits = np.take_along_axis(relevant, np.maximum(lists, 0), axis=1) & (lists >= 0)
    wanted = relevant.sum(axis=1)
    discounts = 1.0 / np.log2(np.arange(2, 12))
    ideal = np.cumsum(discounts)[np.minimum(wanted, 10) - 1]
    return {
        "ndcg10": float(np.mean(hits[:, :10] @ discounts / ideal)),
        "recall10": float(np.mean(hits[:, :10].sum(axis=1) / wanted)),
        "recall20": float(np.mean(hits[:, :20].sum(axis=1) / wanted)),
        "hit10": float(np.mean(hits[:, :10].any(axis=1))),
    }


class Judge:
    """The users and the relevant items of a division.

    `figures` computes the metrics of a learned ranking.
    """

    def __init__(self, division: Division) -> None:
        had = division.learned.matrix() > 0
        relevant = (division.judged.matrix() > 0) & ~had
        self.users = np.flatnonzero(had.any(axis=1) & relevant.any(axis=1)).astype(np.int32)
        self.relevant = relevant[self.users]
        self.left_out = had[self.users] | ~had.any(axis=0)

    def figures(self, scores: Scores) -> dict[str, float]:
        """The metrics by name. Raises ValueError if a score is not finite."""
        asked = scores(self.users)
        if not np.isfinite(asked).all():
            raise ValueError("scores: expected finite ones")
        return ranking(top_lists(asked, self.left_out, TOP), self.relevant)
