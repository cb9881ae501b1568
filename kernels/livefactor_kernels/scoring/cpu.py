"""Scores and exact top-k lists on the CPU.

Every score is s = ((mu + b_u) + b_i) + dot, with each sum rounded to float32, and the dot product
in 16 lanes. Lists are ordered by descending score, then by ascending item key. Two algorithms find
the k best items, with the same bits:

    one user     Scan the exact scores of all items into an array, correct what changed since the
                 pin, and select.
    many users   A matrix product scores a block of items for all users. Only items that its
                 rounding error cannot exclude from a user's k best are scored exactly.

Both read live rows while updates go on. A row is copied before its first change after the pin. A
reader that calls `Pin.copies` after its scan therefore knows every row that the scan may have read
too late or half-written, and it replaces the scores of these rows.

The matrix product uses all threads of BLAS; a server limits it to one (threadpoolctl). All loops
release the GIL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Protocol

import numpy as np

from livefactor_kernels.numbers.lanes import LANES, VECTOR_BYTES, address_of
from livefactor_kernels.numbers.narrow import as_argument, factors_of, widened
from livefactor_kernels.scoring.cpu_kernels import (
    ItemRows,
    ManyUsers,
    bounds_kernel,
    gather_kernel,
    keep_all_kernel,
    scan_kernel,
    select_kernel,
    settle_kernel,
    widen_kernel,
)
from livefactor_kernels.spec.model import FactorDtype, Limits, ModelSpec
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.tables.cpu import RowReader, Table

MANY_USERS = 4
"""From so many users on, the matrix product is faster (benchmarks/speed/reads.py)."""
USERS_AT_ONCE = 64
ITEMS_AT_ONCE = 4096
"""Users and items of one matrix product.

Its result of 1 MiB is still in the cache when it is read.
"""
HEAP_SLOTS_MAX = 1 << 22
HEAP_MARGIN = 32
"""Additional heap places beyond k.

They make it rare that changes during a scan force a new scan for a user.
"""

_NO_ROWS = np.empty(0, np.uint32)

_Result = tuple[np.ndarray, np.ndarray]


class PinView(Protocol):
    """The part of `pins.Pin` that reads need."""

    counts: tuple[int, int]
    mean: np.float32

    def copies(self, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows that changed since the pin, with their values as of the pin.

        Returns:
            Rows uint32[m] ascending, factors float32[m, kp] and biases float32[m].
        """
        ...


# ---------------------------------------------------------------- gathering and scoring


def gather(table: RowReader, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors float32[n, kp] and biases float32[n] of rows uint32[n]. They are zeros for `NO_ROW`.

    It reads the present values. The caller holds the gate, or corrects them (`gather_pinned`).
    """
    out, bias = _aligned_zeros(rows.size, table.factors.shape[1]), np.zeros(rows.size, np.float32)
    rows = as_rows(rows)
    gather_kernel(as_argument(table.factors), table.bias, rows, address_of(out), bias, _vectors(out))
    return out, bias


def gather_pinned(
    pin: PinView, side: int, table: RowReader, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`gather` for the rows of one side as of the pin, without the gate."""
    out, bias = gather(table, rows)
    changed, factors, changed_bias = pin.copies(side)
    if changed.size:
        place = np.minimum(np.searchsorted(changed, rows), changed.size - 1)
        hit = changed[place] == rows
        out[hit], bias[hit] = factors[place[hit]], changed_bias[place[hit]]
    return out, bias


def score_candidates(
    mean: np.float32, user_factors: np.ndarray, user_bias: np.ndarray, item_factors: np.ndarray,
    item_bias: np.ndarray, offsets: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Scores float32[m] of the users' candidates.

    Args:
        mean: the global mean.
        user_factors: float32[n, kp]; zeros for unknown users, as in `gather`.
        user_bias: float32[n].
        item_factors: float32[m, kp]; zeros for unknown items.
        item_bias: float32[m].
        offsets: user u's candidates are offsets[u]:offsets[u + 1]; ascending integers[n + 1] from 0
            to m.

    Raises:
        ValueError: the offsets are invalid.
    """
    _check_offsets("offsets", offsets, len(user_bias), len(item_bias))
    users, items = aligned(user_factors), aligned(item_factors)
    bases = np.float32(mean) + np.asarray(user_bias, np.float32)
    scores, ends = np.empty(len(item_bias), np.float32), offsets.tolist()
    for u, (start, stop) in enumerate(pairwise(ends)):
        own, bias = items[start:], item_bias[start:stop]
        scan_kernel(users[u], bases[u], own, bias, _vectors(items), scores[start:stop])
    return scores


# ---------------------------------------------------------------- one user


def _scan_top_k(query: _Query, user: int) -> _Result:
    """Rows and scores of one user's k best items.

    Why it is correct: each score is that of the live row if the row was not changed before the scan
    ended, or else that of its copy. The selection starts after all of them are in place.
    """
    items, vectors = query.items, _vectors(query.factors)
    user_row, base = query.factors[user], query.bases[user]
    item_scores = np.empty(query.count, np.float32)
    scan_kernel(user_row, base, as_argument(items.factors), items.bias, vectors, item_scores)
    changed, factors, bias = query.pin.copies(ITEMS)
    if changed.size:
        corrected, factors = np.empty(changed.size, np.float32), aligned(factors)
        scan_kernel(user_row, base, factors, bias, vectors, corrected)
        item_scores[changed] = corrected
    scores, rows = np.empty(query.k, np.float32), np.empty(query.k, np.uint32)
    size = select_kernel(item_scores, query.excluded, query.own(user), items.keys, scores, rows)
    return rows[:size], scores[:size]


# ---------------------------------------------------------------- many users


def slacks(bases: np.ndarray, norms: np.ndarray, k: int, item_norm: float, bias_max: float) -> np.ndarray:
    """The maximum error of each user's scores by the matrix product, float64[n].

    Let u = 2**-24. Adding k products in any order, fused or not, gives the true dot product within
    g * sum |x_j y_j| <= g * N, where g = k u / (1 - k u) and N = |x| |y| (Cauchy-Schwarz), plus
    2**-150 for each product that underflows. So the two dot products d and p differ by at most 2 g
    N + k 2**-149. With the same c = fl(fl(mu + b_u) + b_i), the scores fl(c + d) and fl(c + p)
    differ by this and by their two roundings, u |c + d| + u |c + p| <= 2 u (|c| + (1 + g) N + k
    2**-150). The norm of an item is a float32 sum. It is too small by at most a factor 1 - g and by
    k 2**-149. One additional per cent covers these factors up to k = 1024, and all float64
    roundings here.
    """
    u, tiny = 2.0**-24, k * 2.0**-148
    g = k * u / (1.0 - k * u)
    n = norms * np.sqrt(np.float64(item_norm) + tiny)
    c = np.abs(bases.astype(np.float64)) + bias_max
    most: np.ndarray = 1.01 * (2 * g * n + 2 * u * (c + (1 + g) * n) + tiny)
    return most


def _multiply_top_k(query: _Query, first: int, last: int) -> Iterator[_Result]:
    """Yields rows and scores of the k best items of each of the users [first, last)."""
    k = min(query.k + HEAP_MARGIN, query.count)
    factors, bases = query.factors[first:last], query.bases[first:last]
    heaps = np.empty((last - first, k), np.float32), np.empty((last - first, k), np.uint32)
    users = ManyUsers(factors_of(factors), bases, query.own_rows, query.own_offsets[first:], *heaps,
                   np.zeros(last - first, np.uint64))  # fmt: skip
    table = query.items
    vectors = _vectors(table.factors)
    items = ItemRows(factors_of(table.factors), table.bias, table.keys, query.excluded, vectors)
    norms = np.linalg.norm(factors.astype(np.float64), axis=1)
    products = np.empty((last - first, ITEMS_AT_ONCE), np.float32)
    for start in range(0, query.count, ITEMS_AT_ONCE):
        stop = min(start + ITEMS_AT_ONCE, query.count)
        item_factors = _as_float32(table.factors, start, stop)
        block = np.matmul(factors, item_factors.T, out=products[:, : stop - start])
        bounds = bounds_kernel(items, np.uint64(start), np.uint64(stop))
        limits = slacks(bases, norms, factors.shape[1], *bounds)
        keep_all_kernel(block, users, items, np.uint64(start), limits)
    yield from _settled(query, first, users, items)


def _as_float32(factors: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) of a table's factors as float32; a copy if they are narrow."""
    if factors.dtype == np.float32:
        return factors[start:stop]
    wide = _aligned_zeros(stop - start, factors.shape[1])
    vectors = _vectors(factors)
    widen_kernel(as_argument(factors), np.uint64(start), np.uint64(stop), address_of(wide), vectors)
    return wide


def _settled(query: _Query, first: int, users: ManyUsers, items: ItemRows) -> Iterator[_Result]:
    """Yields the results of a matrix product's users, corrected by what changed during it."""
    changed, factors, bias = query.pin.copies(ITEMS)
    corrected, factors = np.empty(changed.size, np.float32), aligned(factors)
    for u, base in enumerate(users.bases):
        user_row = query.factors[first + u]
        if changed.size:
            scan_kernel(user_row, base, factors, bias, items.vectors, corrected)
        size, right = settle_kernel(np.uint64(u), users, items, changed, corrected, np.uint64(query.k))
        yield (users.rows[u, :size], users.scores[u, :size]) if right else _scan_top_k(query, first + u)


# ---------------------------------------------------------------- the verb


@dataclass(frozen=True, slots=True)
class _Query:
    """A checked query: aligned factors, bases = mu + b_u, k <= count, ascending exclusions."""

    pin: PinView
    items: RowReader
    factors: np.ndarray
    bases: np.ndarray
    count: int
    k: int
    excluded: np.ndarray
    own_rows: np.ndarray
    own_offsets: np.ndarray

    def own(self, user: int) -> np.ndarray:
        return self.own_rows[int(self.own_offsets[user]) : int(self.own_offsets[user + 1])]


def top_k(
    pin: PinView, items: RowReader, user_factors: np.ndarray, user_bias: np.ndarray, k: int,
    excluded_rows: np.ndarray | None = None, own_excluded_rows: np.ndarray | None = None,
    own_offsets: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The exact k best items of each user as of the pin. It does not need the gate.

    Args:
        pin: a live pin.
        items: the item table of its model.
        user_factors: float32[n, kp] as of the pin (`gather_pinned`); zeros for an unknown user.
        user_bias: float32[n] as of the pin.
        k: length of the lists, 0 or more. Lists are shorter if fewer items are left.
        excluded_rows: rows that no list may contain, uint32[e], ascending.
        own_excluded_rows: excluded rows of each user, uint32[o], ascending per user.
        own_offsets: user u's are own_offsets[u]:own_offsets[u + 1]; integers[n + 1].

    Returns:
        Rows uint32[m], scores float32[m] and offsets int64[n + 1]. User u's list is
        offsets[u]:offsets[u + 1], by descending score, then ascending item key.

    Raises:
        ValueError: k is negative, or shapes do not match.
    """
    query = _checked(pin, items, user_factors, user_bias, k, excluded_rows, own_excluded_rows, own_offsets)
    results = list(_results(query))
    offsets = np.zeros(len(results) + 1, np.int64)
    np.cumsum([len(rows) for rows, _ in results], out=offsets[1:])
    rows = np.concatenate([_NO_ROWS, *(rows for rows, _ in results)])
    scores = np.concatenate([np.empty(0, np.float32), *(scores for _, scores in results)])
    return rows, scores, offsets


def _results(query: _Query) -> Iterator[_Result]:
    users = len(query.bases)
    if query.k == 0:
        yield from [(_NO_ROWS, np.empty(0, np.float32))] * users
        return
    at_once = min(USERS_AT_ONCE, HEAP_SLOTS_MAX // (query.k + HEAP_MARGIN))
    for first in range(0, users, max(1, at_once)):
        last = min(first + max(1, at_once), users)
        if last - first >= MANY_USERS:
            yield from _multiply_top_k(query, first, last)
        else:
            yield from (_scan_top_k(query, user) for user in range(first, last))


def _checked(
    pin: PinView, items: RowReader, user_factors: np.ndarray, user_bias: np.ndarray, k: int,
    excluded_rows: np.ndarray | None, own_excluded_rows: np.ndarray | None, own_offsets: np.ndarray | None,
) -> _Query:  # fmt: skip
    kp = items.factors.shape[1]
    own, offsets = check_top_k(user_factors, user_bias, kp, k, own_excluded_rows, own_offsets)
    count = pin.counts[ITEMS]
    bases = np.float32(pin.mean) + np.asarray(user_bias, np.float32)
    excluded = as_rows(_NO_ROWS if excluded_rows is None else excluded_rows)
    return _Query(
        pin=pin,
        items=items,
        factors=aligned(user_factors),
        bases=bases,
        count=count,
        k=min(k, count),
        excluded=excluded,
        own_rows=as_rows(own),
        own_offsets=offsets.astype(np.uint64),
    )


def check_top_k(
    user_factors: np.ndarray, user_bias: np.ndarray, kp: int, k: int, own: np.ndarray | None,
    own_offsets: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Checks the arguments of `pins.Pin.top_k`. `kp` is the number of floats per row.

    Returns:
        The users' own exclusions and their offsets; empty ones for None.

    Raises:
        ValueError: k is negative, or shapes do not match.
    """
    users = len(user_bias)
    if user_factors.shape != (users, kp):
        raise ValueError(f"user_factors: expected float32[{users}, {kp}], got {list(user_factors.shape)}")
    if k < 0:
        raise ValueError(f"k: expected 0 or more, got {k}")
    own = _NO_ROWS if own is None else own
    offsets = np.zeros(users + 1, np.int64) if own_offsets is None else own_offsets
    _check_offsets("own_offsets", offsets, users, len(own))
    return own, offsets


def _check_offsets(name: str, offsets: np.ndarray, lists: int, length: int) -> None:
    ends = np.asarray(offsets).astype(np.int64)
    if ends.shape != (lists + 1,) or ends[0] != 0 or ends[-1] != length or (ends[1:] < ends[:-1]).any():
        got = ends.ravel().tolist()[:9]
        raise ValueError(f"{name}: expected {lists + 1} ascending numbers from 0 to {length}, got {got}")


def _vectors(factors: np.ndarray) -> np.uint64:
    return np.uint64(factors.shape[1] // LANES)


def as_rows(rows: np.ndarray) -> np.ndarray:
    """The rows or a copy as uint32[n], writable and aligned.

    Arrays from wire bytes are neither, and Numba would compile another version of kernels for them.
    """
    if rows.dtype == np.uint32 and rows.flags.carray:
        return rows
    return np.require(rows, np.uint32, ("C", "A", "W"))


def _aligned_zeros(rows: int, width: int) -> np.ndarray:
    memory = np.zeros(rows * width + LANES, np.float32)
    start = -int(address_of(memory)) % int(VECTOR_BYTES) // 4
    return memory[start : start + rows * width].reshape(rows, width)


def aligned(factors: np.ndarray) -> np.ndarray:
    """The factors or a copy as float32[n, kp], C-contiguous and aligned to 64 bytes."""
    plain = factors.dtype == np.float32 and factors.flags.c_contiguous
    if plain and address_of(factors) % VECTOR_BYTES == 0:
        return factors
    copy = _aligned_zeros(*factors.shape)
    copy[:] = factors
    return copy


# ---------------------------------------------------------------- compiling ahead


@dataclass(slots=True)
class _StillPin:
    """A pin of a separate table. The first row counts as changed."""

    table: Table
    counts: tuple[int, int]
    mean: np.float32

    def copies(self, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.zeros(1, np.uint32), widened(self.table.factors[:1].copy()), self.table.bias[:1].copy()


@cache
def compile_kernels(factor_dtype: FactorDtype = FactorDtype.FLOAT32) -> None:
    """Compiles or loads the kernels of reads, so that no read waits for them."""
    limits = Limits(users_max=1, items_max=8)
    table = Table(ModelSpec(k=LANES, factor_dtype=factor_dtype, limits=limits), ITEMS)
    rows = table.allocate(np.arange(8, dtype=np.uint64))
    pin = _StillPin(table, (0, 8), np.float32(0.0))
    factors, bias = gather_pinned(pin, ITEMS, table, rows)
    score_candidates(pin.mean, factors, bias, factors, bias, np.arange(9))
    for users in (1, MANY_USERS):
        top_k(pin, table, factors[:users], bias[:users], 2)
