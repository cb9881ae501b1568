"""The work of one interactions record, with rows in place of keys: the argument of
`Backend.apply`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

from livefactor_kernels.numbers.random import NEGATIVE_DOMAIN, domain_key, draw_batch
from livefactor_kernels.spec.model import ModelSpec

_ONE = np.float32(1.0)


@dataclass(frozen=True, slots=True)
class Update:
    """One interactions record, with rows in place of keys.

    Attributes:
        revision: revision of the record.
        user_rows, item_rows: uint32[n], C-contiguous.
        values, weights: float32[n]; None means 1 for all events.
        user_count, item_count: sizes of the tables after this record. Negatives are drawn from
            `item_count` rows.
        times: int64[n], microseconds; None means 0 (unknown) for all events. Histories use it.
        replayed: number of events at the end that are replayed (`replay.Reservoir.extend`).
            Histories and counts do not record them.
    """

    revision: int
    user_rows: np.ndarray
    item_rows: np.ndarray
    values: np.ndarray | None
    weights: np.ndarray | None
    user_count: int
    item_count: int
    times: np.ndarray | None = None
    replayed: int = 0

    @property
    def fresh(self) -> int:
        """Number of events that are learned for the first time. They are before the replayed
        ones.
        """
        return self.user_rows.size - self.replayed

    def check(self) -> Update:
        """Returns the update if its columns have the documented dtypes and shapes.

        It does not check the range of the rows.

        Raises:
            ValueError: a column has another dtype or length, or is not contiguous.
        """
        n = self.user_rows.shape
        for name, dtype in (
            ("user_rows", "uint32"),
            ("item_rows", "uint32"),
            ("values", "float32"),
            ("weights", "float32"),
            ("times", "int64"),
        ):
            column = getattr(self, name)
            if column is None and name in ("values", "weights", "times"):
                continue
            if (
                column.dtype != dtype
                or column.shape != n
                or column.ndim != 1
                or not column.flags.c_contiguous
            ):
                raise ValueError(
                    f"{name}: expected contiguous {dtype}{list(n)}, got {column.dtype}{list(column.shape)}"
                )
        return self


def joined(updates: Sequence[Update]) -> Update:
    """One update with the events of all updates, in order. Revision and counts are the last one's.

    With B = 1 the kernel changes the tables as the single updates would. The exceptions are the
    draws of negatives and of rounding, which need the revision of each record.
    """
    if len(updates) == 1:
        return updates[0]
    last = updates[-1]
    return Update(
        revision=last.revision,
        user_rows=np.concatenate([update.user_rows for update in updates]),
        item_rows=np.concatenate([update.item_rows for update in updates]),
        values=_joined_column([update.values for update in updates], updates),
        weights=_joined_column([update.weights for update in updates], updates),
        user_count=last.user_count,
        item_count=last.item_count,
        times=_joined_column([update.times for update in updates], updates, np.int64(0)),
    )


def _joined_column(
    columns: list[np.ndarray | None], updates: Sequence[Update], default: np.generic = _ONE
) -> np.ndarray | None:
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [
            np.full(update.user_rows.size, default) if column is None else column
            for column, update in zip(columns, updates, strict=True)
        ]
    )


class UpdateRun(Sequence[Update]):
    """The updates of many consecutive records, whose events are joined already.

    An element is made when it is read. A slice is a run, too.

    Attributes:
        joined: the events of all records, as `joined` returns them.
        revision: of the first record.
        ends: number of events up to and with each record, int64[m].
        user_counts, item_counts: sizes of the tables after each record, int64[m].
    """

    def __init__(
        self,
        joined: Update,
        revision: int,
        ends: np.ndarray,
        user_counts: np.ndarray,
        item_counts: np.ndarray,
    ) -> None:
        self.joined, self.revision, self.ends = joined, revision, ends
        self.user_counts, self.item_counts = user_counts, item_counts

    @classmethod
    def of(cls, updates: Sequence[Update]) -> UpdateRun:
        """The run of one or more consecutive records."""
        if isinstance(updates, UpdateRun):
            return updates
        return cls(
            joined(updates),
            updates[0].revision,
            np.cumsum([update.user_rows.size for update in updates]),
            np.array([update.user_count for update in updates], np.int64),
            np.array([update.item_count for update in updates], np.int64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Update: ...

    @overload
    def __getitem__(self, index: slice) -> UpdateRun: ...

    def __getitem__(self, index: int | slice) -> Update | UpdateRun:
        if isinstance(index, slice):
            first, last, _ = index.indices(len(self))
            counts = self.user_counts[first:last], self.item_counts[first:last]
            ends = self.ends[first:last] - self._start(first)
            return UpdateRun(self._part(first, last), self.revision + first, ends, *counts)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._part(index, index + 1)

    def _start(self, record: int) -> int:
        return int(self.ends[record - 1]) if record else 0

    def _part(self, first: int, last: int) -> Update:
        """The events of the records [first, last)."""
        whole, span = self.joined, slice(self._start(first), self._start(last))
        values, weights, times = (
            None if column is None else column[span] for column in (whole.values, whole.weights, whole.times)
        )
        return Update(
            self.revision + last - 1, whole.user_rows[span], whole.item_rows[span], values, weights,
            int(self.user_counts[last - 1]), int(self.item_counts[last - 1]), times, whole.replayed,
        )  # fmt: skip


def writable(column: np.ndarray) -> np.ndarray:
    """The column, or a writable and aligned copy.

    Views of message bytes are neither, and Numba would compile another kernel for them.
    """
    return column if column.flags.carray else np.require(column, requirements=("C", "A", "W"))


class Rates(NamedTuple):
    """The numbers of a spec, each rounded once to float32."""

    rate: np.float32
    bias_rate: np.float32
    l2: np.float32
    bias_l2: np.float32
    eps: np.float32
    error_max: np.float32
    factor_max: np.float32
    g_max: np.float32
    hot_events: np.float32

    @staticmethod
    def of(spec: ModelSpec) -> Rates:
        """The rates of a spec."""
        optimizer, limits = spec.optimizer, spec.limits
        numbers = (
            optimizer.learning_rate,
            optimizer.bias_learning_rate,
            spec.l2,
            spec.bias_l2,
            optimizer.eps,
            limits.error_max,
            limits.factor_max,
            limits.g_max,
            spec.hot_row_events,
        )
        return Rates(*(np.float32(number) for number in numbers))


def draw_negatives(spec: ModelSpec, update: Update, out: np.ndarray | None = None) -> np.ndarray:
    """Draws the negatives of every event of a record: item rows uint32[n, negatives].

    With fewer than two items the result is uint32[n, 0]. Events without negatives (logistic loss,
    value 0) get draws, too, which have no use.

    Args:
        spec: the spec of the model.
        update: the record.
        out: memory for the result, uint32[n * negatives or more]; None allocates it.
    """
    n = update.item_rows.size
    width = spec.negatives if update.item_count > 1 else 0
    flat = np.empty(n * width, np.uint32) if out is None else out[: n * width]
    negatives = flat.reshape(n, width)
    if negatives.size:
        key = domain_key(spec.seed, NEGATIVE_DOMAIN)
        draw_batch(key, np.uint64(update.revision), update.item_rows, np.uint64(update.item_count), negatives)
    return negatives
