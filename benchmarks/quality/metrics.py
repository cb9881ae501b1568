"""What a ranking is worth: NDCG@10, recall@10, recall@20, hit rate@10.

Lists hold the best items that have an event in the learned part, less those that their user has one for, by
score descending, then item number ascending. Users: those with an event in the learned part and one in the
judged part whose item they had not had. Relevant: such items of the judged part, also ones that nobody has had
(no list can name them). NDCG: gains of 1, discount 1 / log2(rank + 1), over that of the best list possible.
Recall: over the number of relevant items. Means over users.
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
"""What was learned: users int32[n] to the scores of all items, float[n, items]."""


@compiled(nogil=False, error_model="python")
def top_lists(scores: Any, left_out: Any, top: int) -> Any:
    """int32[users, top]: the best items, score descending, then number ascending; -1 where there are fewer.

    scores float[users, items]; left_out bool[users, items]: never listed.
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
    """The figures of lists int[users, TOP] (-1: no item) for bool[users, items]; every user has a relevant one."""
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
    """Who is asked for and what counts for a division; `figures` judges what was learned from it."""

    def __init__(self, division: Division) -> None:
        had = division.learned.matrix() > 0
        relevant = (division.judged.matrix() > 0) & ~had
        self.users = np.flatnonzero(had.any(axis=1) & relevant.any(axis=1)).astype(np.int32)
        self.relevant = relevant[self.users]
        self.left_out = had[self.users] | ~had.any(axis=0)

    def figures(self, scores: Scores) -> dict[str, float]:
        """The figures by name. ValueError if a score is not finite: such a ranking means nothing."""
        asked = scores(self.users)
        if not np.isfinite(asked).all():
            raise ValueError("scores: expected finite ones")
        return ranking(top_lists(asked, self.left_out, TOP), self.relevant)
