"""Who sent what, up to which sequence: the exactly-once table. State like any other: from the log, in every snapshot.

A producer has an epoch (raised by every OpenProducer, which fences the older ones), the last applied sequence and a
ring of its last `RING` outcomes, from which a retry is answered as the first time.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

RING = 64
"""Outcomes kept for each producer, and the most batches it may have in flight."""

ID_BYTES_MAX = 64


class Outcome(NamedTuple):
    """What an applied batch was answered with. `received_hash` is the log's hash of (salt, received payload)."""

    sequence: int
    revision: int
    accepted: int
    rejected_count: int
    rejects: tuple[tuple[int, int], ...]  # (row, reason), the first 100
    salt: bytes
    received_hash: bytes


class Producer:
    """One producer's published state."""

    __slots__ = ("epoch", "last_sequence", "ring")

    def __init__(self, epoch: int = 0, last_sequence: int = 0, ring: Iterable[Outcome] = ()) -> None:
        self.epoch = epoch
        self.last_sequence = last_sequence
        self.ring: deque[Outcome] = deque(ring, maxlen=RING)

    def outcome(self, sequence: int) -> Outcome | None:
        """The outcome of `sequence`, or None if it is older than the ring or not applied yet."""
        index = sequence - self.last_sequence - 1 + len(self.ring)
        return self.ring[index] if 0 <= index < len(self.ring) else None


class ProducerTable:
    """Published producers by id (bytes). Written by the apply stage alone."""

    def __init__(self) -> None:
        self._producers: dict[bytes, Producer] = {}

    def __len__(self) -> int:
        return len(self._producers)

    def get(self, producer_id: bytes) -> Producer | None:
        """The producer, or None if it was never opened."""
        return self._producers.get(producer_id)

    def open(self, producer_id: bytes, epoch: int) -> None:
        """Apply an OPEN_PRODUCER record."""
        producer = self._producers.setdefault(producer_id, Producer())
        producer.epoch = epoch

    def record(self, producer_id: bytes, outcome: Outcome) -> None:
        """Apply a batch's outcome. Sequences have no gaps: the log stage saw to that."""
        producer = self._producers[producer_id]
        assert outcome.sequence == producer.last_sequence + 1, (outcome.sequence, producer.last_sequence)
        producer.last_sequence = outcome.sequence
        producer.ring.append(outcome)

    def freeze(self) -> list[tuple[bytes, int, int, tuple[Outcome, ...]]]:
        """A copy that later records do not change, cheap enough to take under the gate."""
        return [(key, p.epoch, p.last_sequence, tuple(p.ring)) for key, p in self._producers.items()]


# Canonical bytes of a frozen table, producers by ascending id. Little-endian, no padding:
#   producer: u16 length of id, id, u64 epoch, u64 last sequence, u16 outcomes
#   outcome:  u64 sequence, u64 revision, u32 accepted, u32 rejected count, u16 rejects, 16 B salt, 32 B received hash
#   reject:   u32 row, u8 reason
_PRODUCER = struct.Struct("<QQH")
_OUTCOME = struct.Struct("<QQIIH16s32s")
_REJECT = struct.Struct("<IB")


def encode(frozen: list[tuple[bytes, int, int, tuple[Outcome, ...]]]) -> bytes:
    """Canonical bytes of a frozen table: equal tables give equal bytes."""
    parts = []
    for producer_id, epoch, last_sequence, ring in sorted(frozen):
        parts += [
            struct.pack("<H", len(producer_id)),
            producer_id,
            _PRODUCER.pack(epoch, last_sequence, len(ring)),
        ]
        for o in ring:
            parts.append(
                _OUTCOME.pack(
                    o.sequence,
                    o.revision,
                    o.accepted,
                    o.rejected_count,
                    len(o.rejects),
                    o.salt,
                    o.received_hash,
                )
            )
            parts += [_REJECT.pack(row, reason) for row, reason in o.rejects]
    return b"".join(parts)


def decode(data: bytes) -> ProducerTable:
    """The table of canonical bytes. Raises ValueError if they are cut or run on."""
    table = ProducerTable()
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if at + size > len(data):
            raise ValueError(f"producers: cut at byte {at} of {len(data)}")
        at += size
        return data[at - size : at]

    while at < len(data):
        producer_id = take(struct.unpack("<H", take(2))[0])
        epoch, last_sequence, count = _PRODUCER.unpack(take(_PRODUCER.size))
        ring = []
        for _ in range(count):
            sequence, revision, accepted, rejected, listed, salt, received = _OUTCOME.unpack(
                take(_OUTCOME.size)
            )
            rejects = tuple(_REJECT.unpack(take(_REJECT.size)) for _ in range(listed))
            ring.append(Outcome(sequence, revision, accepted, rejected, rejects, salt, received))
        table._producers[producer_id] = Producer(epoch, last_sequence, ring)
    return table
