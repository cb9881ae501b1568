"""The k best results so far, as a heap of (score, row) with the worst one at its root.

The functions are compiled for `scoring/cpu_kernels.py`.

`scores` float32[k] and `rows` uint32[k] hold the heap in their first `size` entries. The order is
that of results: by descending score, then by ascending item key (`keys`, uint64 by row, which is
only read for ties).
"""

from __future__ import annotations

import numpy as np

from livefactor_kernels.numbers.compiled import compiled

_0, _1, _2 = np.uint64(0), np.uint64(1), np.uint64(2)


@compiled(inline="always")
def worse(score, row, other_score, other_row, keys):
    """Whether (score, row) comes after (other_score, other_row) in the order of results."""
    return score < other_score or (score == other_score and keys[row] > keys[other_row])


@compiled
def sift_down(scores, rows, size, score, row, keys):
    """Replaces the root of the heap of `size` entries by (score, row)."""
    hole = _0
    while True:
        child = hole * _2 + _1
        if child >= size:
            break
        right = child + _1
        if right < size and worse(scores[right], rows[right], scores[child], rows[child], keys):
            child = right
        if not worse(scores[child], rows[child], score, row, keys):
            break
        scores[hole], rows[hole] = scores[child], rows[child]
        hole = child
    scores[hole], rows[hole] = score, row


@compiled
def offer(scores, rows, size, score, row, keys):
    """Adds (score, row) if there is room or if it is better than the root.

    Returns the new size of the heap.
    """
    if size == np.uint64(scores.size):
        if worse(scores[_0], rows[_0], score, row, keys):
            sift_down(scores, rows, size, score, row, keys)
        return size
    hole = size
    while hole > _0:
        parent = (hole - _1) // _2
        if not worse(score, row, scores[parent], rows[parent], keys):
            break
        scores[hole], rows[hole] = scores[parent], rows[parent]
        hole = parent
    scores[hole], rows[hole] = score, row
    return size + _1


@compiled
def sort_heap(scores, rows, size, keys):
    """Sorts the first `size` entries of the heap into results, best first."""
    while size > _1:
        size -= _1
        score, row = scores[size], rows[size]
        scores[size], rows[size] = scores[_0], rows[_0]
        sift_down(scores, rows, size, score, row, keys)


@compiled
def contains(ascending, row):
    """Whether `row` is in an array of ascending rows."""
    low, high = _0, np.uint64(ascending.size)
    while low < high:
        middle = (low + high) // _2
        if ascending[middle] < row:
            low = middle + _1
        else:
            high = middle
    return low < np.uint64(ascending.size) and ascending[low] == row
