"""Most-popular, plain and decayed: the floor that a model's figures are shown beside.

Where items are ranked the floor is how often an item was in a positive event; for ratings it is the item's mean value, drawn
towards the mean of all by one event's weight. Decayed: an event counts half after so many more events. Counts are the
judge's own, in memory, 16 bytes an item (32 for ratings); they begin at zero when a server starts. To stay cheap, of a record of
1,024 events or more only every n // 512-th is counted, for as many.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled

PLAIN, DECAYED = 0, 1
COUNTED_EVENTS = 512
"""Events of a record that are counted at least, where it has as many; fewer than twice as many are."""
ASIDE_ROWS_MAX = 1 << 15
"""Rows that are put aside at most before they are counted."""
_RENORMALISE_AT = 1e200
_NO_VALUES = np.empty(0, np.float32)


@compiled(nogil=False, error_model="python")
def _count_kernel(rows: Any, values: Any, table: Any, stride: Any, weight: Any, growth: Any) -> Any:
    """Add events, each for `stride`, to counts float64[items, 2], plain and decayed; without `values` they are 1."""
    for i in range(rows.size):
        row = rows[i]
        value = stride * np.float64(values[i]) if values.size else np.float64(stride)
        table[row, 0] += value
        table[row, 1] += value * weight
        weight *= growth
    return weight


@compiled(nogil=False, error_model="python")
def _mean_kernel(
    rows: Any, values: Any, table: Any, totals: Any, stride: Any, weight: Any, growth: Any
) -> Any:
    """The same for sums float64[items, 4] (values plain and decayed, ones plain and decayed), and their `totals` float64[4]."""
    value_sum, decayed_sum, ones, decayed_ones = totals
    for i in range(rows.size):
        row, value = rows[i], stride * np.float64(values[i])
        table[row, 0] += value
        table[row, 1] += value * weight
        table[row, 2] += stride
        table[row, 3] += stride * weight
        value_sum += value
        decayed_sum += value * weight
        ones += stride
        decayed_ones += stride * weight
        weight *= growth
    totals[0], totals[1], totals[2], totals[3] = value_sum, decayed_sum, ones, decayed_ones
    return weight


class Popularity:
    """Counts by item row. One thread counts and reads."""

    def __init__(self, means: bool, half_life_events: float) -> None:
        """means: keep mean values (ratings), not counts of positive events. half_life_events: of the decayed counts."""
        self._means = means
        self._growth = 2.0 ** (1.0 / half_life_events)
        self._weight = 1.0
        self._table = np.zeros((1024, 4 if means else 2))
        self._totals = np.zeros(4)
        self._aside: list[tuple[np.ndarray, np.ndarray | None, int]] = []
        self._aside_rows = 0
        self.events = 0

    def count(self, rows: np.ndarray, values: np.ndarray | None) -> None:
        """Learn events in order: item rows uint32[n]; values float32[n], or None for all 1.

        They are put aside until somebody asks: little at once costs more than much, with caches full of other things.
        """
        stride = max(1, rows.size // COUNTED_EVENTS)
        self._aside.append(
            (rows[::stride].copy(), None if values is None else values[::stride].copy(), stride)
        )
        self._aside_rows += rows.size // stride
        self.events += rows.size
        if self._aside_rows >= ASIDE_ROWS_MAX:
            self.settle()

    def settle(self, item_count: int = 0) -> None:
        """Count what was put aside, and make room for item rows below `item_count`: before `scores` and `ranks`."""
        for rows, _, _ in self._aside:
            item_count = max(item_count, int(rows.max(initial=0)) + 1)
        if len(self._table) < item_count:
            grown = np.zeros((max(item_count, 2 * len(self._table)), self._table.shape[1]))
            grown[: len(self._table)] = self._table
            self._table = grown
        for aside in self._aside:
            self._count(*aside)
        self._aside, self._aside_rows = [], 0

    def _count(self, rows: np.ndarray, values: np.ndarray | None, stride: int) -> None:
        growth = self._growth**stride
        if self._means:
            ratings = np.ones(rows.size, np.float32) if values is None else values
            args = self._table, self._totals, stride, self._weight, growth
            self._weight = _mean_kernel(rows, ratings, *args)
        else:
            labels = _NO_VALUES if values is None else values
            self._weight = _count_kernel(rows, labels, self._table, stride, self._weight, growth)
        if self._weight > _RENORMALISE_AT:
            self._table[:, DECAYED::2] /= self._weight
            self._totals[DECAYED::2] /= self._weight
            self._weight = 1.0

    def scores(self, which: int, rows: np.ndarray) -> np.ndarray:
        """float64 of item rows (`settle` made room), shaped as they are: shares of the events so far (so that scores of different times
        compare), or mean values; `which` is PLAIN or DECAYED."""
        table = self._table[rows]
        if not self._means:
            return np.asarray(table[..., which] / (self._weight if which == DECAYED else max(1, self.events)))
        total, events = self._totals[which], self._totals[which + 2]
        overall = total / events if events else 0.0
        prior = self._weight if which == DECAYED else 1.0
        return np.asarray((table[..., which] + prior * overall) / (table[..., which + 2] + prior))

    def ranks(self, which: int, rows: np.ndarray, item_count: int) -> np.ndarray:
        """Ranks int64[n] of item rows [n] among the first `item_count` by count, as `metrics.ranks`."""
        counts = self._table[:item_count, which]
        own = self._table[rows, which]
        higher = [np.count_nonzero(counts > count) for count in own]
        others = np.array([np.count_nonzero(counts == count) for count in own], np.int64) - (
            rows < item_count
        )
        return np.array(higher, np.int64) + others // 2
