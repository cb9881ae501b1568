"""The most-popular baselines, plain and decayed, which are shown beside every figure of the model.

For ranked items, the baseline is the number of positive events of an item. For ratings, it is the
mean value of the item, shrunk to the mean of all items by the weight of one event. In the decayed
baseline, the weight of an event halves after each half-life.

The judge keeps its own counts in memory (`item_bytes`). They start at zero
when the server starts. To stay cheap, only every (n // 512)-th event of a record with n >= 1,024
events is counted, with the weight n // 512.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from livefactor_kernels.numbers.compiled import compiled

PLAIN, DECAYED = 0, 1


Counted = tuple[np.ndarray, np.ndarray | None]
"""Item rows of events, uint32[n], and their values, float32[n]. None means that all are 1."""

JOINED_ROWS, JOINED_RECORDS = 8, 64
"""So many records of up to so many events are counted with one call. None of their events is left
out, because together they are at most COUNTED_EVENTS.
"""


def item_bytes(means: bool) -> int:
    """Bytes of the counts of an item. `means` as in `Popularity`."""
    return 32 if means else 16


COUNTED_EVENTS = 512
"""Minimum number of events that are counted per record. Fewer than twice as many are counted."""
DEFERRED_ROWS_MAX = 1 << 15
"""Maximum number of deferred rows before they are counted."""
_RENORMALISE_AT = 1e200
_NO_VALUES = np.empty(0, np.float32)


@compiled(nogil=False, error_model="python")
def _count_kernel(rows: Any, values: Any, table: Any, stride: Any, weight: Any, growth: Any) -> Any:
    """Adds events to the plain and decayed counts float64[items, 2], each with the weight `stride`.

    Without `values`, each value is 1.
    """
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
    """Adds events to the sums of ratings.

    `table` is float64[items, 4]: sums of values (plain, decayed) and of weights (plain, decayed).
    `totals` is float64[4] with the same columns.
    """
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


def joined(records: Iterable[Counted]) -> Iterator[Counted]:
    """The same events in the same order, those of neighbours with few events together."""
    near: list[Counted] = []
    for rows, values in records:
        is_small = rows.size <= JOINED_ROWS
        fits = is_small and len(near) < JOINED_RECORDS
        if near and not (fits and (values is None) == (near[0][1] is None)):
            yield _join(near)
            near = []
        if is_small:
            near.append((rows, values))
        else:
            yield rows, values
    if near:
        yield _join(near)


def _join(records: list[Counted]) -> Counted:
    if len(records) == 1:
        return records[0]
    values = [values for _, values in records if values is not None]
    return np.concatenate([rows for rows, _ in records]), np.concatenate(values) if values else None


class Popularity:
    """Popularity by item row. One thread writes and reads it."""

    def __init__(self, means: bool, half_life_events: float) -> None:
        """Starts with no events.

        Args:
            means: keep mean values (for ratings), not counts of positive events.
            half_life_events: half-life of the decayed counts, in events.
        """
        self._means = means
        self._growth = 2.0 ** (1.0 / half_life_events)
        self._weight = 1.0
        self._table = np.zeros((1024, item_bytes(means) // 8))
        self._totals = np.zeros(4)
        self._deferred: list[tuple[np.ndarray, np.ndarray | None, int]] = []
        self._deferred_rows = 0
        self.events = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the counts."""
        return self._table.nbytes

    def count(self, rows: np.ndarray, values: np.ndarray | None) -> None:
        """Adds events in order.

        Counting is deferred until `settle`, since many small updates cost more than one large one:
        other data fills the caches between them.

        Args:
            rows: item rows, uint32[n].
            values: float32[n]; None means that all are 1.
        """
        stride = max(1, rows.size // COUNTED_EVENTS)
        self._deferred.append(
            (rows[::stride].copy(), None if values is None else values[::stride].copy(), stride)
        )
        self._deferred_rows += rows.size // stride
        self.events += rows.size
        if self._deferred_rows >= DEFERRED_ROWS_MAX:
            self.settle()

    def settle(self, item_count: int = 0) -> None:
        """Counts the deferred events and makes room for item rows below `item_count`.

        Call it before `scores` and `ranks`.
        """
        for rows, _, _ in self._deferred:
            item_count = max(item_count, int(rows.max(initial=0)) + 1)
        if len(self._table) < item_count:
            grown = np.zeros((max(item_count, 2 * len(self._table)), self._table.shape[1]))
            grown[: len(self._table)] = self._table
            self._table = grown
        for deferred in self._deferred:
            self._count(*deferred)
        self._deferred, self._deferred_rows = [], 0

    def keep(self, rows: np.ndarray) -> None:
        """Keeps the item rows uint32[n], which are the first ones from now on."""
        self.settle(int(rows.max(initial=0)) + 1)
        self._table = self._table[rows]

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
        """Popularity scores of item rows, float64 in the shape of `rows`. Call `settle` first.

        A score is the share of all events, so that scores at different times are comparable, or the
        mean value for ratings. `which` is PLAIN or DECAYED.
        """
        table = self._table[rows]
        if not self._means:
            return np.asarray(table[..., which] / (self._weight if which == DECAYED else max(1, self.events)))
        total, events = self._totals[which], self._totals[which + 2]
        overall = total / events if events else 0.0
        prior = self._weight if which == DECAYED else 1.0
        return np.asarray((table[..., which] + prior * overall) / (table[..., which + 2] + prior))

    def ranks(self, which: int, rows: np.ndarray, item_count: int) -> np.ndarray:
        """Ranks of item rows [n] by popularity among the first `item_count` items, int64[n].

        See `metrics.ranks`.
        """
        counts = self._table[:item_count, which]
        own = self._table[rows, which]
        higher = [np.count_nonzero(counts > count) for count in own]
        others = np.array([np.count_nonzero(counts == count) for count in own], np.int64) - (
            rows < item_count
        )
        return np.array(higher, np.int64) + others // 2
