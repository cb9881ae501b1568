"""Packs commit groups into the bytes that `format.py` describes.

`pack_group` computes everything that does not depend on the place of the group. When the place is
known, `lay_out` copies the group to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from livefactor_server.log.crc32c import crc32c
from livefactor_server.log.disk import BLOCK_BYTES, aligned_buffer
from livefactor_server.log.format import (
    CHECKSUM,
    FLAG_ERASED,
    GROUP,
    GROUP_ALIGN,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    GROUP_VERSION,
    HASHED,
    HEAD,
    HEAD_BYTES,
    HEADER_VERSION,
    MAGIC,
    NO_KEY,
    PRODUCER,
    SEALED_VERSION,
    Entry,
    align,
    parts_of,
)
from livefactor_server.log.sealing import GroupSeal

PRODUCERS_MAX = 255
"""Maximum number of different (producer, epoch) in one group."""

TIME_SPAN_US = 2**31 - 1
"""The most that the time of a record differs from its group's, about 36 minutes.

A larger difference is cut. The time is information only.
"""

_U32_MAX = 2**32 - 1
_Key = tuple[bytes, int]
# NumPy copies larger pieces, because it releases the GIL.
_COPY_BYTES_MAX = 32 * 1024


@dataclass(slots=True)
class Stamp:
    """The fields of a group header that the writer sets.

    `place` is in bytes, `segment` is in blocks. `seal` encrypts the group. None leaves it plain.
    """

    log_id: bytes
    hash_id: int
    incarnation: int
    place: int
    segment: int
    mark: int
    seal: GroupSeal | None = None


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
    """A group without its header and its padding, ready to be laid out.

    Attributes:
        revision: of its first record.
        previous: the chain hash before its first record.
        records: number of records.
        time_us: the group's time, in microseconds.
        numbers: (producer, epoch) -> its number in the producer list.
        sequences: (producer, epoch) -> the sequence in its entry of the producer list.
        listed: bytes of the producer list, without padding.
        heads: bytes of the record heads, and of the erasures behind them.
        payload: the payloads, in pieces.
        size: bytes of the group without padding.
        last: the chain hash of its last record.
    """

    revision: int
    previous: bytes
    records: int
    time_us: int
    numbers: dict[_Key, int]
    sequences: dict[_Key, int]
    listed: bytes
    heads: bytes
    payload: Sequence[Any]
    size: int
    last: bytes


def pack_group(
    entries: Sequence[Entry],
    previous: bytes,
    hash_id: int,
    new_hash: Callable[..., Any],
    grown: PackedGroup | None = None,
    seal_bytes: int = 0,
) -> tuple[PackedGroup, list[bytes]]:
    """Packs the producer list and the record heads of a group, and computes its chain hashes.

    Args:
        entries: the records, with their commitments.
        previous: the chain hash before the first record.
        hash_id: the number of the log's hash, from HASH_IDS.
        new_hash: the function of that hash.
        grown: a group that the entries continue, if `can_grow` allows it. It and they have no
            erased rows. The result then has its records and the entries. None packs the entries
            alone.
        seal_bytes: room for the seal, in bytes.

    Returns:
        The group, and the chain hash of each entry.

    Raises:
        ValueError: the group has over 255 producers, or a record has 4 GiB or more.
    """
    time_us = entries[0].time_us if grown is None else grown.time_us
    numbers, sequences, listed = _number_producers(entries, grown)
    heads, hashes, payload = [], [], [] if grown is None else list(grown.payload)
    first = previous if grown is None else grown.previous
    for entry in entries:
        since = min(max(entry.time_us - time_us, -TIME_SPAN_US), TIME_SPAN_US)
        parts = parts_of(entry.body)
        rejects, body = len(entry.rejects), sum(map(len, parts))
        if max(rejects, body, entry.count) > _U32_MAX:
            raise ValueError(f"revision {entry.revision}: a record must have less than 4 GiB")
        key = (entry.producer, entry.epoch)
        number = numbers.get(key, 0)
        sequence = entry.sequence - sequences[key] if number else 0
        flags = FLAG_ERASED if entry.erasure else 0
        heads.append(
            HEAD.pack(entry.kind, number, flags, entry.count, rejects, body, sequence, since, entry.salt)
        )
        hashed = HASHED.pack(
            MAGIC, HEADER_VERSION, entry.kind, hash_id, len(entry.producer), entry.revision, entry.epoch,
            entry.sequence, time_us + since, entry.count, entry.commitment, previous, entry.producer,
        )  # fmt: skip
        previous = new_hash(hashed).digest()
        hashes.append(previous)
        payload += (entry.rejects, *parts) if rejects else parts
    heads += [entry.erasure for entry in entries]
    packed = b"".join(heads) if grown is None else b"".join((grown.heads, *heads))
    size = GROUP_HEADER_BYTES + align(len(listed), GROUP_ALIGN) + len(packed) + sum(map(len, payload))
    size += seal_bytes
    revision, records = (
        (entries[0].revision, len(entries))
        if grown is None
        else (grown.revision, grown.records + len(entries))
    )
    if size <= BLOCK_BYTES:
        # It may grow by many commits.
        payload = [b"".join(payload)]
    group = PackedGroup(
        revision, first, records, time_us, numbers, sequences, listed, packed, payload, size, previous
    )
    return group, hashes


def can_grow(group: PackedGroup, entries: Sequence[Entry], size_max: int) -> bool:
    """Whether `group` can take the entries and have at most `size_max` bytes with its padding."""
    size, numbers = group.size + GROUP_ALIGN, set(group.numbers)
    if any(entry.erasure for entry in entries):
        return False
    for entry in entries:
        key = entry.producer, entry.epoch
        size += HEAD_BYTES + len(entry.rejects)
        size += len(entry.body) if type(entry.body) is bytes else sum(map(len, parts_of(entry.body)))
        if key in group.sequences:
            if not 0 <= entry.sequence - group.sequences[key] <= _U32_MAX:
                return False
        elif key not in numbers:
            numbers.add(key)
            size += PRODUCER.size + len(entry.producer)
        if size > size_max or abs(entry.time_us - group.time_us) > TIME_SPAN_US:
            return False
    return len(numbers) <= PRODUCERS_MAX


def _number_producers(
    entries: Sequence[Entry], grown: PackedGroup | None
) -> tuple[dict[_Key, int], dict[_Key, int], bytes]:
    """The number and the smallest sequence of each (producer, epoch), and the producer list."""
    numbers: dict[_Key, int] = {} if grown is None else dict(grown.numbers)
    sequences: dict[_Key, int] = {} if grown is None else dict(grown.sequences)
    known = len(numbers)
    for entry in entries:
        if not (entry.producer or entry.epoch or entry.sequence):
            continue
        key = entry.producer, entry.epoch
        if numbers.setdefault(key, len(numbers) + 1) > PRODUCERS_MAX:
            raise ValueError(f"a commit group can have at most {PRODUCERS_MAX} producers")
        sequences[key] = min(sequences.get(key, entry.sequence), entry.sequence)
    listed = b"" if grown is None else grown.listed
    for producer, epoch in islice(numbers, known, None):
        listed += PRODUCER.pack(epoch, sequences[producer, epoch], len(producer)) + producer
    return numbers, sequences, listed


def lay_out(buffer: memoryview, at: int, group: PackedGroup, stamp: Stamp, size: int) -> None:
    """Writes the group to `buffer[at:]`, and zeros after it up to `size` bytes in all.

    Then it seals the group.
    """
    version, key_id = (GROUP_VERSION, NO_KEY) if stamp.seal is None else (SEALED_VERSION, stamp.seal.key_id)
    header = GROUP.pack(
        version, stamp.hash_id, len(group.numbers), stamp.log_id, stamp.incarnation,
        group.records, stamp.place, size, group.revision, stamp.mark, group.time_us,
        stamp.segment, key_id, group.previous, group.last,
    )  # fmt: skip
    start = at
    padding = bytes(-len(group.listed) % GROUP_ALIGN)
    fixed = b"".join((GROUP_MAGIC, CHECKSUM.pack(crc32c(header)), header, group.listed, padding, group.heads))
    buffer[at : at + len(fixed)] = fixed
    at += len(fixed)
    for part in group.payload:
        end = at + len(part)
        if len(part) < _COPY_BYTES_MAX:
            buffer[at:end] = part
        else:
            np.copyto(np.frombuffer(buffer, np.uint8, len(part), at), np.frombuffer(part, np.uint8))
        at = end
    buffer[at : start + size] = bytes(start + size - at)
    if stamp.seal is not None:
        stamp.seal.close(buffer, start, size)
