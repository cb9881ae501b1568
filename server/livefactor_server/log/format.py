"""The bytes of a log: what a record is, how it is hashed, packed and read back.

A log is a folder of segment files. A file is named by the first revision in it (20 digits, `.log`).
A segment starts with two tail slots of 4,096 bytes each (`tail.py`). Behind them, from byte
DATA_START, it holds a stream of commit groups, and behind the stream preallocated zeros. A commit
group is written and synced at once, and recovery keeps it or drops it as a whole. A group starts at
a multiple of 8. Whole blocks of the stream stand in their place. The bytes of the last block, as
long as it is not full, stand in a tail slot: so a small group costs its own bytes and not a block,
and no write touches the only copy of bytes that were acknowledged.

A group, little-endian and unsigned unless noted:

    group header, 152 bytes
      0    8  magic        GROUP_MAGIC
      8    4  checksum     CRC32C of bytes 12 to 151
     12    2  version      of this layout, GROUP_VERSION
     14    1  hash         HASH_IDS: the hash that the log uses, the same in every group
     15    1  producers    entries of the producer list
     16   16  log id       random, of this log alone, told to no client: no payload can pass for a group
     32    4  incarnation  how often the log was opened for writing; it never falls along the log
     36    4  records      records in this group, at least 1
     40    8  place        byte of the file at which the group starts
     48    8  size         bytes from the group's start to the next group's
     56    8  revision     of the first record; the others follow without a gap
     64    8  mark         last revision that was synced before this group was written; 0 in the first
     72    8  time         signed; times of the records are relative to it
     80    4  segment      length of this file when it was made, in blocks of 4,096
     84    4  zero
     88   32  previous     chain hash before the first record
    120   32  last         chain hash of the last record
    producer list, then zeros to a multiple of 8; an entry is
           8  epoch
           8  sequence     the smallest one of this producer and epoch in the group
           1  id length
              id           UTF-8
    record heads, 40 bytes each
      0    1  kind         Kind
      1    1  producer     number of the entry in the producer list from 1 on, 0 for none
      2    2  flags        bit 0: rows were erased from this record
      4    4  count        rows when it was acknowledged
      8    4  rejects      bytes of the reject summary
     12    4  body         bytes of the body
     16    4  sequence     above the entry's
     20    4  time         signed, microseconds above the group's
     24   16  salt         random, of this record; destroyed when rows are erased from it
    erasures, 80 bytes for each record whose flag is set, in order
      0    4  rows         rows that are left
      4    4  zero
      8    8  erased at    revision of the record that asked for it
     16   32  commitment   to the payload as it was acknowledged
     48   32  current      commitment to the payload that is left
    payloads, one behind the other: reject summary, then body
    zeros up to `size`

Nothing that can be computed is stored. A record's hash is the hash of this header, which no file
holds as a whole, and which erasing does not change:

      0    8  magic        MAGIC
      8    2  version      HEADER_VERSION
     10    1  kind
     11    1  hash
     12    1  id length    bytes of the producer id
     13    3  zero
     16    8  revision
     24    8  epoch        of the producer
     32    8  sequence     of the producer
     40    8  time         signed, microseconds since 1970 when the record was accepted: information only
     48    8  count        rows when it was acknowledged
     56   32  commitment   hash(salt, u32 length of the reject summary, reject summary, body) as acknowledged
     88   32  previous     hash of the record before; in the first record the lineage uuid, then 16 zero bytes
    120   64  producer     id, UTF-8, zeros behind it
    184    8  zero

A reader computes every commitment and every hash of a group, and compares the last one with `last`.
So a group is known to be whole before any record of it is used.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from livefactor_server.log.crc32c import crc32c
from livefactor_server.log.disk import BLOCK_BYTES, aligned_buffer
from livefactor_server.log.errors import LogError

try:
    import blake3
except ImportError:  # optional: a log without it uses SHA-256
    blake3 = None  # type: ignore[assignment]

Buffer = bytes | bytearray | memoryview | Any
"""Anything with the buffer protocol, C-contiguous (NumPy arrays too)."""

MAGIC = b"lvfactor"
GROUP_MAGIC = b"lvfgroup"
HEADER_VERSION = 1
GROUP_VERSION = 2
EARLIER_MAGIC_AT = 128
"""Where a segment of layout 1 has MAGIC: in the first record's header."""

GROUP_ALIGN = 8
DATA_START = 2 * BLOCK_BYTES
"""Byte of a segment at which its first group starts: behind the two tail slots."""

PRODUCER_BYTES_MAX = 64
SALT_BYTES = 16
HASH_BYTES = 32
NO_HASH = bytes(HASH_BYTES)
NO_SALT = bytes(SALT_BYTES)
FLAG_ERASED = 1
HASH_IDS = {"sha256": 1, "blake3": 2}

_CHECKSUM = struct.Struct("<I")
_GROUP = struct.Struct("<HBB16sIIQQQQqI4x32s32s")
_PRODUCER = struct.Struct("<QQB")
_HEAD = struct.Struct("<BBHIIIIi16s")
_ERASURE = struct.Struct("<I4xQ32s32s")
_HASHED = struct.Struct("<8sHBBB3xQQQqQ32s32s64s8x")
_LENGTH = struct.Struct("<I")
GROUP_HEADER_BYTES = len(GROUP_MAGIC) + _CHECKSUM.size + _GROUP.size
HEAD_BYTES = _HEAD.size
ERASURE_BYTES = _ERASURE.size
assert (GROUP_HEADER_BYTES, HEAD_BYTES, ERASURE_BYTES, _HASHED.size) == (152, 40, 80, 192)

_CHECKED_FROM = len(GROUP_MAGIC) + _CHECKSUM.size
_PRODUCERS_MAX = 255
_U32_MAX = 2**32 - 1
_TIME_SPAN_US = 2**31 - 1
# NumPy copies larger pieces, which lets other threads run.
_COPY_BYTES_MAX = 32 * 1024
# Below this one call on joined bytes is cheaper than several updates.
_JOIN_BYTES_MAX = 4096


class Kind(IntEnum):
    """What a record changes. Numbers are never reused; 7 was used once."""

    SPEC = 1
    INTERACTIONS = 2
    LABELS = 3
    AVAILABILITY = 4
    OPEN_PRODUCER = 5
    ENGINE = 6


@dataclass(slots=True)
class Entry:
    """One record to append. `body` is bytes-like, or a sequence of them, written one behind the other."""

    kind: int
    revision: int
    producer: bytes = b""
    epoch: int = 0
    sequence: int = 0
    time_us: int = 0
    count: int = 0
    rejects: bytes = b""
    body: Buffer | Sequence[Buffer] = b""
    salt: bytes = NO_SALT
    commitment: bytes = NO_HASH


class GroupHead(NamedTuple):
    """A group header, as the table above names its fields; `segment` in blocks."""

    version: int
    hash_id: int
    producers: int
    log_id: bytes
    incarnation: int
    records: int
    place: int
    size: int
    revision: int
    mark: int
    time_us: int
    segment: int
    previous: bytes
    last: bytes


@dataclass(slots=True)
class Record:
    """One record as it was read. `body` is a view of the file (zero-copy) and lives as long as it is held."""

    kind: int
    revision: int
    producer: bytes
    epoch: int
    sequence: int
    time_us: int
    # Rows when it was acknowledged.
    count: int
    rejects: bytes
    body: memoryview
    salt: bytes
    # To the payload as it was acknowledged.
    commitment: bytes
    path: Path
    # Byte of the file at which its group starts.
    offset: int
    hash: bytes
    previous: bytes
    group: GroupHead
    # Rows now: fewer than `count` once rows were erased, by the record of revision `erased_at`.
    rows: int
    erased_at: int = 0

    @property
    def payload_bytes(self) -> int:
        """Bytes of the reject summary and the body."""
        return len(self.rejects) + len(self.body)


class BadGroup(Exception):
    """Bytes that are no self-valid group. `offset` is the byte of the file at which it starts."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


class MisplacedGroup(BadGroup):
    """A group header that is whole and does not belong here: no interrupted write leaves one behind."""


def align(n: int, to: int) -> int:
    """`n` rounded up to a multiple of `to`."""
    return n + -n % to


# ----------------------------------------------------------------------------------------------------- hashes


def default_hash_name() -> str:
    """The hash of a new log: BLAKE3 where the package is installed, else SHA-256."""
    return "sha256" if blake3 is None else "blake3"


def hash_function(name: str) -> Callable[..., Any]:
    """`f(data).digest()` of a log's hash. Raises LogError if it is unknown or its package is missing."""
    if name == "sha256":
        return hashlib.sha256
    if name == "blake3" and blake3 is not None:
        return blake3.blake3
    missing = "needs the package blake3 (pip install blake3)" if name == "blake3" else "is unknown"
    raise LogError(f"the log's hash {name!r} {missing}")


def parts_of(body: Buffer | Sequence[Buffer]) -> list[Any]:
    """The body's pieces as flat byte views."""
    pieces = body if isinstance(body, list | tuple) else (body,)
    return [piece if type(piece) is bytes else memoryview(piece).cast("B") for piece in pieces]


def commitment_of(
    new_hash: Callable[..., Any], salt: bytes, rejects: bytes, body: Buffer | Sequence[Buffer]
) -> bytes:
    """hash(salt ‖ u32 length of rejects ‖ rejects ‖ body): 32 bytes. Large bodies without the GIL."""
    parts = parts_of(body)
    head = b"".join((salt, _LENGTH.pack(len(rejects)), rejects))
    if sum(map(len, parts)) <= _JOIN_BYTES_MAX:
        state = new_hash(b"".join((head, *parts)))
    else:
        state = new_hash(head)
        for part in parts:
            state.update(part)
    digest: bytes = state.digest()
    return digest


def first_previous(lineage: bytes) -> bytes:
    """The `previous` of a log's first record: so the chain covers the lineage too."""
    return lineage.ljust(HASH_BYTES, b"\0")


# ---------------------------------------------------------------------------------------------------- packing


@dataclass(slots=True)
class Stamp:
    """Fields of a group header that the log knows. `place` in bytes, `segment` in blocks."""

    log_id: bytes
    hash_id: int
    incarnation: int
    place: int
    segment: int
    mark: int
    previous: bytes


class GroupBuffer:
    """The page-aligned memory that groups are laid out in, reused; `view` is all of it as bytes."""

    def __init__(self) -> None:
        self.view = memoryview(aligned_buffer(BLOCK_BYTES))

    def reserve(self, size: int) -> memoryview:
        """The memory, at least `size` bytes of it. What was in it is gone if it had to grow."""
        if len(self.view) < size:
            self.view = memoryview(aligned_buffer(size + size // 2))
        return self.view


class PackedGroup(NamedTuple):
    """A group that is ready to be laid out: all but the header and the padding."""

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
    """The producer list, the record heads and the chain hashes of a group.

    Args:
        entries: the records, with their commitments.
        previous: the chain hash before them.
        hash_id: the log's, of HASH_IDS.
        new_hash: the function of that hash.

    Raises:
        ValueError: over 255 producers, or a record of 4 GiB and more.
    """
    time_us = entries[0].time_us
    numbers, sequences = _number_producers(entries)
    heads, hashes, payload = [], [], 0
    for entry in entries:
        # The time is information only. A clock that jumped by more than half an hour is cut to it.
        since = min(max(entry.time_us - time_us, -_TIME_SPAN_US), _TIME_SPAN_US)
        rejects, body = len(entry.rejects), _body_length(entry.body)
        if max(rejects, body, entry.count) > _U32_MAX:
            raise ValueError(f"revision {entry.revision}: a record has less than 4 GiB")
        key = (entry.producer, entry.epoch)
        number = numbers.get(key, 0)
        sequence = entry.sequence - sequences[key] if number else 0
        heads.append(
            _HEAD.pack(entry.kind, number, 0, entry.count, rejects, body, sequence, since, entry.salt)
        )
        hashed = _HASHED.pack(
            MAGIC, HEADER_VERSION, entry.kind, hash_id, len(entry.producer), entry.revision, entry.epoch,
            entry.sequence, time_us + since, entry.count, entry.commitment, previous, entry.producer,
        )  # fmt: skip
        previous = new_hash(hashed).digest()
        hashes.append(previous)
        payload += rejects + body
    listed = b"".join(
        _PRODUCER.pack(epoch, sequences[producer, epoch], len(producer)) + producer
        for producer, epoch in numbers
    )
    listed += bytes(-len(listed) % GROUP_ALIGN)
    packed = b"".join(heads)
    size = GROUP_HEADER_BYTES + len(listed) + len(packed) + payload
    return PackedGroup(entries, listed, len(numbers), packed, time_us, size, hashes)


def _number_producers(
    entries: Sequence[Entry],
) -> tuple[dict[tuple[bytes, int], int], dict[tuple[bytes, int], int]]:
    """(number, smallest sequence) of each (producer, epoch) that the entries name."""
    numbers: dict[tuple[bytes, int], int] = {}
    sequences: dict[tuple[bytes, int], int] = {}
    for entry in entries:
        if not (entry.producer or entry.epoch or entry.sequence):
            continue
        key = entry.producer, entry.epoch
        if numbers.setdefault(key, len(numbers) + 1) > _PRODUCERS_MAX:
            raise ValueError(f"a commit group has at most {_PRODUCERS_MAX} producers")
        sequences[key] = min(sequences.get(key, entry.sequence), entry.sequence)
    return numbers, sequences


def _body_length(body: Buffer | Sequence[Buffer]) -> int:
    pieces = body if isinstance(body, list | tuple) else (body,)
    return sum(len(piece) if type(piece) is bytes else memoryview(piece).nbytes for piece in pieces)


def lay_out(buffer: memoryview, at: int, group: PackedGroup, stamp: Stamp, size: int) -> None:
    """Writes the group into `buffer` at `at`, zeros behind it up to `size` bytes: every byte is written."""
    header = _GROUP.pack(
        GROUP_VERSION, stamp.hash_id, group.producer_count, stamp.log_id, stamp.incarnation,
        len(group.entries), stamp.place, size, group.entries[0].revision, stamp.mark, group.time_us,
        stamp.segment, stamp.previous, group.hashes[-1],
    )  # fmt: skip
    start = at
    fixed = b"".join((GROUP_MAGIC, _CHECKSUM.pack(crc32c(header)), header, group.producers, group.heads))
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


def new_id() -> bytes:
    """A random log id."""
    return os.urandom(16)


# ---------------------------------------------------------------------------------------------------- reading

_HASH_OF_ID = {number: name for name, number in HASH_IDS.items()}


def hash_name_of(hash_id: int) -> str:
    """The name behind the number in a header. Raises LogError for a number this version does not know."""
    if hash_id not in _HASH_OF_ID:
        raise LogError(f"hash {hash_id} in the log is of a later version of livefactor")
    return _HASH_OF_ID[hash_id]


def read_group_head(memory: memoryview, at: int, place: int, path: Path) -> GroupHead:
    """The checked header of the group at `at` of `memory`, which is byte `place` of the file `path`.

    Raises:
        BadGroup: no group here, or a damaged header.
        LogError: a group of another version.
    """
    raw = bytes(memory[at : at + GROUP_HEADER_BYTES])
    if len(raw) < GROUP_HEADER_BYTES:
        raise BadGroup(place, "the file ends inside a group's header")
    if not raw.startswith(GROUP_MAGIC):
        raise BadGroup(place, "no group starts here")
    if crc32c(raw[_CHECKED_FROM:]) != _CHECKSUM.unpack_from(raw, len(GROUP_MAGIC))[0]:
        raise BadGroup(place, "the checksum of the group's header is wrong")
    head = GroupHead._make(_GROUP.unpack_from(raw, _CHECKED_FROM))
    if head.version != GROUP_VERSION:
        raise LogError(f"{path} at byte {place}: a group of another version of livefactor ({head.version})")
    return head


def read_records(
    memory: memoryview, at: int, head: GroupHead, path: Path, new_hash: Callable[..., Any]
) -> list[Record]:
    """The records of the group at `at` of `memory`, whose header is `head`, verified against `head.last`.

    Bodies are views of `memory`. Raises BadGroup.
    """
    place = head.place
    end = at + head.size
    if head.size < GROUP_HEADER_BYTES or end > len(memory):
        raise BadGroup(place, "the file ends inside a group's payload")
    producers, cursor = _read_producers(memory, at + GROUP_HEADER_BYTES, end, head)
    heads_end = cursor + head.records * HEAD_BYTES
    if heads_end > end:
        raise BadGroup(place, "the group ends inside its record heads")
    heads = list(_HEAD.iter_unpack(memory[cursor:heads_end]))
    erased = sum(1 for fields in heads if fields[2])
    payload = heads_end + erased * ERASURE_BYTES
    if payload + sum(fields[4] + fields[5] for fields in heads) > end:
        raise BadGroup(place, "the group ends inside its payloads")
    found, previous, revision, erasure_at = [], head.previous, head.revision, heads_end
    for kind, number, flags, count, rejects_size, body_size, above, since, salt in heads:
        producer, epoch, base = producers[number] if number < len(producers) else (b"", -1, 0)
        if epoch < 0 or flags & ~FLAG_ERASED:
            raise BadGroup(place, f"the head of revision {revision} is damaged")
        body_start = payload + rejects_size
        rejects, body = bytes(memory[payload:body_start]), memory[body_start : body_start + body_size]
        payload = body_start + body_size
        commitment = commitment_of(new_hash, salt, rejects, body)
        rows, erased_at = count, 0
        if flags:
            rows, erased_at, acknowledged, current = _ERASURE.unpack_from(memory, erasure_at)
            erasure_at += ERASURE_BYTES
            if commitment != current:
                raise BadGroup(place, f"the payload of revision {revision} does not match its commitment")
            commitment = acknowledged
        sequence, time_us = base + above, head.time_us + since
        hashed = _HASHED.pack(
            MAGIC, HEADER_VERSION, kind, head.hash_id, len(producer), revision, epoch, sequence, time_us,
            count, commitment, previous, producer,
        )  # fmt: skip
        chain = new_hash(hashed).digest()
        found.append(
            Record(
                kind,
                revision,
                producer,
                epoch,
                sequence,
                time_us,
                count,
                rejects,
                body,
                salt,
                commitment,
                path,
                place,
                chain,
                previous,
                head,
                rows,
                erased_at,
            )
        )
        previous, revision = chain, revision + 1
    check_chain(place, previous, head.last)
    if not is_zero(memory[payload:end]):
        raise BadGroup(place, "the padding behind the group is damaged")
    return found


def check_chain(place: int, found: bytes, expected: bytes) -> None:
    """Raises BadGroup unless the chain hash behind the group at `place` is the one that its header names."""
    if found != expected:
        raise BadGroup(place, "the records or payloads of the group do not match its hash")


def _read_producers(
    memory: memoryview, at: int, end: int, head: GroupHead
) -> tuple[list[tuple[bytes, int, int]], int]:
    """(id, epoch, smallest sequence) by number, and where the record heads begin."""
    found, start = [(b"", 0, 0)], at
    for _ in range(head.producers):
        if at + _PRODUCER.size > end:
            raise BadGroup(head.place, "the group ends inside its producers")
        epoch, sequence, length = _PRODUCER.unpack_from(memory, at)
        at += _PRODUCER.size
        found.append((bytes(memory[at : at + length]), epoch, sequence))
        at += length
    padded = start + align(at - start, GROUP_ALIGN)
    if any(len(producer) > PRODUCER_BYTES_MAX for producer, _, _ in found) or not is_zero(memory[at:padded]):
        raise BadGroup(head.place, "the group's producers are damaged")
    return found, padded


def is_zero(piece: memoryview) -> bool:
    """Whether every byte is zero."""
    return not bytes(piece).rstrip(b"\0")


def is_earlier_layout(view: memoryview) -> bool:
    """Whether a segment file was written by an earlier version, whose layout is not read any more."""
    return bytes(view[EARLIER_MAGIC_AT : EARLIER_MAGIC_AT + len(MAGIC)]) == MAGIC
