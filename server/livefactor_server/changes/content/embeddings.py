"""Embeddings: vectors of items or users.

A vector replaces the one before it. A vector of zeros removes it. An id that is new gets a row, so
that it is scored before its first event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.limits import EMBEDDING_NUMBERS_MAX, SHA256_BYTES
from livefactor_kernels.solve.prior import dimension_of
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_server.changes.change import KeyedChange, Record, ReplayError, keys_of_side, require_rows
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid

SIDES: dict[int, int] = {updates_pb2.SIDE_USER: USERS, updates_pb2.SIDE_ITEM: ITEMS}


@dataclass(slots=True)
class EmbeddingsChange(KeyedChange):
    """Vectors of items or users.

    Attributes:
        side: `USERS` or `ITEMS`.
        ids: uint64[n].
        vectors: float16[n, dimension].
        encoder_hash: the SHA-256 hash of what made the vectors, or empty.
    """

    side: int
    ids: np.ndarray
    vectors: np.ndarray
    body: bytes
    encoder_hash: bytes = b""

    kind: ClassVar[Kind] = Kind.EMBEDDINGS
    field: ClassVar[str] = wire.EMBEDDINGS
    # The sums of a vector of 384 numbers take as long as some 64 events.
    work_of_row: ClassVar[int] = 64

    @property
    def rows(self) -> int:
        """Number of ids."""
        return len(self.ids)

    @property
    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the side, and none of the other one."""
        return keys_of_side(self.side, self.ids)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[EmbeddingsChange, Rejects]:
        """Decodes a message. It rejects no row.

        Raises:
            ColumnError: the message is malformed.
            Refused: it has no rows or too many, a wrong side or dimension, or a hash of a wrong
                length, or a number that float16 cannot hold.
        """
        columns = wire.decode_embeddings(body)
        if columns.side not in SIDES:
            raise invalid(f"side: expected SIDE_USER or SIDE_ITEM, got {columns.side}")
        dimension = dimension_of(spec, SIDES[columns.side])
        if not dimension:
            raise invalid(
                "embeddings: this model cannot take vectors, which need rule solve with implicit loss "
                "(preset auto or clicks)"
            )
        require_rows(len(columns), min(rows_max, EMBEDDING_NUMBERS_MAX // dimension))
        if columns.vectors.shape[1] != dimension:
            raise invalid(f"dimension: expected {dimension}, got {columns.vectors.shape[1]}")
        if len(columns.encoder_hash) not in (0, SHA256_BYTES):
            raise invalid(
                f"encoder_hash: expected {SHA256_BYTES} bytes or none, got {len(columns.encoder_hash)}"
            )
        change = cls._of(columns)
        bad = np.flatnonzero(~np.isfinite(change.vectors).all(axis=1))
        if bad.size:
            more = f" and {bad.size - 1} further rows" if bad.size > 1 else ""
            raise invalid(f"vectors: row {bad[0]}{more}: a number is NaN, infinite or beyond float16 (65504)")
        return change, NO_REJECTS

    @classmethod
    def from_log(cls, body: bytes) -> EmbeddingsChange:
        """Decodes a logged body."""
        return cls._of(wire.decode_embeddings(body))

    @classmethod
    def _of(cls, columns: wire.EmbeddingColumns) -> EmbeddingsChange:
        with np.errstate(over="ignore"):
            vectors = columns.vectors.astype(np.float16)
        return cls(SIDES[columns.side], columns.ids, vectors, columns.body, columns.encoder_hash)

    def without_rows(self, rows: np.ndarray | list[int]) -> EmbeddingsChange:
        """The vectors without those with these numbers."""
        ids, vectors = np.delete(self.ids, rows), np.delete(self.vectors, rows, axis=0)
        side = updates_pb2.SIDE_USER if self.side == USERS else updates_pb2.SIDE_ITEM
        parts = side, ids, vectors, self.encoder_hash
        return self.from_log(wire.encode_embeddings(*parts))

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Sets the vectors in order.

        Raises:
            ReplayError: the vectors have another dimension than the spec.
        """
        for record in records:
            change, placement = record.change, record.placement
            assert isinstance(change, EmbeddingsChange) and placement is not None
            dimension = dimension_of(state.spec, change.side)
            if change.vectors.shape[1] != dimension:
                raise ReplayError(
                    f"embeddings: expected dimension {dimension}, got {change.vectors.shape[1]}"
                )
            rows, count = placement.item_rows, placement.item_count
            if change.side == USERS:
                rows, count = placement.user_rows, placement.user_count
            state.backend.set_embeddings(change.side, rows, change.vectors, record.header.revision, count)

    def describe(self) -> str:
        """The dimension, and the hash of what made the vectors."""
        made = f", by {self.encoder_hash.hex()}" if self.encoder_hash else ""
        whose = ("users", "items")[self.side]
        return f"embeddings of {whose}, dimension {self.vectors.shape[1]}{made}"
