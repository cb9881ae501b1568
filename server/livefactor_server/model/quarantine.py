"""The batches that wait in quarantine. They are part of the state and of every snapshot.

The log has the batches themselves (`changes/history/quarantine.py`). The state knows which of them
are undecided, and how many rows and bytes they have. In a snapshot they follow the producers in the
section `producers`, if there are any. So a model that never held a batch has the bytes of before.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

HELD_MAX = 4096
"""Maximum number of undecided batches of a model."""

HELD_BYTES = 200
"""Approximate memory of an entry, in bytes."""

MARK = 0xFFFF
"""Stands where the length of a producer's id would stand. No id is that long."""

# After MARK (u16), ascending by revision, little-endian: u64 revision, u32 rows, u32 bytes of the
# body.
_MARK = struct.Struct("<H")
_ENTRY = struct.Struct("<QII")


class Held(NamedTuple):
    """An undecided batch: the revision of its HELD record, its rows, and the bytes of its body."""

    revision: int
    rows: int
    nbytes: int


class Quarantine:
    """The undecided batches of a model. Only the APPLY stage writes."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}
        # Bytes of all their bodies in the log.
        self.body_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, revision: int) -> bool:
        return revision in self._held

    @property
    def nbytes(self) -> int:
        """Approximate memory, in bytes."""
        return HELD_BYTES * len(self._held)

    @property
    def first(self) -> int | None:
        """The revision of the oldest undecided batch, or None."""
        return next(iter(tuple(self._held)), None)

    def list(self) -> tuple[Held, ...]:
        """The undecided batches, the oldest first. Any thread may call it."""
        return tuple(self._held.copy().values())

    def put(self, held: Held) -> None:
        """Adds a batch, whose revision is above those of the others."""
        self._held[held.revision] = held
        self.body_bytes += held.nbytes

    def decide(self, revision: int) -> None:
        """Removes a batch. It may be gone already, because all its rows were erased."""
        found = self._held.pop(revision, None)
        self.body_bytes -= found.nbytes if found is not None else 0

    def encode(self) -> bytes:
        """The canonical bytes; empty without batches."""
        if not self._held:
            return b""
        return _MARK.pack(MARK) + b"".join(_ENTRY.pack(*held) for held in self._held.values())

    @classmethod
    def decode(cls, data: bytes) -> Quarantine:
        """The batches of canonical bytes without MARK.

        Raises:
            ValueError: the bytes are cut off, or revisions do not ascend.
        """
        made = cls()
        if len(data) % _ENTRY.size:
            raise ValueError(f"quarantine: {len(data)} bytes are no whole number of entries")
        last = 0
        for entry in _ENTRY.iter_unpack(data):
            held = Held(*entry)
            if held.revision <= last:
                raise ValueError(f"quarantine: revision {held.revision} follows {last}")
            last = held.revision
            made.put(held)
        return made
