"""The items that are most similar to given items, by the exact cosines of their factors.

All items are compared, in blocks of rows. Each dot product has the fixed order of sums of scores.
So an answer does not depend on what else a call asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from livefactor_kernels.pins import View
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.tables import ITEMS, NO_ROW

BLOCK_ROWS = 4096
"""Items that are compared at once."""

_NO_ROWS, _NO_SCORES = np.empty(0, np.uint32), np.empty(0, np.float32)


class Best:
    """The k best of items whose scores come in blocks: by score, then by ascending key."""

    def __init__(self, keys: np.ndarray, k: int) -> None:
        """`keys` are the item keys by row, uint64."""
        self._keys, self._k = keys, k
        self.rows, self.scores = _NO_ROWS, _NO_SCORES

    def add(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Adds items uint32[n] with their scores float32[n]."""
        if len(scores) > self._k:
            # Items with the score of the last one stay until their keys decide.
            is_good = scores >= np.partition(scores, -self._k)[-self._k]
            rows, scores = rows[is_good], scores[is_good]
        rows, scores = np.concatenate((self.rows, rows)), np.concatenate((self.scores, scores))
        order = np.lexsort((self._keys[rows], -scores))[: self._k]
        self.rows, self.scores = rows[order], scores[order]


def similar(
    pin: View, keys: np.ndarray, asked: np.ndarray, k: int, excluded: np.ndarray, check: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k items with the highest cosines for each asked item.

    Args:
        pin: the revision that answers.
        keys: item keys by row, uint64.
        asked: rows of the asked items, uint32[n], or `NO_ROW`.
        k: maximum number of items for each.
        excluded: rows that no answer has, uint32[e].
        check: is called between blocks. Its exception ends the read.

    Returns:
        Rows uint32[m], cosines float32[m] and offsets uint32[n + 1] into them. An unknown item has
        no answers, and neither has one whose factors are all 0.
    """
    own = _unit(pin.gather(ITEMS, asked)[0])
    best = [Best(keys, k) for _ in asked]
    count = pin.counts[ITEMS]
    for start in range(0, count, BLOCK_ROWS):
        check()
        rows = np.arange(start, min(start + BLOCK_ROWS, count), dtype=np.uint32)
        others = _unit(pin.gather(ITEMS, rows)[0])
        is_left: np.ndarray = np.any(others != 0, axis=1)
        is_left[excluded[(excluded >= rows[0]) & (excluded <= rows[-1])] - rows[0]] = False
        for number, row in enumerate(asked.tolist()):
            if row == NO_ROW or not own[number].any():
                continue
            cosines = _dots(own[number : number + 1], others)
            left = is_left & (rows != row)
            best[number].add(rows[left], cosines[left])
    return joined(best)


def joined(best: Sequence[Best]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists end to end: rows uint32[m], scores float32[m], and offsets uint32[n + 1] into them."""
    offsets = np.zeros(len(best) + 1, np.uint32)
    np.cumsum([len(each.rows) for each in best], out=offsets[1:])
    rows = np.concatenate([_NO_ROWS, *(each.rows for each in best)])
    return rows, np.concatenate([_NO_SCORES, *(each.scores for each in best)]), offsets


def _unit(factors: np.ndarray) -> np.ndarray:
    """The rows float32[n, kp], each divided by its norm. A row of zeros stays."""
    norms = np.sqrt(np.square(factors, dtype=np.float64).sum(axis=1))
    factors /= np.where(norms > 0, norms, 1.0)[:, None].astype(np.float32)
    return factors


def _dots(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    zeros = np.zeros(len(others), np.float32)
    ends = np.array([0, len(others)])
    dots = scoring.score_candidates(np.float32(0.0), one, zeros[:1], others, zeros, ends)
    return np.asarray(np.clip(dots, np.float32(-1.0), np.float32(1.0)))
