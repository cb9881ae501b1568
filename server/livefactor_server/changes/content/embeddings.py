"""Embeddings: vectors of items.

A vector replaces the item's vector before it. A vector of zeros removes it. An item that is new
gets a row, so that it is scored before its first event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.limits import EMBEDDING_NUMBERS_MAX, SHA256_BYTES
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS
from livefactor_server.changes.change import KeyedChange, Record, ReplayError, keys_of_side, require_rows
from livefactor_server.changes.rejects import NO_REJECTS, Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState
from livefactor_server.statuses import invalid


@dataclass(slots=True)
class EmbeddingsChange(KeyedChange):
    """Vectors of items.

    Attributes:
        ids: uint64[n].
        vectors: float16[n, dimension].
        encoder_hash: the SHA-256 hash of what made the vectors, or empty.
    """

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
        """Number of items."""
        return len(self.ids)

    @property
    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """No user ids, and the item ids."""
        return keys_of_side(ITEMS, self.ids)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[EmbeddingsChange, Rejects]:
        """Decodes a message. It rejects no row.

        Raises:
            ColumnError: the message is malformed.
            Refused: it has no rows or too many, a wrong side or dimension, or a hash of a wrong
                length, or a number that float16 cannot hold.
        """
        columns, dimension = wire.decode_embeddings(body), spec.embeddings.dimension
        if not dimension:
            raise invalid(
                "embeddings: this model cannot take vectors, which need rule solve with implicit loss "
                "(preset auto or clicks)"
            )
        if columns.side != updates_pb2.SIDE_ITEM:
            raise invalid(f"side: expected SIDE_ITEM, got {columns.side}")
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
        return cls(columns.ids, vectors, columns.body, columns.encoder_hash)

    def without_rows(self, rows: np.ndarray | list[int]) -> EmbeddingsChange:
        """The vectors without those with these numbers."""
        ids, vectors = np.delete(self.ids, rows), np.delete(self.vectors, rows, axis=0)
        parts = updates_pb2.SIDE_ITEM, ids, vectors, self.encoder_hash
        return self.from_log(wire.encode_embeddings(*parts))

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Sets the vectors in order.

        Raises:
            ReplayError: the vectors have another dimension than the spec.
        """
        dimension = state.spec.embeddings.dimension
        for record in records:
            change, placement = record.change, record.placement
            assert isinstance(change, EmbeddingsChange) and placement is not None
            if change.vectors.shape[1] != dimension:
                raise ReplayError(
                    f"embeddings: expected dimension {dimension}, got {change.vectors.shape[1]}"
                )
            rows, revision = placement.item_rows, record.header.revision
            state.backend.set_embeddings(rows, change.vectors, revision, placement.item_count)

    def describe(self) -> str:
        """The dimension, and the hash of what made the vectors."""
        made = f", by {self.encoder_hash.hex()}" if self.encoder_hash else ""
        return f"embeddings of items, dimension {self.vectors.shape[1]}{made}"
