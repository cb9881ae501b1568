"""Deltas: what someone else learned is added to the rows of one side.

`livefactor_kernels.tables.deltas` has the effect on the rows. New ids get rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire.columns import FACTOR_DELTAS
from livefactor.wire.deltas import DeltaColumns, decode_deltas, encode_deltas
from livefactor.wire.limits import DELTA_NUMBERS_MAX
from livefactor_kernels.spec.model import ModelSpec, Rule
from livefactor_kernels.tables import USERS
from livefactor_kernels.tables.deltas import Deltas
from livefactor_server.changes.change import (
    KeyedChange,
    Record,
    ReplayError,
    keys_of_side,
    require_finite,
    require_once,
    require_rows,
)
from livefactor_server.changes.labels import SIDES
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid


def deltas_misfit(spec: ModelSpec, columns: DeltaColumns) -> str:
    """Why a model with `spec` cannot take these deltas, "" if it can."""
    if spec.privacy.epsilon and (columns.deltas.any() or np.any(columns.biases)):
        # Zeros give items their rows.
        return "a model with privacy takes zeros alone; send contributions with Contribute"
    return merge_misfit(spec, columns)


def merge_misfit(spec: ModelSpec, columns: DeltaColumns) -> str:
    """As `deltas_misfit`, for deltas that have no need of privacy."""
    if spec.rule == Rule.SOLVE:
        return "a model of rule solve takes none, because it solves rows from their events"
    if not spec.merge.learning_rate:
        return "this model takes none (merge.learning_rate is 0)"
    if columns.deltas.shape[1] != spec.k:
        return f"expected dimension {spec.k}, which is k of the model, got {columns.deltas.shape[1]}"
    if columns.biases is not None and not spec.optimizer.bias_learning_rate:
        return "biases of this model stay 0 (optimizer.bias_learning_rate)"
    return weight_misfit(spec, columns.weight)


def weight_misfit(spec: ModelSpec, weight: float) -> str:
    """Why a model with `spec` cannot take a contribution of this weight, "" if it can."""
    most = spec.limits.weight_max
    if not 0.0 <= weight <= np.float32(most):
        return f"weight: expected above 0 and at most {most:g}, got {weight:g}"
    return ""


@dataclass(slots=True)
class DeltasChange(KeyedChange):
    """One contribution to one side.

    Attributes:
        columns: the decoded message.
    """

    columns: DeltaColumns

    kind: ClassVar[Kind] = Kind.FACTOR_DELTAS
    field: ClassVar[str] = FACTOR_DELTAS

    @property
    def body(self) -> bytes:  # type: ignore[override]
        """The bytes in the log."""
        return self.columns.body

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.columns)

    @property
    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of users and of items, of which one side has none."""
        return keys_of_side(SIDES[self.columns.side], self.columns.ids)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[DeltasChange, Rejects]:
        """Decodes a message. It rejects no row.

        Raises:
            ColumnError: the message is malformed.
            Refused: it has no rows or too many, an unknown side, a wrong dimension or weight, an id
                twice, or a number that is not finite; or the model takes no deltas.
        """
        columns = decode_deltas(body)
        if columns.side not in SIDES:
            raise invalid(f"side: expected SIDE_USER or SIDE_ITEM, got {columns.side}")
        if reason := deltas_misfit(spec, columns):
            raise invalid(f"deltas: {reason}")
        require_rows(len(columns), min(rows_max, DELTA_NUMBERS_MAX // spec.k))
        for name, numbers in (("deltas", columns.deltas), ("biases", columns.biases)):
            if numbers is not None:
                require_finite(name, numbers.reshape(len(columns), -1))
        require_once(columns.ids)
        return cls(columns), NO_REJECTS

    @classmethod
    def from_log(cls, body: bytes) -> DeltasChange:
        """Decodes a logged body."""
        return cls(decode_deltas(body))

    def without_rows(self, rows: np.ndarray | list[int]) -> DeltasChange:
        """The deltas without those with these numbers."""
        columns = self.columns
        biases = None if columns.biases is None else np.delete(columns.biases, rows)
        parts = np.delete(columns.ids, rows), np.delete(columns.deltas, rows, axis=0), biases
        return self.from_log(encode_deltas(columns.side, *parts, columns.weight))

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Adds the deltas in order.

        Raises:
            ReplayError: the spec cannot take them.
        """
        for record in records:
            change, placement = record.change, record.placement
            assert isinstance(change, DeltasChange) and placement is not None
            columns, revision = change.columns, record.header.revision
            if reason := deltas_misfit(state.spec, columns):
                raise ReplayError(f"deltas: {reason}")
            side, counts = SIDES[columns.side], (placement.user_count, placement.item_count)
            if not change.rows:
                # All of its rows were rejected.
                state.backend.advance(revision, *counts)
                continue
            rows = placement.user_rows if side == USERS else placement.item_rows
            weight = columns.weight or 1.0
            state.backend.add(Deltas(side, rows, columns.deltas, columns.biases, weight, revision, *counts))

    def describe(self) -> str:
        """The side, the dimension and the weight."""
        columns = self.columns
        side = "users" if columns.side == updates_pb2.SIDE_USER else "items"
        return f"deltas of {side}, dimension {columns.deltas.shape[1]}, weight {columns.weight or 1.0:g}"
