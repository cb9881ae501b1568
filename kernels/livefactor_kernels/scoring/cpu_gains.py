"""Top-k lists whose items have gains in addition to their scores, in compiled code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import VECTOR_BYTES
from livefactor_kernels.numbers.narrow import factors_of
from livefactor_kernels.scoring.cpu import aligned, as_rows
from livefactor_kernels.scoring.heap import contains, offer, sort_heap
from livefactor_kernels.simd.steps import dot

_0, _1 = np.uint64(0), np.uint64(1)


class Lists(NamedTuple):
    """Lists of n users: rows uint32[m], scores or gains float32[m], and offsets int64[n + 1]."""

    rows: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray

    def part(self, first: int, last: int) -> Lists:
        """The lists of the users [first, last)."""
        start, stop = self.offsets[first], self.offsets[last]
        ends = self.offsets[first : last + 1] - start
        return Lists(self.rows[start:stop], self.scores[start:stop], ends)


class Exclusions(NamedTuple):
    """Rows of no list uint32[e], and those of each user with offsets; ascending."""

    common: np.ndarray
    own: np.ndarray
    offsets: np.ndarray


def with_gains(
    users: tuple[np.ndarray, np.ndarray], items: tuple[np.ndarray, np.ndarray], keys: np.ndarray, k: int,
    best: Lists, gains: Lists, excluded: Exclusions,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The k best items of each user by their scores with gains.

    Args:
        users: factors float32[n, kp], and the mean plus the biases, float32[n].
        items: factors float32[m, kp] and biases of the rows of `gains`.
        keys: item keys by row.
        k: length of the lists.
        best: the k best items by scores without gains.
        gains: the gains, ascending by row for each user.
        excluded: rows that no list may contain. `best` has none of them.

    Returns:
        Rows, scores and offsets int64[n + 1] of the lists, as `scoring.cpu.top_k` returns them.
    """
    count = len(users[1])
    rows, scores = np.empty((count, k), np.uint32), np.empty((count, k), np.float32)
    sizes = np.zeros(count, np.int64)
    vectors = np.uint64(users[0].shape[1] * 4) // VECTOR_BYTES
    common, own = as_rows(excluded.common), as_rows(excluded.own)
    gain_kernel(
        aligned(users[0]), users[1], aligned(items[0]), items[1], vectors, keys, *best, *gains, common, own,
        excluded.offsets.astype(np.int64), rows, scores, sizes,
    )  # fmt: skip
    is_used = np.arange(k) < sizes[:, None]
    return rows[is_used], scores[is_used], np.concatenate([[0], np.cumsum(sizes)])


@compiled
def gain_kernel(
    users, bases, items, bias, vectors, keys, best_rows, best_scores, best_ends, gain_rows, gains, gain_ends,
    common, own, own_ends, rows, scores, sizes,
):  # fmt: skip
    """See `with_gains`."""
    if rows.shape[1] == 0:
        return
    user_factors, item_factors, row_bytes = factors_of(users), factors_of(items), vectors * VECTOR_BYTES
    for u in range(np.uint64(sizes.size)):
        first, last = np.uint64(gain_ends[u]), np.uint64(gain_ends[u + _1])
        followers, excluded = gain_rows[first:last], own[own_ends[u] : own_ends[u + _1]]
        heap, heap_rows, size = scores[u], rows[u], _0
        for n in range(np.uint64(best_ends[u]), np.uint64(best_ends[u + _1])):
            if not contains(followers, best_rows[n]):
                size = offer(heap, heap_rows, size, best_scores[n], best_rows[n], keys)
        for n in range(first, last):
            product = dot(user_factors, u * row_bytes, item_factors, n * row_bytes, vectors)
            score, row = ((bases[u] + bias[n]) + product) + gains[n], gain_rows[n]
            reaches = size < np.uint64(heap.size) or score >= heap[_0]
            if reaches and not contains(excluded, row) and not contains(common, row):
                size = offer(heap, heap_rows, size, score, row, keys)
        sort_heap(heap, heap_rows, size, keys)
        sizes[u] = np.int64(size)
