"""Release: a noisy sum of what users contributed is added to the rows of items.

The record is both the charge to the budget and what is released, so neither is in the log without
the other. The noise is in the sum, and nothing else tells it. The deltas are applied like those of
a contribution (`livefactor_kernels.tables.deltas`). An item without a row is left out.

The body is RELEASE (the window and the number of the release), and then the bytes of a FactorDeltas
message of items.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire.deltas import DeltaColumns, decode_deltas, encode_deltas
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, NO_ROW
from livefactor_kernels.tables.deltas import Deltas
from livefactor_server.changes.change import Change, Record, ReplayError
from livefactor_server.changes.deltas import merge_misfit
from livefactor_server.log.store import Kind
from livefactor_server.model.ledger import BudgetSpent
from livefactor_server.model.state import ModelState

RELEASE = struct.Struct("<QQ")


def release_misfit(spec: ModelSpec, columns: DeltaColumns) -> str:
    """Why a model with `spec` cannot take a release or a contribution to it, "" if it can."""
    return merge_misfit(spec, columns) if spec.privacy.epsilon else "this model has no privacy"


@dataclass(slots=True)
class ReleaseChange(Change):
    """One release.

    Attributes:
        window: number of the window that it is charged to.
        number: number of the release, from 1 on.
        columns: the noisy sum.
    """

    window: int
    number: int
    columns: DeltaColumns
    body: bytes

    kind: ClassVar[Kind] = Kind.RELEASE

    @property
    def rows(self) -> int:
        """Number of items."""
        return len(self.columns)

    @classmethod
    def of(
        cls, window: int, number: int, ids: np.ndarray, deltas: np.ndarray, biases: np.ndarray | None
    ) -> ReleaseChange:
        """The change of a noisy sum: ids uint64[n], deltas float32[n, k], biases float32[n]."""
        sums = encode_deltas(updates_pb2.SIDE_ITEM, ids, deltas, biases, 1.0)
        return cls.from_log(RELEASE.pack(window, number) + sums)

    @classmethod
    def from_log(cls, body: bytes) -> ReleaseChange:
        """Decodes a logged body."""
        if len(body) < RELEASE.size:
            raise ValueError(f"a release has at least {RELEASE.size} bytes, got {len(body)}")
        window, number = RELEASE.unpack_from(body)
        return cls(window, number, decode_deltas(bytes(body[RELEASE.size :])), body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Charges the releases and adds their sums, in order.

        Raises:
            ReplayError: a release is above the budget, or the spec cannot take it.
        """
        for record in records:
            change, backend = record.change, state.backend
            assert isinstance(change, ReleaseChange)
            columns = change.columns
            if reason := release_misfit(state.spec, columns):
                raise ReplayError(f"release: {reason}")
            try:
                state.ledger.charge(change.window, change.number)
            except BudgetSpent as error:
                raise ReplayError(f"revision {record.header.revision}: {error}") from None
            rows = backend.items.find(columns.ids, backend.published[ITEMS])
            is_there = rows != NO_ROW
            biases = None if columns.biases is None else columns.biases[is_there]
            if is_there.any():
                backend.add(
                    Deltas(
                        ITEMS, rows[is_there], columns.deltas[is_there], biases, 1.0,
                        record.header.revision, *backend.published,
                    )
                )  # fmt: skip
            else:
                backend.advance(record.header.revision)

    def describe(self) -> str:
        """The number, the window and the dimension."""
        return f"release {self.number} of window {self.window}, dimension {self.columns.deltas.shape[1]}"
