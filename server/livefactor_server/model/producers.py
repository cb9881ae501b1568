"""The table of producers, for exactly-once delivery. It is part of the state and of every snapshot.

A producer has an epoch, the last applied sequence, and a ring of its last `RING` outcomes. Each
OpenProducer call increments the epoch, which fences older epochs. The ring gives a retry its first
answer. In memory an outcome is the bytes that a snapshot has. A producer may also have a note:
bytes that its client left with OpenProducer, and reads when it opens the producer again.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import ItemsView, Iterable
from typing import NamedTuple

import numpy as np

from livefactor_server.model.quarantine import MARK

RING = 64
"""Outcomes per producer, and the maximum number of its batches in flight."""

PRODUCER_BYTES = 1200
"""Approximate memory of a producer without outcomes, in bytes.

It has the id, the objects of the table and of admission, and an empty ring.
"""

OUTCOME_OBJECT_BYTES = 48
"""Approximate memory of an outcome beyond its bytes: the header of the object and its place."""


# Canonical bytes of a table, in order of the producers' ids, little-endian, without padding:
#   producer: u16 length of id, id, u64 epoch, u64 last sequence, u16 outcomes
#   note:     u16 length, note; only if bit 15 of the number of outcomes is set
#   outcome:  u64 sequence, u64 revision, u32 accepted, u32 rejected count, u16 rejects (bit 15: the
#             batch went into quarantine), 16 B salt, 32 B received hash
#   reject:   u32 row, u8 reason
# Batches in quarantine follow, if there are any (`quarantine.py`).
_PRODUCER = struct.Struct("<QQH")
_OUTCOME = struct.Struct("<QQIIH16s32s")
_REJECT = struct.Struct("<IB")
_HAS_NOTE = _IS_HELD = 1 << 15
_REJECTS_AT = struct.Struct("<QQII").size


class Outcome(NamedTuple):
    """The answer to an applied batch.

    Attributes:
        rejects: (row, reason) of the first 100 rejected rows.
        received_hash: the log's hash of (salt, received payload), 32 bytes.
        is_held: whether the batch went into quarantine.
    """

    sequence: int
    revision: int
    accepted: int
    rejected_count: int
    rejects: tuple[tuple[int, int], ...]
    salt: bytes
    received_hash: bytes
    is_held: bool = False

    def packed(self) -> bytes:
        """The bytes of the outcome in a snapshot."""
        head = _OUTCOME.pack(
            self.sequence,
            self.revision,
            self.accepted,
            self.rejected_count,
            len(self.rejects) | (_IS_HELD if self.is_held else 0),
            self.salt,
            self.received_hash,
        )
        if not self.rejects:
            return head
        return head + b"".join(_REJECT.pack(row, reason) for row, reason in self.rejects)

    @classmethod
    def unpacked(cls, data: bytes) -> Outcome:
        """The outcome of its bytes."""
        sequence, revision, accepted, rejected, listed, salt, received = _OUTCOME.unpack_from(data)
        rejects = tuple(_REJECT.iter_unpack(data[_OUTCOME.size :]))
        return cls(sequence, revision, accepted, rejected, rejects, salt, received, bool(listed & _IS_HELD))


class Producer:
    """The published state of one producer."""

    __slots__ = ("_ring", "epoch", "last_sequence", "note")

    def __init__(
        self, epoch: int = 0, last_sequence: int = 0, ring: Iterable[bytes] = (), note: bytes = b""
    ) -> None:
        self.epoch = epoch
        self.last_sequence = last_sequence
        self.note = note
        self._ring: deque[bytes] = deque(ring, maxlen=RING)

    def outcome(self, sequence: int) -> Outcome | None:
        """The outcome of `sequence`. None if the ring no longer has it or the batch is not applied
        yet.
        """
        index = sequence - self.last_sequence - 1 + len(self._ring)
        return Outcome.unpacked(self._ring[index]) if 0 <= index < len(self._ring) else None

    def append(self, outcome: Outcome) -> int:
        """Appends the next outcome. Returns the change of `nbytes`."""
        ring, packed = self._ring, outcome.packed()
        dropped = OUTCOME_OBJECT_BYTES + len(ring[0]) if len(ring) == RING else 0
        self.last_sequence = outcome.sequence
        ring.append(packed)
        return OUTCOME_OBJECT_BYTES + len(packed) - dropped

    @property
    def nbytes(self) -> int:
        """Approximate memory, in bytes."""
        outcomes = sum(OUTCOME_OBJECT_BYTES + len(packed) for packed in self._ring)
        return PRODUCER_BYTES + len(self.note) + outcomes

    def freeze(self) -> tuple[int, int, tuple[bytes, ...], bytes]:
        """(epoch, last sequence, packed outcomes, note)."""
        return self.epoch, self.last_sequence, tuple(self._ring), self.note


FrozenProducer = tuple[bytes, int, int, tuple[bytes, ...], bytes]
"""(id, epoch, last sequence, packed outcomes, note)."""


class ProducerTable:
    """Published producers by id (bytes). Only the APPLY stage writes it."""

    def __init__(self) -> None:
        self._producers: dict[bytes, Producer] = {}
        # Approximate memory.
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._producers)

    def get(self, producer_id: bytes) -> Producer | None:
        """The producer, or None if it was never opened."""
        return self._producers.get(producer_id)

    def items(self) -> ItemsView[bytes, Producer]:
        """The producers with their ids."""
        return self._producers.items()

    def put(self, producer_id: bytes, producer: Producer) -> None:
        """Adds a producer."""
        self._producers[producer_id] = producer
        self.nbytes += producer.nbytes

    def open(self, producer_id: bytes, epoch: int, note: bytes = b"") -> None:
        """Applies an OPEN_PRODUCER record. An empty note keeps the present one."""
        if producer_id not in self._producers:
            self.put(producer_id, Producer())
        producer = self._producers[producer_id]
        producer.epoch = epoch
        if note:
            self.nbytes += len(note) - len(producer.note)
            producer.note = note

    def record(self, producer_id: bytes, outcome: Outcome) -> None:
        """Applies the outcome of a batch.

        Sequences have no gaps, because admission checks them.
        """
        producer = self._producers[producer_id]
        assert outcome.sequence == producer.last_sequence + 1, (outcome.sequence, producer.last_sequence)
        self.nbytes += producer.append(outcome)

    def record_all(self, producer_id: bytes, sequences: np.ndarray, outcomes: Iterable[Outcome]) -> None:
        """Applies the outcomes of consecutive batches.

        `sequences`, uint64[n], are those of all batches. `outcomes` are the last ones, at least
        `RING` of them or all.
        """
        producer = self._producers[producer_id]
        expected = np.arange(producer.last_sequence + 1, producer.last_sequence + 1 + sequences.size)
        assert (sequences == expected).all(), (sequences, producer.last_sequence)
        for outcome in outcomes:
            self.nbytes += producer.append(outcome)

    def freeze(self) -> list[FrozenProducer]:
        """A copy that later records do not change. It is cheap enough for a call under the gate."""
        return [(key, *producer.freeze()) for key, producer in self._producers.items()]


def encode(frozen: list[FrozenProducer]) -> bytes:
    """The canonical bytes of a frozen table. Equal tables have equal bytes."""
    parts = []
    for producer_id, epoch, last_sequence, ring, note in sorted(frozen):
        parts += [
            struct.pack("<H", len(producer_id)),
            producer_id,
            _PRODUCER.pack(epoch, last_sequence, len(ring) | (_HAS_NOTE if note else 0)),
            *((struct.pack("<H", len(note)), note) if note else ()),
            *ring,
        ]
    return b"".join(parts)


def decode(data: bytes) -> tuple[ProducerTable, bytes]:
    """The table of canonical bytes, and the bytes after the MARK that may follow it.

    Raises:
        ValueError: the bytes are truncated or have a surplus.
    """
    table = ProducerTable()
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if at + size > len(data):
            raise ValueError(f"producers: truncated at byte {at} of {len(data)}")
        at += size
        return data[at - size : at]

    while at < len(data):
        length = struct.unpack("<H", take(2))[0]
        if length == MARK:
            return table, data[at:]
        producer_id = take(length)
        epoch, last_sequence, count = _PRODUCER.unpack(take(_PRODUCER.size))
        note = take(struct.unpack("<H", take(2))[0]) if count & _HAS_NOTE else b""
        ring = []
        for _ in range(count & ~_HAS_NOTE):
            head = take(_OUTCOME.size)
            listed = int.from_bytes(head[_REJECTS_AT : _REJECTS_AT + 2], "little") & ~_IS_HELD
            ring.append(head + take(listed * _REJECT.size))
        table.put(producer_id, Producer(epoch, last_sequence, ring, note))
    return table, b""
