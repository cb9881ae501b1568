"""The bytes of a log: what a record is, how it is hashed, packed and read back.

A log is a folder of segment files, each named by the first revision in it (20 digits, `.log`). A segment is
preallocated zeros, then commit groups, each starting at a multiple of 4,096. A group is the unit that is
written and synced at once, and kept or dropped as a whole by recovery. It holds records, each starting at a
multiple of 64 and laid out so (little-endian, unsigned unless said):

    storage header, 128 bytes: not hashed, so that grouping, recovery and erasure leave the chain as it is
      0    4  checksum     CRC32C of bytes 4 to 319, both headers
      4    2  storage      version of this header, STORAGE_VERSION
      6    2  flags        bit 0: the last record of its commit group
      8   16  log id       random, of this log alone, told to no client: none can forge a record in a payload
     24    4  incarnation  how often the log was opened for writing; never falls along the log
     28    4  group        where the commit group starts in this file, in blocks of 4,096
     32    4  segment      how long this file was made, in blocks of 4,096: a shorter file has lost its end
     36    4  rows         rows now in the payload (fewer than count once rows were erased)
     40    8  length       bytes now in the payload
     48    8  mark         last revision that was synced before this group was written; 0 in the first
     56    8  erased at    revision of the record that erased from this one, 0 if none did
     64   32  salt         random, of this record; destroyed when the record is erased from
     96   32  commitment   to the payload as it is now: hash(salt, payload)
    hashed header, 192 bytes: never changes; its hash is the record's hash
    128    8  magic        MAGIC
    136    2  version      of this header, HEADER_VERSION
    138    1  kind         Kind
    139    1  hash         HASH_IDS: which hash the log uses, the same in every record
    140    1  id length    bytes of the producer id
    141    3  zero
    144    8  revision
    152    8  epoch        of the producer
    160    8  sequence     of the producer
    168    8  time         signed, microseconds since 1970 when the record was accepted: information only
    176    8  count        rows when it was acknowledged
    184   32  commitment   to the payload as it was acknowledged
    216   32  previous     hash of the record before; in the first record the lineage uuid, then 16 zero bytes
    248   64  producer     id, UTF-8, zeros behind it
    312    8  zero
    payload, `length` bytes
    320    4  length of the reject summary
    324       reject summary, then the body

Zeros fill up to the next multiple of 64, and behind the group's last record to the next of 4,096. A MARK
record takes no revision and is outside the chain: it repeats the last revision and, as `previous`, that
revision's hash, has no payload, zeros for commitments, and stands alone in its group. It says that all before
it was synced.
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

_COPY_BYTES_MAX = 32 * 1024  # from here on NumPy copies, which lets other threads run
_JOIN_BYTES_MAX = 4096  # below this one call on joined bytes is cheaper than several updates


class Kind(IntEnum):
    """What a record changes. Numbers are never reused."""

    SPEC = 1
    INTERACTIONS = 2
    LABELS = 3
    AVAILABILITY = 4
    OPEN_PRODUCER = 5
    ENGINE = 6
    MARK = 7


_MARK = int(Kind.MARK)  # comparing with a plain int is several times as fast


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
    salt: bytes = NO_HASH
    commitment: bytes = NO_HASH


class Head(NamedTuple):
    """Both headers of a record, as the table above names their fields; `group` and `segment` in blocks."""

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
    """One record as it was read. `body` is a view of the file (zero-copy) and lives as long as it is held."""

    kind: int
    revision: int
    producer: bytes
    epoch: int
    sequence: int
    time_us: int
    count: int  # rows when acknowledged
    rejects: bytes
    body: memoryview
    salt: bytes
    commitment: bytes  # as acknowledged
    path: Path
    offset: int
    hash: bytes
    previous: bytes
    head: Head


class BadRecord(Exception):
    """Bytes that are no self-valid record."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


class MisplacedRecord(BadRecord):
    """A self-valid record where it does not belong: no interrupted write leaves that behind."""


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
    """The `previous` of a log's first record: so the chain covers the lineage too."""
    return lineage.ljust(HASH_BYTES, b"\0")


# ---------------------------------------------------------------------------------------------------- packing


@dataclass(slots=True)
class Stamp:
    """What the storage headers of one group share."""

    log_id: bytes
    hash_id: int
    incarnation: int
    group: int  # blocks
    segment: int  # blocks
    mark: int


def payload_length(entry: Entry) -> int:
    """Bytes of the entry's payload."""
    body = entry.body
    pieces = body if isinstance(body, list | tuple) else (body,)
    size = sum(len(piece) if type(piece) is bytes else memoryview(piece).nbytes for piece in pieces)
    return _REJECTS.size + len(entry.rejects) + size


def pack_headers(
    entry: Entry, stamp: Stamp, length: int, flags: int, previous: bytes, new_hash: Callable[..., Any]
) -> tuple[bytes, bytes]:
    """(both headers, the record's hash)."""
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
    """The page-aligned memory that groups are laid out in, reused; `view` is all of it as bytes."""

    def __init__(self) -> None:
        self.view = memoryview(aligned_buffer(BLOCK_BYTES))

    def reserve(self, size: int) -> memoryview:
        """The memory, at least `size` bytes of it. What was in it is gone if it had to grow."""
        if len(self.view) < size:
            self.view = memoryview(aligned_buffer(size + size // 2))
        return self.view


def pack_payload(buffer: memoryview, at: int, entry: Entry) -> int:
    """Copies rejects and body into `buffer` at `at`, once; returns where they end."""
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


# ---------------------------------------------------------------------------------------------------- reading

_HASH_OF_ID = {number: name for name, number in HASH_IDS.items()}


def hash_name_of(hash_id: int) -> str:
    """The name behind the number in a header. Raises LogError for a number this version does not know."""
    if hash_id not in _HASH_OF_ID:
        raise LogError(f"hash {hash_id} in the log is of a later version of livefactor")
    return _HASH_OF_ID[hash_id]


def read_head(head: bytes, at: int, file_bytes: int, path: Path) -> Head:
    """The headers of the record at `at`, checked; the payload is not (see `check_payload`).

    Args:
        head: HEADER_BYTES bytes of the file from `at`, or fewer at its end.
        at: offset of the record, for messages.
        file_bytes: size of the file.
        path: the file, for messages.

    Raises:
        BadRecord: no record here, or damaged headers.
        LogError: a record of a later format.
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
        raise LogError(f"{path} at byte {at}: a record of a later version of livefactor ({versions})")
    if at + HEADER_BYTES + found.length > file_bytes:
        raise BadRecord(at, "the file ends inside a record's payload")
    return found


def check_payload(view: memoryview, at: int, head: Head, new_hash: Callable[..., Any]) -> None:
    """Raises BadRecord unless the payload of the record at `at` is what its current commitment says."""
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
    """The record at `at`, whose headers and payload were checked."""
    start, rejects, body = at + HEADER_BYTES, b"", view[:0]
    if head.kind != _MARK:
        body_start = start + _REJECTS.size + _REJECTS.unpack_from(view, start)[0]
        if body_start != start + _REJECTS.size:
            rejects = bytes(view[start + _REJECTS.size : body_start])
        body = view[body_start : start + head.length]
    return Record(
        head.kind, head.revision, head.producer[: head.id_length], head.epoch, head.sequence, head.time_us,
        head.count_acked, rejects, body, head.salt, head.commitment, path, at, chain, head.previous, head,
    )  # fmt: skip


def made_size(view: memoryview) -> int:
    """How long a segment file was made, in bytes, as its first record says; 0 if that cannot be read."""
    head = bytes(view[:HEADER_BYTES])
    if len(head) < HEADER_BYTES or head[STORAGE_BYTES : STORAGE_BYTES + len(MAGIC)] != MAGIC:
        return 0
    found = Head._make(_HEADER.unpack(head))
    return found.segment * BLOCK_BYTES if crc32c(head[4:]) == found.checksum else 0
