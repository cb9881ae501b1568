"""Map sums: sums over users elsewhere are added to those of the map of user vectors.

`livefactor_kernels.solve.prior.sums` has the effect on the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.wire.columns import MAP_SUMS
from livefactor.wire.limits import MAP_NUMBERS_MAX, over
from livefactor.wire.map_sums import MapSumColumns, decode_map_sums
from livefactor_kernels.solve.prior.sums import MapSums
from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes.change import Record, ReplayError, WireChange
from livefactor_server.changes.deltas import weight_misfit
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid

NUMBER_MAX = 1e30
"""The largest magnitude of a number."""

_ROUNDING = 1e-9
"""How far below 0 rounding may move an eigenvalue, in multiples of the sum of all of them."""


def map_sums_misfit(spec: ModelSpec, columns: MapSumColumns) -> str:
    """Why a model with `spec` cannot take these sums, "" if it can."""
    d = spec.embeddings.user_dimension
    if not d:
        return "this model has no vectors of users (embeddings.user_dimension is 0)"
    if not spec.merge.learning_rate:
        return "this model takes none (merge.learning_rate is 0)"
    if columns.dimension != d:
        return f"expected dimension {d}, which is embeddings.user_dimension, got {columns.dimension}"
    if columns.rows.shape[1] != spec.k:
        return f"rows: expected {spec.k} numbers a row, which is k of the model, got {columns.rows.shape[1]}"
    return weight_misfit(spec, columns.weight)


@dataclass(slots=True)
class MapSumsChange(WireChange):
    """One contribution to the map of users.

    Attributes:
        columns: the decoded message.
    """

    columns: MapSumColumns

    kind: ClassVar[Kind] = Kind.MAP_SUMS
    field: ClassVar[str] = MAP_SUMS
    # The map is learned again, in a time that grows with the cube of the rows.
    work_of_row: ClassVar[int] = 64

    @property
    def body(self) -> bytes:  # type: ignore[override]
        """The bytes in the log."""
        return self.columns.body

    @property
    def rows(self) -> int:
        """Number of rows of the map."""
        return len(self.columns)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[MapSumsChange, Rejects]:
        """Decodes a message. It rejects no row.

        Raises:
            ColumnError: the message is malformed.
            Refused: the model takes no such sums, a number is not finite or too large, or no
                vectors have the sum A.
        """
        columns = decode_map_sums(body)
        if reason := map_sums_misfit(spec, columns):
            raise invalid(f"map sums: {reason}")
        if (count := columns.gram.size + columns.rows.size) > MAP_NUMBERS_MAX:
            raise invalid(over("map sums", MAP_NUMBERS_MAX, count, "numbers"))
        for name, numbers in (("gram", columns.gram), ("rows", columns.rows.ravel())):
            bad = np.flatnonzero(~(np.abs(numbers) <= NUMBER_MAX))
            if bad.size:
                raise invalid(f"{name}: number {bad[0]} is NaN, infinite or beyond {NUMBER_MAX:g}")
        if not _is_sum_of_squares(columns.square):
            raise invalid("gram: no vectors have this sum, because it has an eigenvalue below 0")
        return cls(columns), NO_REJECTS

    @classmethod
    def from_log(cls, body: bytes) -> MapSumsChange:
        """Decodes a logged body."""
        return cls(decode_map_sums(body))

    def without_rows(self, rows: np.ndarray | list[int]) -> MapSumsChange:
        """The same: no row is ever rejected."""
        return self

    def rows_outside(self, spec: ModelSpec) -> list[tuple[int, int]]:
        """See `WireChange.rows_outside`. It rejects no row."""
        if reason := map_sums_misfit(spec, self.columns):
            raise invalid(f"map sums: {reason}")
        return []

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Adds the sums in order.

        Raises:
            ReplayError: the spec cannot take them.
        """
        for record in records:
            change = record.change
            assert isinstance(change, MapSumsChange)
            columns = change.columns
            if reason := map_sums_misfit(state.spec, columns):
                raise ReplayError(f"map sums: {reason}")
            weight = columns.weight or 1.0
            state.backend.add_map_sums(MapSums(columns.square, columns.rows, weight, record.header.revision))

    def describe(self) -> str:
        """The number of users, the dimension and the weight."""
        columns = self.columns
        users = columns.gram[-1]
        return f"map sums of {users:g} users, dimension {columns.dimension}, weight {columns.weight or 1.0:g}"


def _is_sum_of_squares(square: np.ndarray) -> bool:
    trace = float(np.trace(square))
    if not trace > 0.0:
        return trace == 0.0 and not square.any()
    try:
        np.linalg.cholesky(square / trace + _ROUNDING * np.eye(len(square)))
    except np.linalg.LinAlgError:
        return False
    return True
