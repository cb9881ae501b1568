"""Packs commit groups into the bytes that `format.py` describes.

`pack_group` computes everything that does not depend on the place of the group. When the place is
known, `lay_out` copies the group to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from livefactor_server.log.crc32c import crc32c
from livefactor_server.log.disk import BLOCK_BYTES, aligned_buffer
from livefactor_server.log.format import (
    CHECKSUM,
    GROUP,
    GROUP_ALIGN,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    GROUP_VERSION,
    HASHED,
    HEAD,
    HEADER_VERSION,
    MAGIC,
    PRODUCER,
    Buffer,
    Entry,
    parts_of,
)

PRODUCERS_MAX = 255
"""Maximum number of different (producer, epoch) in one group."""

_U32_MAX = 2**32 - 1
_TIME_SPAN_US = 2**31 - 1
# NumPy copies larger pieces, because it releases the GIL.
_COPY_BYTES_MAX = 32 * 1024


@dataclass(slots=True)
class Stamp:
    """The fields of a group header that the writer sets.

    `place` is in bytes, `segment` is in blocks.
    """

    log_id: bytes
    hash_id: int
    incarnation: int
    place: int
    segment: int
    mark: int
    previous: bytes


class GroupBuffer:
    """Page-aligned memory in which groups are laid out. It is reused. `view` is all of it."""

    def __init__(self) -> None:
        self.view = memoryview(aligned_buffer(BLOCK_BYTES))

    def reserve(self, size: int) -> memoryview:
        """All of the memory, at least `size` bytes. If it has to grow, its content is lost."""
        if len(self.view) < size:
            self.view = memoryview(aligned_buffer(size + size // 2))
        return self.view


class PackedGroup(NamedTuple):
    """A group without its header and its padding, ready to be laid out."""

    entries: Sequence[Entry]
    producers: bytes
    producer_count: int
    heads: bytes
    time_us: int
    # Bytes of the group without padding.
    size: int
    hashes: list[bytes]


def pack_group(
    entries: Sequence[Entry], previous: bytes, hash_id: int, new_hash: Callable[..., Any]
) -> PackedGroup:
    """Packs the producer list and the record heads of a group, and computes its chain hashes.

    Args:
        entries: the records, with their commitments.
        previous: the chain hash before the first record.
        hash_id: the number of the log's hash, from HASH_IDS.
        new_hash: the function of that hash.

    Raises:
        ValueError: the group has over 255 producers, or a record has 4 GiB or more.
    """
    time_us = entries[0].time_us
    numbers, sequences = _number_producers(entries)
    heads, hashes, payload = [], [], 0
    for entry in entries:
        # The time is information only. A difference that does not fit into 31 bits, which is about
        # 36 minutes, is cut.
        since = min(max(entry.time_us - time_us, -_TIME_SPAN_US), _TIME_SPAN_US)
        rejects, body = len(entry.rejects), _body_length(entry.body)
        if max(rejects, body, entry.count) > _U32_MAX:
            raise ValueError(f"revision {entry.revision}: a record must have less than 4 GiB")
        key = (entry.producer, entry.epoch)
        number = numbers.get(key, 0)
        sequence = entry.sequence - sequences[key] if number else 0
        heads.append(
            HEAD.pack(entry.kind, number, 0, entry.count, rejects, body, sequence, since, entry.salt)
        )
        hashed = HASHED.pack(
            MAGIC, HEADER_VERSION, entry.kind, hash_id, len(entry.producer), entry.revision, entry.epoch,
            entry.sequence, time_us + since, entry.count, entry.commitment, previous, entry.producer,
        )  # fmt: skip
        previous = new_hash(hashed).digest()
        hashes.append(previous)
        payload += rejects + body
    listed = b"".join(
        PRODUCER.pack(epoch, sequences[producer, epoch], len(producer)) + producer
        for producer, epoch in numbers
    )
    listed += bytes(-len(listed) % GROUP_ALIGN)
    packed = b"".join(heads)
    size = GROUP_HEADER_BYTES + len(listed) + len(packed) + payload
    return PackedGroup(entries, listed, len(numbers), packed, time_us, size, hashes)


def _number_producers(
    entries: Sequence[Entry],
) -> tuple[dict[tuple[bytes, int], int], dict[tuple[bytes, int], int]]:
    """The number and the smallest sequence of each (producer, epoch) that the entries name."""
    numbers: dict[tuple[bytes, int], int] = {}
    sequences: dict[tuple[bytes, int], int] = {}
    for entry in entries:
        if not (entry.producer or entry.epoch or entry.sequence):
            continue
        key = entry.producer, entry.epoch
        if numbers.setdefault(key, len(numbers) + 1) > PRODUCERS_MAX:
            raise ValueError(f"a commit group can have at most {PRODUCERS_MAX} producers")
        sequences[key] = min(sequences.get(key, entry.sequence), entry.sequence)
    return numbers, sequences


def _body_length(body: Buffer | Sequence[Buffer]) -> int:
    pieces = body if isinstance(body, list | tuple) else (body,)
    return sum(len(piece) if type(piece) is bytes else memoryview(piece).nbytes for piece in pieces)


def lay_out(buffer: memoryview, at: int, group: PackedGroup, stamp: Stamp, size: int) -> None:
    """Writes the group to `buffer[at:]`, and zeros after it up to `size` bytes in all."""
    header = GROUP.pack(
        GROUP_VERSION, stamp.hash_id, group.producer_count, stamp.log_id, stamp.incarnation,
        len(group.entries), stamp.place, size, group.entries[0].revision, stamp.mark, group.time_us,
        stamp.segment, stamp.previous, group.hashes[-1],
    )  # fmt: skip
    start = at
    fixed = b"".join((GROUP_MAGIC, CHECKSUM.pack(crc32c(header)), header, group.producers, group.heads))
    buffer[at : at + len(fixed)] = fixed
    at += len(fixed)
    for entry in group.entries:
        for part in (entry.rejects, *parts_of(entry.body)):
            end = at + len(part)
            if len(part) < _COPY_BYTES_MAX:
                buffer[at:end] = part
            else:
                np.copyto(np.frombuffer(buffer, np.uint8, len(part), at), np.frombuffer(part, np.uint8))
            at = end
    buffer[at : start + size] = bytes(start + size - at)
