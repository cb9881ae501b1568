"""Rows with numbers, and how they are sorted, in compiled code."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.lanes import bits_of
from livefactor_kernels.numbers.parts import inlined, part

_0, _1, _8, _BUCKETS = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(256)
_15, _23, _LAST = np.uint64(15), np.uint64(23), np.uint64(255)
_FEW = np.uint64(32)
"""So few rows are sorted by insertion."""
_ALL_BITS, _TIES = np.uint64(0xFFFFFFFF), np.uint64(0x7FFF)


class Rows(NamedTuple):
    """Item rows with numbers, in ascending order, and memory to sort them.

    Attributes:
        rows: uint32[any].
        gains: float32[any, lanes], the gains of the rows.
        loose_rows, loose: the same before they are sorted.
        order, other: uint32[any].
        counts: uint32[256].
    """

    rows: np.ndarray
    gains: np.ndarray
    loose_rows: np.ndarray
    loose: np.ndarray
    order: np.ndarray
    other: np.ndarray
    buckets: np.ndarray

    @staticmethod
    def of(size: int, lanes: int) -> Rows:
        """Room for `size` rows."""
        words = [np.empty(size, np.uint32) for _ in range(4)]
        gains, loose = np.zeros((2, size, lanes), np.float32)
        return Rows(words[0], gains, words[1], loose, words[2], words[3], np.empty(int(_BUCKETS), np.uint32))


@inlined
def sort_rows(rows: Any, size: Any) -> None:
    """Sets order[:size] to the places of loose_rows[:size] by row, and of equal rows by place."""
    keys, order, other, buckets = rows.loose_rows, rows.order, rows.other, rows.buckets
    if size <= _FEW:
        for n in range(size):
            at, key = np.uint64(n), keys[n]
            while at > _0 and keys[order[at - _1]] > key:
                order[at] = order[at - _1]
                at -= _1
            order[at] = np.uint32(n)
        return
    highest = np.uint32(0)
    for n in range(size):
        order[n] = np.uint32(n)
        highest = max(highest, keys[n])
    shift, most = _0, np.uint64(highest)
    while most >> shift:
        buckets[:] = np.uint32(0)
        for n in range(size):
            buckets[(np.uint64(keys[n]) >> shift) & (_BUCKETS - _1)] += np.uint32(1)
        total = np.uint32(0)
        for bucket in range(_BUCKETS):
            count = buckets[bucket]
            buckets[bucket] = total
            total += count
        for n in range(size):
            place = np.uint64(order[n])
            digit = (np.uint64(keys[place]) >> shift) & (_BUCKETS - _1)
            other[buckets[digit]] = np.uint32(place)
            buckets[digit] += np.uint32(1)
        for n in range(size):
            order[n] = other[n]
        shift += _8


@inlined
def _bucket_of(buckets: Any, before: Any, most: Any) -> Any:
    """The bucket in which number `most` is, and the number of what is before the bucket.

    `before` come before the first bucket.
    """
    bucket = _0
    while before + np.uint64(buckets[bucket]) < most:
        before += np.uint64(buckets[bucket])
        bucket += _1
    return bucket, before


@part
def sort_largest(numbers: Any, size: Any, most: Any, rows: Any) -> Any:
    """Finds the `most` largest of numbers float32[size], which are at least 0.

    It writes their places to rows.order, the largest first, and equal ones by place. The radix sort
    of all numbers takes four passes over them. Most of them are left out before: by the exponent,
    and then by the first bits of the mantissa. Returns how many there are.
    """
    keys, places, buckets = rows.loose_rows, rows.rows, rows.buckets
    for n in range(size):
        # The bits of numbers from 0 on have their order.
        keys[n], places[n] = np.uint32(_ALL_BITS - bits_of(numbers[n])), np.uint32(n)
    kept = size
    if size > most + _FEW:
        buckets[:] = np.uint32(0)
        for n in range(size):
            buckets[(np.uint64(keys[n]) >> _23) & _LAST] += np.uint32(1)
        first, before = _bucket_of(buckets, _0, most)
        buckets[:] = np.uint32(0)
        for n in range(size):
            key = np.uint64(keys[n])
            if (key >> _23) & _LAST == first:
                buckets[(key >> _15) & _LAST] += np.uint32(1)
        second = _bucket_of(buckets, before, most)[0]
        highest, kept = ((_BUCKETS | first) << _23) | (second << _15) | _TIES, _0
        for n in range(size):
            if np.uint64(keys[n]) <= highest:
                keys[kept], places[kept] = keys[n], np.uint32(n)
                kept += _1
    sort_rows(rows, kept)
    kept = min(kept, most)
    for n in range(kept):
        rows.order[n] = places[np.uint64(rows.order[n])]
    return kept
