"""What can be asked of a model, decoded: the values that travel from the wire to the log and on to the state.

A change knows its record kind, its row count and the bytes that the log keeps (the wire bytes as they came, if no row was rejected).
The reject summary of a batch is part of its record's payload, so that a replay answers a retry as the first time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor.wire.columns import Columns
from livefactor_server.log.store import Kind

REJECTS_LISTED_MAX = 100
"""Rejected rows that are listed one by one; all are counted."""

SIDES: dict[int, int] = {updates_pb2.SIDE_USER: 0, updates_pb2.SIDE_ITEM: 1}
"""Contract side -> table number."""


@dataclass(slots=True)
class InteractionsChange:
    """Accepted events. `columns` are NumPy views over `body`."""

    columns: Columns
    body: bytes
    kind: Kind = Kind.INTERACTIONS

    @property
    def rows(self) -> int:
        """Events."""
        return len(self.columns.user_ids)


@dataclass(slots=True)
class LabelsChange:
    """Names of ids of one side (0 users, 1 items)."""

    side: int
    ids: np.ndarray  # uint64[n]
    labels: list[str]
    body: bytes
    kind: Kind = Kind.LABELS

    @property
    def rows(self) -> int:
        """Labels."""
        return len(self.labels)


@dataclass(slots=True)
class AvailabilityChange:
    """Items that become available or unavailable."""

    item_ids: np.ndarray  # uint64[n]
    available: bool
    body: bytes
    kind: Kind = Kind.AVAILABILITY

    @property
    def rows(self) -> int:
        """Items named."""
        return len(self.item_ids)


@dataclass(slots=True)
class OpenProducerChange:
    """A producer takes a new epoch; everything is in the record's header."""

    body: bytes = b""
    kind: Kind = Kind.OPEN_PRODUCER
    rows: int = 0


@dataclass(slots=True)
class EngineChange:
    """An ENGINE record: who computes from here on. It changes nothing in the tables."""

    body: bytes
    kind: Kind = Kind.ENGINE
    rows: int = 0


Change = InteractionsChange | LabelsChange | AvailabilityChange | OpenProducerChange | EngineChange


@dataclass(frozen=True, slots=True)
class Rejects:
    """Rows of a batch that were refused: how many, and (row, reason) of the first `REJECTS_LISTED_MAX`."""

    count: int = 0
    listed: tuple[tuple[int, int], ...] = ()

    def merged(self, more: list[tuple[int, int]]) -> Rejects:
        """These and `more`, in row order."""
        listed = tuple(sorted((*self.listed, *more))[:REJECTS_LISTED_MAX])
        return Rejects(self.count + len(more), listed)


NO_REJECTS = Rejects()

# Reject summary in a record's payload (empty if nothing was rejected), little-endian, no padding:
#   32 B  hash of (salt, payload as received)
#   u32   rows rejected
#   u32   rows listed, then for each: u32 row, u8 reason
_HEAD = struct.Struct("<32sII")
_ROW = struct.Struct("<IB")


def encode_rejects(rejects: Rejects, received_hash: bytes) -> bytes:
    """The summary's bytes; empty when nothing was rejected (the record's commitment then is the received hash)."""
    if not rejects.count:
        return b""
    head = _HEAD.pack(received_hash, rejects.count, len(rejects.listed))
    return head + b"".join(_ROW.pack(row, reason) for row, reason in rejects.listed)


def decode_rejects(data: bytes, commitment: bytes) -> tuple[Rejects, bytes]:
    """(rejects, received hash) of a record's summary. Raises ValueError if it is cut."""
    if not data:
        return NO_REJECTS, commitment
    try:
        received_hash, count, listed = _HEAD.unpack_from(data, 0)
        rows = tuple(_ROW.unpack_from(data, _HEAD.size + i * _ROW.size) for i in range(listed))
    except struct.error:
        raise ValueError("reject summary is cut") from None
    return Rejects(count, rows), received_hash
