"""Rows of a batch that were refused. The summary is part of the record's payload: a replay answers a retry as the first time."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

REJECTS_LISTED_MAX = 100
"""Rejected rows that are listed one by one; all are counted."""


@dataclass(frozen=True, slots=True)
class Rejects:
    """How many rows were refused, and (row, reason) of the first `REJECTS_LISTED_MAX`."""

    count: int = 0
    listed: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, rows: np.ndarray, reasons: np.ndarray) -> Rejects:
        """The rejects of rows int[m], ascending, for reasons int[m]."""
        most = REJECTS_LISTED_MAX
        return cls(len(rows), tuple(zip(rows[:most].tolist(), reasons[:most].tolist(), strict=True)))

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
