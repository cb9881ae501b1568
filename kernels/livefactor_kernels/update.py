"""What one interactions record asks of a model, in rows: the argument of every backend's `apply`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.random import NEGATIVE_DOMAIN, domain_key, draw_batch
from livefactor_kernels.spec.model import ModelSpec

_ONE = np.float32(1.0)


@dataclass(frozen=True, slots=True)
class Update:
    """One interactions record, its keys mapped to rows.

    revision: the record's. user_rows, item_rows: uint32[n], C-contiguous. values, weights: float32[n], or
    None for all 1. user_count, item_count: rows of the tables after this record's allocation; negatives are
    drawn from `item_count` rows. times: int64[n], microseconds, or None for all 0 (unknown); histories look at it.
    replayed: how many events at the end are learned again (`replay.Reservoir.extended`): nothing remembers or counts them.
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
        """Events that are learned for the first time: they stand before those that are replayed."""
        return self.user_rows.size - self.replayed

    def check(self) -> Update:
        """Return self; ValueError if a column has another dtype or length than promised (rows are not
        range-checked)."""
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
    """One update with the events of all, in order; revision and counts are the last one's.

    With B = 1 its kernel does to the tables what the updates would one after the other: only the draws of
    negatives and of rounding, which need each record's own revision, are lost.
    """
    if len(updates) == 1:
        return updates[0]
    last = updates[-1]
    return Update(
        last.revision,
        np.concatenate([update.user_rows for update in updates]),
        np.concatenate([update.item_rows for update in updates]),
        _joined_column([update.values for update in updates], updates),
        _joined_column([update.weights for update in updates], updates),
        last.user_count,
        last.item_count,
        _joined_column([update.times for update in updates], updates, np.int64(0)),
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


def writable(column: np.ndarray) -> np.ndarray:
    """The column, or a copy that is writable and aligned: Numba compiles a kernel anew for arrays that are not, as
    views of wire bytes are."""
    return column if column.flags.carray else np.require(column, requirements=("C", "A", "W"))


class Rates(NamedTuple):
    """The spec's numbers as the arithmetic uses them: each rounded once to float32."""

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
        """Rates of a spec."""
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
    """Negatives of every event of a record: uint32[n, negatives] item rows; uint32[n, 0] if fewer than two
    items are alive.

    out: uint32[at least n * negatives] to draw into. Rows of events that take no negatives (logistic, value
    0) are drawn too, unused.
    """
    n = update.item_rows.size
    width = spec.negatives if update.item_count > 1 else 0
    flat = np.empty(n * width, np.uint32) if out is None else out[: n * width]
    negatives = flat.reshape(n, width)
    if negatives.size:
        key = domain_key(spec.seed, NEGATIVE_DOMAIN)
        draw_batch(key, np.uint64(update.revision), update.item_rows, np.uint64(update.item_count), negatives)
    return negatives
