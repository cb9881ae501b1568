"""Factors: rows of users or items begin with the factors of another model.

`livefactor_kernels.tables.start` has the effect on the rows. New ids get rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire.columns import FACTORS
from livefactor.wire.factors import FactorColumns, decode_factors, encode_factors
from livefactor.wire.limits import EMBEDDING_NUMBERS_MAX
from livefactor_kernels.spec.model import USERS, Loss, ModelSpec, Rule
from livefactor_kernels.tables.start import Start
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


def misfit(spec: ModelSpec, dimension: int) -> str:
    """Why a model with `spec` cannot take factors of a dimension, "" if it can."""
    if spec.loss == Loss.SQUARED:
        return "a model with squared loss takes none, because its scores contain a running mean"
    if spec.rule == Rule.SOLVE and not spec.solve.start_events:
        return "rule solve needs solve.start_events above 0"
    if not 1 <= dimension <= spec.k:
        return f"expected a dimension of 1..{spec.k}, which is k of the model, got {dimension}"
    return ""


@dataclass(slots=True)
class FactorsChange(KeyedChange):
    """Factors of one side.

    Attributes:
        columns: the decoded message.
    """

    columns: FactorColumns

    kind: ClassVar[Kind] = Kind.FACTORS
    field: ClassVar[str] = FACTORS
    # Rule solve adds a row to its Gram matrix, which takes as long as some 16 events.
    work_of_row: ClassVar[int] = 16

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
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[FactorsChange, Rejects]:
        """Decodes a message. It rejects no row.

        Raises:
            ColumnError: the message is malformed.
            Refused: it has no rows or too many, an unknown side, a wrong dimension, an id twice, or
                a number that is not finite; or the model takes no factors.
        """
        columns = decode_factors(body)
        dimension = columns.factors.shape[1]
        if columns.side not in SIDES:
            raise invalid(f"side: expected SIDE_USER or SIDE_ITEM, got {columns.side}")
        if reason := misfit(spec, dimension):
            raise invalid(f"factors: {reason}")
        require_rows(len(columns), min(rows_max, EMBEDDING_NUMBERS_MAX // dimension))
        for name, numbers in (("factors", columns.factors), ("biases", columns.biases)):
            if numbers is not None:
                require_finite(name, numbers.reshape(len(columns), -1))
        require_once(columns.ids)
        return cls(columns), NO_REJECTS

    @classmethod
    def from_log(cls, body: bytes) -> FactorsChange:
        """Decodes a logged body."""
        return cls(decode_factors(body))

    def without_rows(self, rows: np.ndarray | list[int]) -> FactorsChange:
        """The factors without those with these numbers."""
        columns = self.columns
        biases = None if columns.biases is None else np.delete(columns.biases, rows)
        parts = np.delete(columns.ids, rows), np.delete(columns.factors, rows, axis=0), biases
        return self.from_log(encode_factors(columns.side, *parts))

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Sets the factors in order. A spec that cannot take them passes them: new ids get rows.

        Raises:
            ReplayError: the backend cannot take them.
        """
        for record in records:
            change, placement = record.change, record.placement
            assert isinstance(change, FactorsChange) and placement is not None
            columns, revision = change.columns, record.header.revision
            counts = placement.user_count, placement.item_count
            if misfit(state.spec, columns.factors.shape[1]):
                state.backend.advance(revision, *counts)
                continue
            if state.backend_name == "cuda":
                raise ReplayError("factors: backend cuda lacks this part (docs/gpu.md)")
            side = SIDES[columns.side]
            rows = placement.user_rows if side == USERS else placement.item_rows
            state.backend.begin(Start(side, rows, columns.factors, columns.biases, revision, *counts))

    def describe(self) -> str:
        """The side and the dimension."""
        side = "users" if self.columns.side == updates_pb2.SIDE_USER else "items"
        return f"factors of {side}, dimension {self.columns.factors.shape[1]}"
