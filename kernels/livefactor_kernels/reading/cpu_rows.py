"""Item rows with numbers, and how they are sorted, in compiled code."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.parts import inlined

_0, _1, _8, _BUCKETS = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(256)
_FEW = np.uint64(32)
"""So few rows are sorted by insertion."""


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
