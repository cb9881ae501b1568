"""Gains from counts for models without a mix, in compiled code.

The semantics are in `reading/__init__.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.spec.model import ModelSpec

_0, _1, _32 = np.uint64(0), np.uint64(1), np.uint64(32)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_F0 = np.float32(0.0)


class Lists(NamedTuple):
    """The followers of n items, by section name (`history.cpu.Followers`).

    Attributes:
        neighbor_rows: uint32[n, M].
        neighbor_counts: float32[n, M].
        seen_count: numbers of the items' events, uint32[n].
    """

    neighbor_rows: np.ndarray
    neighbor_counts: np.ndarray
    seen_count: np.ndarray


class CountReader:
    """Gains from counts. Any thread may call it."""

    def __init__(self, spec: ModelSpec) -> None:
        self._shrinkage, self._factor = np.float32(spec.counts.shrinkage), np.float32(spec.counts.weight)

    def followers(self, lists: dict[str, np.ndarray]) -> np.ndarray:
        """The distinct rows uint32[m] of followers, ascending."""
        found = np.empty(lists["neighbor_rows"].size, np.uint32)
        size = livefactor_followers_kernel(Lists(**lists), _empty_map(found.size), found)
        return np.sort(found[:size])

    def gains(
        self, lists: dict[str, np.ndarray], weights: np.ndarray, rows: np.ndarray, events: np.ndarray
    ) -> np.ndarray:
        """The gains float32[m] of the followers `rows` uint32[m], which have `events` events.

        `lists` are the followers of the remembered items, newest first. `weights` float32[n] are
        those of the items.
        """
        gains = np.zeros(len(rows), np.float32)
        found = Lists(**lists), weights, rows, events, _empty_map(rows.size)
        livefactor_gain_kernel(*found, self._shrinkage, self._factor, gains)
        return gains


def _empty_map(rows: int) -> np.ndarray:
    """A hash map of up to `rows` item rows: places uint32[n] of rows, plus 1; 0 if empty."""
    return np.zeros(1 << max(2 * rows - 1, 1).bit_length(), np.uint32)


@compiled
def _place(table: Any, rows: Any, row: Any) -> Any:
    """The place in `table` that has `row`, or the empty place for it (linear probing)."""
    last = np.uint64(table.size) - _1
    place = ((np.uint64(row) * _GOLDEN) >> _32) & last
    while table[place] != 0 and rows[table[place] - 1] != row:
        place = (place + _1) & last
    return place


@compiled
def livefactor_followers_kernel(lists: Any, table: Any, found: Any) -> Any:
    """Writes the distinct followers to `found`. Returns their number."""
    size: Any = _0
    for j in range(np.uint64(lists.neighbor_rows.shape[0])):
        for place in range(np.uint64(lists.neighbor_rows.shape[1])):
            if lists.neighbor_counts[j, place] > _F0:
                row = lists.neighbor_rows[j, place]
                at = _place(table, found, row)
                if table[at] == 0:
                    found[size] = row
                    size += _1
                    table[at] = np.uint32(size)
    return size


@compiled
def livefactor_gain_kernel(
    lists: Any,
    weights: Any,
    followers: Any,
    event_counts: Any,
    table: Any,
    shrinkage: Any,
    factor: Any,
    gains: Any,
) -> None:
    """Adds the gains of the rows `followers` (uint32[m], ascending) to gains, float32[m] zeros.

    `lists` are those of the user's events, and `weights` float32[n] are their weights.
    `event_counts` uint32[m] are the numbers of the followers' events. `table` is an empty map.
    """
    counts, total = lists.neighbor_counts, _F0
    for at in range(np.uint64(followers.size)):
        table[_place(table, followers, followers[at])] = np.uint32(at + _1)
    for j in range(np.uint64(weights.size)):
        own = np.float32(lists.seen_count[j])
        total += weights[j]
        for place in range(np.uint64(counts.shape[1])):
            if counts[j, place] > _F0:
                slot = np.uint64(table[_place(table, followers, lists.neighbor_rows[j, place])]) - _1
                norm = np.sqrt(own * np.float32(event_counts[slot])) + shrinkage
                gains[slot] += (weights[j] * counts[j, place]) / norm
    for at in range(np.uint64(followers.size)):
        gains[at] = (factor * gains[at]) / total
