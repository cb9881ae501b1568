"""Compiled loops that gather, scan, widen and select rows.

Rows are read as `narrow.Factors`, whose type tells how they are stored. Each loop is compiled for
each type that it is called with. Offsets in rows are in bytes of float32 factors. Loops that are
called often take arrays at multiples of 64 bytes (`narrow.as_argument`), since Numba unpacks named
tuples in Python, which costs several microseconds per call.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, store16
from livefactor_kernels.numbers.narrow import Factors, factors_of, load_factors, prefetch_factors
from livefactor_kernels.scoring.heap import contains, offer, sort_heap, worse
from livefactor_kernels.simd.steps import dot
from livefactor_kernels.tables import NO_ROW

_0, _1 = np.uint64(0), np.uint64(1)
_STRIP = np.uint64(64)
_SCAN_AHEAD_BYTES = np.uint64(1024)
_GATHER_AHEAD = np.uint64(12)
_NO_ROW = np.uint32(NO_ROW)


@compiled
def gather_kernel(array, bias, rows, out, out_bias, vectors):
    """Copies rows of the factors `array`, widened, to the address `out`.

    It skips the row NO_ROW.
    """
    factors = factors_of(array)
    count, row_bytes = np.uint64(rows.size), vectors * VECTOR_BYTES
    for i in range(count):
        ahead = i + _GATHER_AHEAD
        if ahead < count and rows[ahead] != _NO_ROW:
            prefetch_factors(factors, np.uint64(rows[ahead]) * row_bytes, vectors)
        if rows[i] != _NO_ROW:
            row = np.uint64(rows[i])
            for v in range(vectors):
                at = v * VECTOR_BYTES
                store16(out + i * row_bytes + at, load_factors(factors, row * row_bytes + at))
            out_bias[i] = bias[row]


@compiled
def scan_kernel(row, base, array, bias, vectors, scores):
    """Writes scores[i] = (base + bias[i]) + dot(`row`, row i of the factors `array`).

    `row` holds a user's factors.
    """
    user, factors = factors_of(row), factors_of(array)
    row_bytes = vectors * VECTOR_BYTES
    for i in range(np.uint64(scores.size)):
        prefetch_factors(factors, i * row_bytes + _SCAN_AHEAD_BYTES, vectors)
        scores[i] = (base + bias[i]) + dot(user, _0, factors, i * row_bytes, vectors)


@compiled
def widen_kernel(array, start, stop, out, vectors):
    """Writes rows [start, stop) of the factors `array`, widened, to the address `out`."""
    factors = factors_of(array)
    row_bytes = vectors * VECTOR_BYTES
    first = start * row_bytes
    for at in range(_0, (stop - start) * row_bytes, VECTOR_BYTES):
        store16(out + at, load_factors(factors, first + at))


@compiled
def select_kernel(item_scores, excluded, own, keys, scores, rows):
    """Writes the best of item_scores[row], best first, and returns their number."""
    count, size, full = np.uint64(item_scores.size), _0, np.uint64(scores.size)
    for start in range(_0, count, _STRIP):
        stop = min(start + _STRIP, count)
        # For nearly every strip, one vectorised pass shows that it contains no result.
        if size == full:
            threshold, reaching = scores[_0], np.uint32(0)
            for i in range(start, stop):
                reaching += np.uint32(item_scores[i] >= threshold)
            if reaching == np.uint32(0):
                continue
        for i in range(start, stop):
            row = np.uint32(i)
            reaches = size < full or item_scores[i] >= scores[_0]
            if reaches and not contains(own, row) and not contains(excluded, row):
                size = offer(scores, rows, size, item_scores[i], row, keys)
    sort_heap(scores, rows, size, keys)
    return size


class ManyUsers(NamedTuple):
    """The users of one matrix product: factors, mu + b_u, own exclusions, heaps and heap sizes."""

    factors: Factors
    bases: np.ndarray
    own: np.ndarray
    own_offsets: np.ndarray
    scores: np.ndarray
    rows: np.ndarray
    sizes: np.ndarray


class ItemRows(NamedTuple):
    """All items: factors, biases, keys, rows excluded for all, and 16-lane vectors per row."""

    factors: Factors
    bias: np.ndarray
    keys: np.ndarray
    excluded: np.ndarray
    vectors: np.uint64


@compiled
def bounds_kernel(items, start, stop):
    """The maximum squared norm and the maximum |bias| of the rows [start, stop), in float32."""
    norm, largest = np.float32(0.0), np.float32(0.0)
    for i in range(start, stop):
        row = i * items.vectors * VECTOR_BYTES
        norm = max(norm, dot(items.factors, row, items.factors, row, items.vectors))
        largest = max(largest, abs(items.bias[i]))
    return norm, largest


@compiled(inline="always")
def cutoff(threshold, slack):
    """A float32 that is not above threshold - slack.

    The additional margin is four times that rounding error.
    """
    wide = np.float64(threshold)
    return np.float32(wide - slack - (abs(wide) + slack) * 2.0**-22 - 2.0**-148)


@compiled
def _keep_kernel(products, u, users, items, start, slack):
    """Offers to user u's heap the rows from `start` on that `products` cannot exclude.

    It scores them exactly.
    """
    base, bias = users.bases[u], items.bias[start:]
    own = users.own[users.own_offsets[u] : users.own_offsets[u + _1]]
    scores, rows, size = users.scores[u], users.rows[u], users.sizes[u]
    row_bytes = items.vectors * VECTOR_BYTES
    count, full = np.uint64(products.size), np.uint64(scores.size)
    for strip in range(_0, count, _STRIP):
        stop = min(strip + _STRIP, count)
        least = cutoff(scores[_0], slack) if size == full else np.float32(-np.inf)
        reaching = np.uint32(0)
        for i in range(strip, stop):
            reaching += np.uint32((base + bias[i]) + products[i] >= least)
        if reaching == np.uint32(0):
            continue
        for i in range(strip, stop):
            if (base + bias[i]) + products[i] >= least:
                row = np.uint32(start + i)
                if not contains(own, row) and not contains(items.excluded, row):
                    user_at, item_at = u * row_bytes, (start + i) * row_bytes
                    product = dot(users.factors, user_at, items.factors, item_at, items.vectors)
                    score = (base + bias[i]) + product
                    size = offer(scores, rows, size, score, row, items.keys)
    users.sizes[u] = size


@compiled
def keep_all_kernel(products, users, items, start, slack):
    """Calls `_keep_kernel` for every user. `slack` is float64 per user."""
    for u in range(np.uint64(products.shape[0])):
        _keep_kernel(products[u], u, users, items, start, slack[u])


@compiled
def settle_kernel(u, users, items, changed, corrected, k):
    """Corrects the scores of the rows `changed` (ascending) in user u's heap, and sorts the heap.

    The heap may have held wrong scores, so that a correct row may have been rejected. But roots
    only improve, so that every rejected row is worse than the last root. If the k-th result is no
    worse than that root, no rejected row belongs before it.

    Returns:
        The number of results, and whether they are certainly correct.
    """
    scores, rows, size = users.scores[u], users.rows[u], users.sizes[u]
    own = users.own[users.own_offsets[u] : users.own_offsets[u + _1]]
    turned_away = size == np.uint64(scores.size)
    root_score, root_row = scores[_0], rows[_0]
    if changed.size:
        old_scores, old_rows, old_size, size = scores.copy(), rows.copy(), size, _0
        for i in range(old_size):
            if not contains(changed, old_rows[i]):
                size = offer(scores, rows, size, old_scores[i], old_rows[i], items.keys)
        for i in range(np.uint64(changed.size)):
            if not contains(own, changed[i]) and not contains(items.excluded, changed[i]):
                size = offer(scores, rows, size, corrected[i], changed[i], items.keys)
    sort_heap(scores, rows, size, items.keys)
    last = k - _1
    wrong = turned_away and (size < k or worse(scores[last], rows[last], root_score, root_row, items.keys))
    return min(size, k), not wrong
