"""The table of producers, for exactly-once delivery. It is part of the state and of every snapshot.

A producer has an epoch, the last applied sequence, and a ring of its last `RING` outcomes. Each
OpenProducer call increments the epoch, which fences older epochs. The ring gives a retry its first
answer.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

RING = 64
"""Outcomes per producer, and the maximum number of its batches in flight."""

ID_BYTES_MAX = 64


class Outcome(NamedTuple):
    """The answer to an applied batch.

    Attributes:
        rejects: (row, reason) of the first 100 rejected rows.
        received_hash: the log's hash of (salt, received payload), 32 bytes.
    """

    sequence: int
    revision: int
    accepted: int
    rejected_count: int
    rejects: tuple[tuple[int, int], ...]
    salt: bytes
    received_hash: bytes


class Producer:
    """The published state of one producer."""

    __slots__ = ("epoch", "last_sequence", "ring")

    def __init__(self, epoch: int = 0, last_sequence: int = 0, ring: Iterable[Outcome] = ()) -> None:
        self.epoch = epoch
        self.last_sequence = last_sequence
        self.ring: deque[Outcome] = deque(ring, maxlen=RING)

    def outcome(self, sequence: int) -> Outcome | None:
        """The outcome of `sequence`. None if the ring no longer has it or the batch is not applied
        yet.
        """
        index = sequence - self.last_sequence - 1 + len(self.ring)
        return self.ring[index] if 0 <= index < len(self.ring) else None


class ProducerTable:
    """Published producers by id (bytes). Only the APPLY stage writes it."""

    def __init__(self) -> None:
        self._producers: dict[bytes, Producer] = {}

    def __len__(self) -> int:
        return len(self._producers)

    def get(self, producer_id: bytes) -> Producer | None:
        """The producer, or None if it was never opened."""
        return self._producers.get(producer_id)

    def open(self, producer_id: bytes, epoch: int) -> None:
        """Applies an OPEN_PRODUCER record."""
        producer = self._producers.setdefault(producer_id, Producer())
        producer.epoch = epoch

    def record(self, producer_id: bytes, outcome: Outcome) -> None:
        """Applies the outcome of a batch.

        Sequences have no gaps, because admission checks them.
        """
        producer = self._producers[producer_id]
        assert outcome.sequence == producer.last_sequence + 1, (outcome.sequence, producer.last_sequence)
        producer.last_sequence = outcome.sequence
        producer.ring.append(outcome)

    def record_all(self, producer_id: bytes, sequences: np.ndarray, outcomes: Iterable[Outcome]) -> None:
        """Applies the outcomes of consecutive batches.

        `sequences`, uint64[n], are those of all batches. `outcomes` are the last ones, at least
        `RING` of them or all.
        """
        producer = self._producers[producer_id]
        expected = np.arange(producer.last_sequence + 1, producer.last_sequence + 1 + sequences.size)
        assert (sequences == expected).all(), (sequences, producer.last_sequence)
        producer.last_sequence = int(sequences[-1])
        producer.ring.extend(outcomes)

    def freeze(self) -> list[tuple[bytes, int, int, tuple[Outcome, ...]]]:
        """A copy that later records do not change. It is cheap enough for a call under the gate."""
        return [(key, p.epoch, p.last_sequence, tuple(p.ring)) for key, p in self._producers.items()]


# Canonical bytes of a frozen table, in order of the producers' ids, little-endian, without padding:
#   producer: u16 length of id, id, u64 epoch, u64 last sequence, u16 outcomes
#   outcome:  u64 sequence, u64 revision, u32 accepted, u32 rejected count, u16 rejects, 16 B salt,
#             32 B received hash
#   reject:   u32 row, u8 reason
_PRODUCER = struct.Struct("<QQH")
_OUTCOME = struct.Struct("<QQIIH16s32s")
_REJECT = struct.Struct("<IB")


def encode(frozen: list[tuple[bytes, int, int, tuple[Outcome, ...]]]) -> bytes:
    """The canonical bytes of a frozen table. Equal tables have equal bytes."""
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
    """The table of canonical bytes.

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
