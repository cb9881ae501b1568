"""Rejected rows of a batch.

Their summary is part of the record's payload, so that a retry gets the first answer even after a
replay.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

REJECTS_LISTED_MAX = 100
"""Maximum number of rejected rows in the list. The count has no limit."""


@dataclass(frozen=True, slots=True)
class Rejects:
    """The number of rejected rows, and (row, reason) of the first `REJECTS_LISTED_MAX`."""

    count: int = 0
    listed: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, rows: np.ndarray, reasons: np.ndarray) -> Rejects:
        """The rejects with rows int[m], ascending, and reasons int[m]."""
        most = REJECTS_LISTED_MAX
        return cls(len(rows), tuple(zip(rows[:most].tolist(), reasons[:most].tolist(), strict=True)))

    def merged(self, more: list[tuple[int, int]]) -> Rejects:
        """These rejects and later ones.

        `more` has (row, reason) pairs in row order. Their rows are numbers in the batch without the
        rows of these rejects.
        """
        before = [row for row, _ in self.listed]
        first = [(_received_row(row, before), reason) for row, reason in more[:REJECTS_LISTED_MAX]]
        listed = tuple(sorted((*self.listed, *first))[:REJECTS_LISTED_MAX])
        return Rejects(self.count + len(more), listed)


NO_REJECTS = Rejects()


def _received_row(row: int, rejected_before: list[int]) -> int:
    """The number in the received batch of row `row` after earlier rejections."""
    for earlier in rejected_before:
        if earlier > row:
            break
        row += 1
    return row


# Reject summary in a record's payload, little-endian, without padding. It is empty if the body is
# the received payload.
#   32 B  hash of (salt, received payload)
#   u32   number of rejected rows
#   u32   number of rows in the list, then for each row: u32 row, u8 reason
_HEAD = struct.Struct("<32sII")
_ROW = struct.Struct("<IB")


def encode_rejects(rejects: Rejects, received_hash: bytes, is_wrapped: bool = False) -> bytes:
    """The bytes of the summary, empty if the body is the received payload.

    Then the commitment of the record is the received hash. The body is another one if rows were
    rejected, and if the record has more than the payload (`is_wrapped`).
    """
    if not rejects.count and not is_wrapped:
        return b""
    head = _HEAD.pack(received_hash, rejects.count, len(rejects.listed))
    return head + b"".join(_ROW.pack(row, reason) for row, reason in rejects.listed)


def decode_rejects(data: bytes, commitment: bytes) -> tuple[Rejects, bytes]:
    """(rejects, received hash) of a record's summary.

    Raises:
        ValueError: the summary is truncated.
    """
    if not data:
        return NO_REJECTS, commitment
    try:
        received_hash, count, listed = _HEAD.unpack_from(data, 0)
        rows = tuple(_ROW.unpack_from(data, _HEAD.size + i * _ROW.size) for i in range(listed))
    except struct.error:
        raise ValueError("reject summary is truncated") from None
    return Rejects(count, rows), received_hash
