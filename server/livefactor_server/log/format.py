"""The bytes of a log: the layout of a record, its hash, and how it is packed and read.

A log is a folder of segment files. The first revision in a segment, in 20 digits, and `.log` make
its name. A segment is preallocated zeros followed, from its start, by commit groups. Each group
starts at a multiple of 4,096 bytes. A group is written and synced at once, and recovery keeps or
drops it as a whole. It holds records, each of which starts at a multiple of 64 bytes. Integers are
little-endian, and unsigned unless stated otherwise:

    storage header, 128 bytes: not hashed, so that grouping, recovery and erasure do not change the
    chain
      0    4  checksum     CRC32C of bytes 4 to 319, both headers
      4    2  storage      version of this header, STORAGE_VERSION
      6    2  flags        bit 0: the last record of its commit group
      8   16  log id       random, one per log; clients never see it and so cannot forge a record
     24    4  incarnation  number of times that the log was opened for writing; it never decreases
     28    4  group        start of the commit group in this file, in blocks of 4,096 bytes
     32    4  segment      original length of this file, in blocks; a shorter file was truncated
     36    4  rows         rows in the payload; lower than count after an erasure
     40    8  length       bytes in the payload
     48    8  mark         last revision synced before this group was written; 0 in the first group
     56    8  erased at    revision of the record that erased rows of this one; 0 if none did
     64   32  salt         random, one per record; destroyed when rows of the record are erased
     96   32  commitment   hash(salt, payload) of the present payload
    hashed header, 192 bytes: never changes; its hash is the hash of the record
    128    8  magic        MAGIC
    136    2  version      of this header, HEADER_VERSION
    138    1  kind         Kind
    139    1  hash         the hash function of the log, from HASH_IDS; the same in every record
    140    1  id length    bytes in the producer id
    141    3  zero
    144    8  revision
    152    8  epoch        epoch of the producer
    160    8  sequence     sequence of the producer
    168    8  time         when the record was accepted, signed, µs since 1970; for information only
    176    8  count        rows at the acknowledgement
    184   32  commitment   hash(salt, payload) of the payload at the acknowledgement
    216   32  previous     hash of the record before; in the first record, lineage uuid and 16 zeros
    248   64  producer     producer id, UTF-8, padded with zeros
    312    8  zero
    payload, `length` bytes
    320    4  length of the reject summary
    324       reject summary, then the body

Zeros fill the space to the next multiple of 64 bytes, and after the last record of a group to the
next multiple of 4,096. A MARK record takes no revision and is not part of the chain. It repeats the
last revision and, in `previous`, the hash of that revision. It has no payload, its commitments are
zeros, and it is alone in its group. It states that everything before it was synced.
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
# The package is optional: without it a log uses SHA-256.
except ImportError:
    blake3 = None  # type: ignore[assignment]

Buffer = bytes | bytearray | memoryview | Any
"""A C-contiguous object with the buffer protocol, for example a NumPy array."""

MAGIC = b"lvfactor"
STORAGE_VERSION = 1
HEADER_VERSION = 1
RECORD_ALIGN = 64
STORAGE_BYTES = 128
HEADER_BYTES = 320
PRODUCER_BYTES_MAX = 64
HASH_BYTES = 32
SALT_BYTES = 32
NO_HASH = bytes(HASH_BYTES)
FLAG_LAST = 1
HASH_IDS = {"sha256": 1, "blake3": 2}

_CHECKSUM = struct.Struct("<I")
_STORAGE = struct.Struct("<HH16sIIIIQQQ32s32s")
_HASHED = struct.Struct("<8sHBBB3xQQQqQ32s32s64s8x")
_HEADER = struct.Struct("<IHH16sIIIIQQQ32s32s8sHBBB3xQQQqQ32s32s64s8x")
_REJECTS = struct.Struct("<I")
assert _CHECKSUM.size + _STORAGE.size == STORAGE_BYTES
assert _HEADER.size == STORAGE_BYTES + _HASHED.size == HEADER_BYTES

# Pieces of this size and more are copied by NumPy, which releases the GIL.
_COPY_BYTES_MAX = 32 * 1024
# Below this size, one hash of joined bytes is faster than several updates.
_JOIN_BYTES_MAX = 4096


class Kind(IntEnum):
    """The kind of a record. Numbers are never reused."""

    SPEC = 1
    INTERACTIONS = 2
    LABELS = 3
    AVAILABILITY = 4
    OPEN_PRODUCER = 5
    ENGINE = 6
    MARK = 7


# A comparison with a plain int is several times as fast as one with the enum.
_MARK = int(Kind.MARK)


@dataclass(slots=True)
class Entry:
    """One record to append.

    `body` is a buffer, or a sequence of buffers that are written in order.
    """

    kind: int
    revision: int
    producer: bytes = b""
    epoch: int = 0
    sequence: int = 0
    time_us: int = 0
    count: int = 0
    rejects: bytes = b""
    body: Buffer | Sequence[Buffer] = b""
    salt: bytes = NO_HASH
    commitment: bytes = NO_HASH


class Head(NamedTuple):
    """Both headers of a record, with the fields of the table above.

    `group` and `segment` are in blocks.
    """

    checksum: int
    storage_version: int
    flags: int
    log_id: bytes
    incarnation: int
    group: int
    segment: int
    rows: int
    length: int
    mark: int
    erased_at: int
    salt: bytes
    current_commitment: bytes
    magic: bytes
    version: int
    kind: int
    hash_id: int
    id_length: int
    revision: int
    epoch: int
    sequence: int
    time_us: int
    count_acked: int
    commitment: bytes
    previous: bytes
    producer: bytes


@dataclass(slots=True)
class Record:
    """One record that was read. `body` is a view of the mapped file, without a copy.

    `count` and `commitment` are the values at the acknowledgement.
    """

    kind: int
    revision: int
    producer: bytes
    epoch: int
    sequence: int
    time_us: int
    count: int
    rejects: bytes
    body: memoryview
    salt: bytes
    commitment: bytes
    path: Path
    offset: int
    hash: bytes
    previous: bytes
    head: Head


class BadRecord(Exception):
    """The bytes are not a valid record.

    `offset` is the place in the file, `reason` what was found.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


class MisplacedRecord(BadRecord):
    """A valid record in a wrong place. No interrupted write can cause it."""


def align(n: int, to: int) -> int:
    """`n` rounded up to a multiple of `to`."""
    return n + -n % to


# ------------------------------------------------------------------------------------------- hashes


def default_hash_name() -> str:
    """The hash function of a new log: BLAKE3 if the package is installed, otherwise SHA-256."""
    return "sha256" if blake3 is None else "blake3"


def hash_function(name: str) -> Callable[..., Any]:
    """The hash function of that name, used as `f(data).digest()`.

    Raises LogError if the name is unknown or its package is missing.
    """
    if name == "sha256":
        return hashlib.sha256
    if name == "blake3" and blake3 is not None:
        return blake3.blake3
    missing = "needs the package blake3 (pip install blake3)" if name == "blake3" else "is unknown"
    raise LogError(f"the log's hash {name!r} {missing}")


def parts_of(body: Buffer | Sequence[Buffer]) -> list[Any]:
    """The pieces of the body, each as a flat byte view."""
    pieces = body if isinstance(body, list | tuple) else (body,)
    return [piece if type(piece) is bytes else memoryview(piece).cast("B") for piece in pieces]


def commitment_of(
    new_hash: Callable[..., Any], salt: bytes, rejects: bytes, body: Buffer | Sequence[Buffer]
) -> bytes:
    """hash(salt ‖ u32 length of rejects ‖ rejects ‖ body), 32 bytes.

    Large bodies release the GIL.
    """
    parts = parts_of(body)
    head = b"".join((salt, _REJECTS.pack(len(rejects)), rejects))
    if sum(map(len, parts)) <= _JOIN_BYTES_MAX:
        state = new_hash(b"".join((head, *parts)))
    else:
        state = new_hash(head)
        for part in parts:
            state.update(part)
    digest: bytes = state.digest()
    return digest


def first_previous(lineage: bytes) -> bytes:
    """The field `previous` of the first record. Through it the chain also covers the lineage."""
    return lineage.ljust(HASH_BYTES, b"\0")


# ------------------------------------------------------------------------------------------ packing


@dataclass(slots=True)
class Stamp:
    """What the storage headers of one group have in common. `group` and `segment` are in blocks."""

    log_id: bytes
    hash_id: int
    incarnation: int
    group: int
    segment: int
    mark: int


def payload_length(entry: Entry) -> int:
    """Size of the entry's payload in bytes."""
    body = entry.body
    pieces = body if isinstance(body, list | tuple) else (body,)
    size = sum(len(piece) if type(piece) is bytes else memoryview(piece).nbytes for piece in pieces)
    return _REJECTS.size + len(entry.rejects) + size


def pack_headers(
    entry: Entry, stamp: Stamp, length: int, flags: int, previous: bytes, new_hash: Callable[..., Any]
) -> tuple[bytes, bytes]:
    """Packs both headers of a record.

    Returns:
        The headers (320 bytes) and the hash of the record (32 bytes).
    """
    producer = entry.producer
    hashed = _HASHED.pack(
        MAGIC, HEADER_VERSION, entry.kind, stamp.hash_id, len(producer), entry.revision, entry.epoch,
        entry.sequence, entry.time_us, entry.count, entry.commitment, previous, producer,
    )  # fmt: skip
    storage = _STORAGE.pack(
        STORAGE_VERSION, flags, stamp.log_id, stamp.incarnation, stamp.group, stamp.segment, entry.count,
        length, stamp.mark, 0, entry.salt, entry.commitment,
    )  # fmt: skip
    headers = storage + hashed
    return _CHECKSUM.pack(crc32c(headers)) + headers, new_hash(hashed).digest()


class GroupBuffer:
    """The page-aligned memory in which groups are laid out.

    It is reused. `view` covers all of it.
    """

    def __init__(self) -> None:
        self.view = memoryview(aligned_buffer(BLOCK_BYTES))

    def reserve(self, size: int) -> memoryview:
        """Returns memory of at least `size` bytes. Its contents are lost if it has to grow."""
        if len(self.view) < size:
            self.view = memoryview(aligned_buffer(size + size // 2))
        return self.view


def pack_payload(buffer: memoryview, at: int, entry: Entry) -> int:
    """Copies the reject summary and the body to `buffer[at:]`. Returns the payload's end."""
    rejects = entry.rejects
    head = _REJECTS.pack(len(rejects)) + rejects
    end = at + len(head)
    buffer[at:end] = head
    for part in parts_of(entry.body):
        start, end = end, end + len(part)
        if len(part) < _COPY_BYTES_MAX:
            buffer[start:end] = part
        else:
            np.copyto(np.frombuffer(buffer, np.uint8, len(part), start), np.frombuffer(part, np.uint8))
    return end


def new_id() -> bytes:
    """A random log id."""
    return os.urandom(16)


# ------------------------------------------------------------------------------------------ reading

_HASH_OF_ID = {number: name for name, number in HASH_IDS.items()}


def hash_name_of(hash_id: int) -> str:
    """The name of the hash with that number.

    Raises LogError if this version does not know the number.
    """
    if hash_id not in _HASH_OF_ID:
        raise LogError(f"hash {hash_id} in the log needs a later version of livefactor")
    return _HASH_OF_ID[hash_id]


def read_head(head: bytes, at: int, file_bytes: int, path: Path) -> Head:
    """Reads and checks the headers of the record at `at`. `check_payload` checks its payload.

    Args:
        head: HEADER_BYTES bytes of the file from `at` on, or fewer at the end of the file.
        at: offset of the record in bytes.
        file_bytes: size of the file.
        path: the file, for error messages.

    Raises:
        BadRecord: no record starts here, or its headers are damaged.
        LogError: the record has a later format.
    """
    if len(head) < HEADER_BYTES:
        raise BadRecord(at, "the file ends inside a record's headers")
    found = tuple.__new__(Head, _HEADER.unpack(head))
    if found.magic != MAGIC:
        raise BadRecord(at, "no record starts here")
    if crc32c(head[4:]) != found.checksum:
        raise BadRecord(at, "the checksum of the headers is wrong")
    if found.storage_version != STORAGE_VERSION or found.version != HEADER_VERSION:
        versions = f"{found.storage_version}.{found.version}"
        raise LogError(f"{path}, byte {at}: this record needs a later version of livefactor ({versions})")
    if at + HEADER_BYTES + found.length > file_bytes:
        raise BadRecord(at, "the file ends inside a record's payload")
    return found


def check_payload(view: memoryview, at: int, head: Head, new_hash: Callable[..., Any]) -> None:
    """Raises BadRecord unless the payload of the record at `at` matches its commitment."""
    length = head.length
    if head.kind == _MARK:
        if length:
            raise BadRecord(at, "a mark has a payload")
        return
    start = at + HEADER_BYTES
    payload = view[start : start + length]
    if length <= _JOIN_BYTES_MAX:
        found = new_hash(head.salt + payload).digest()
    else:
        state = new_hash(head.salt)
        state.update(payload)
        found = state.digest()
    if found != head.current_commitment:
        raise BadRecord(at, "the payload does not match its commitment")


def record_of(view: memoryview, at: int, head: Head, chain: bytes, path: Path) -> Record:
    """Returns the record at `at`. Its headers and its payload were checked before."""
    start, rejects, body = at + HEADER_BYTES, b"", view[:0]
    if head.kind != _MARK:
        body_start = start + _REJECTS.size + _REJECTS.unpack_from(view, start)[0]
        if body_start != start + _REJECTS.size:
            rejects = bytes(view[start + _REJECTS.size : body_start])
        body = view[body_start : start + head.length]
    return Record(
        kind=head.kind,
        revision=head.revision,
        producer=head.producer[: head.id_length],
        epoch=head.epoch,
        sequence=head.sequence,
        time_us=head.time_us,
        count=head.count_acked,
        rejects=rejects,
        body=body,
        salt=head.salt,
        commitment=head.commitment,
        path=path,
        offset=at,
        hash=chain,
        previous=head.previous,
        head=head,
    )


def made_size(view: memoryview) -> int:
    """Original length of a segment file in bytes, from its first record; 0 if unreadable."""
    head = bytes(view[:HEADER_BYTES])
    if len(head) < HEADER_BYTES or head[STORAGE_BYTES : STORAGE_BYTES + len(MAGIC)] != MAGIC:
        return 0
    found = Head._make(_HEADER.unpack(head))
    return found.segment * BLOCK_BYTES if crc32c(head[4:]) == found.checksum else 0
