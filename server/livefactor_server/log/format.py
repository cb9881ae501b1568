"""The bytes of a log: what a record is, how it is hashed, packed and read back.

A log is a folder of segment files. A file is named by the first revision in it (20 digits, `.log`).
A segment starts with two tail slots of 4,096 bytes each (`tail.py`). From byte DATA_START on, it
holds a stream of commit groups. Preallocated zeros follow the stream. A commit is written and
synced as a whole, and recovery keeps or drops it as a whole. A group starts at a multiple of 8.

Each full block of the stream is written to its place. While the last block is not full, its bytes
stand in a tail slot instead. So a small group takes its own bytes in the stream and not a whole
block, and no write touches the only copy of acknowledged bytes. A group that lies in the last block
can grow by the records of later commits, with the next slot write. It then stands in both slots,
with different numbers of records.

A group, little-endian and unsigned unless noted:

    group header, 152 bytes
      0    8  magic        GROUP_MAGIC
      8    4  checksum     CRC32C of bytes 12 to 151
     12    2  version      of this layout, GROUP_VERSION, or SEALED_VERSION (`sealing.py`)
     14    1  hash         HASH_IDS: the hash that the log uses, the same in every group
     15    1  producers    entries of the producer list
     16   16  log id       random; no client knows it, so no payload can imitate a group of this log
     32    4  incarnation  how often the log was opened for writing; it never decreases in a log
     36    4  records      records in this group, at least 1
     40    8  place        byte of the file at which the group starts
     48    8  size         bytes from the group's start to the next group's
     56    8  revision     of the first record; the others follow without a gap
     64    8  mark         last revision that was synced before this write; 0 in the first
     72    8  time         signed; times of the records are relative to it
     80    4  segment      length of this file when it was made, in blocks of 4,096
     84    4  key          id of the key of a sealed group; zero in a plain one
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
      4    4  checksum     CRC32C of the entry with zeros here; earlier versions wrote zeros
      8    8  erased at    revision of the record that asked for it
     16   32  commitment   to the payload as it was acknowledged
     48   32  current      commitment to the payload that is left
    payloads, one after another: reject summary, then body
    zeros up to `size`

A record's hash is the hash of the following header. The header is not stored, since it can be
computed from the group. Erasing rows does not change it:

      0    8  magic        MAGIC
      8    2  version      HEADER_VERSION
     10    1  kind
     11    1  hash
     12    1  id length    bytes of the producer id
     13    3  zero
     16    8  revision
     24    8  epoch        of the producer
     32    8  sequence     of the producer
     40    8  time         signed, microseconds since 1970 at acceptance: information only
     48    8  count        rows when it was acknowledged
     56   32  commitment   hash(salt, u32 bytes of the rejects, rejects, body), as acknowledged
     88   32  previous     hash of the record before; in the first the lineage, then 16 zeros
    120   64  producer     id, UTF-8, zeros behind it
    184    8  zero

A reader computes every commitment and every hash of a group, and compares the last hash with
`last`. So it verifies the whole group before it uses any of its records.
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

from livefactor_server.log.crc32c import crc32c
from livefactor_server.log.disk import BLOCK_BYTES
from livefactor_server.log.errors import LogError

try:
    import blake3
except ImportError:
    # The package is optional. A new log uses SHA-256 without it.
    blake3 = None  # type: ignore[assignment]

Buffer = bytes | bytearray | memoryview | Any
"""A C-contiguous object with the buffer protocol, for example a NumPy array."""

MAGIC = b"lvfactor"
GROUP_MAGIC = b"lvfgroup"
HEADER_VERSION = 1
GROUP_VERSION = 2
SEALED_VERSION = 3
EARLIER_MAGIC_AT = 128
"""The byte at which a segment of layout 1 has MAGIC."""

GROUP_ALIGN = 8
DATA_START = 2 * BLOCK_BYTES
"""The byte of a segment at which its first group starts. The two tail slots come before it."""

PRODUCER_BYTES_MAX = 64
SALT_BYTES = 16
HASH_BYTES = 32
NO_HASH = bytes(HASH_BYTES)
NO_SALT = bytes(SALT_BYTES)
NO_KEY = bytes(4)
FLAG_ERASED = 1
_ZEROS = bytes(1 << 20)
HASH_IDS = {"sha256": 1, "blake3": 2}

CHECKSUM = struct.Struct("<I")
GROUP = struct.Struct("<HBB16sIIQQQQqI4s32s32s")
PRODUCER = struct.Struct("<QQB")
HEAD = struct.Struct("<BBHIIIIi16s")
_ERASURE = struct.Struct("<IIQ32s32s")
HASHED = struct.Struct("<8sHBBB3xQQQqQ32s32s64s8x")
LENGTH = struct.Struct("<I")
GROUP_HEADER_BYTES = len(GROUP_MAGIC) + CHECKSUM.size + GROUP.size
HEAD_BYTES = HEAD.size
ERASURE_BYTES = _ERASURE.size
assert (GROUP_HEADER_BYTES, HEAD_BYTES, ERASURE_BYTES, HASHED.size) == (152, 40, 80, 192)

CHECKED_FROM = len(GROUP_MAGIC) + CHECKSUM.size
# For shorter payloads, one call on joined bytes takes less time than several updates.
_JOIN_BYTES_MAX = 4096


class Kind(IntEnum):
    """What a record changes. Numbers are never reused. An earlier version used 7."""

    SPEC = 1
    INTERACTIONS = 2
    LABELS = 3
    AVAILABILITY = 4
    OPEN_PRODUCER = 5
    ENGINE = 6
    SWITCH = 8
    EMBEDDINGS = 9
    FACTORS = 10
    ROLLBACK = 11
    FACTOR_DELTAS = 12
    RETENTION = 13
    FEATURES = 14
    DROPPED_FEATURES = 15
    ERASE = 16
    ERASED = 17
    EVIDENCE = 18
    TERM = 19
    RELEASE = 20
    EVICT = 21
    HELD = 22
    ACCEPTED = 23
    DROPPED = 24
    MAP_SUMS = 25


@dataclass(slots=True)
class Entry:
    """One record to append. `body` is a bytes-like object or a sequence of such objects."""

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
    # Its entry in the erasures of the group, empty if no rows were erased (`erasing.py`).
    erasure: bytes = b""


class GroupHead(NamedTuple):
    """The fields of a group header, in the order of the table above. `segment` is in blocks."""

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
    key: bytes
    previous: bytes
    last: bytes


@dataclass(slots=True)
class Record:
    """One record from the log. `body` is a view of the file, which stays mapped while it exists."""

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
    # The commitment to the payload as it was acknowledged.
    commitment: bytes
    path: Path
    # Byte of the file at which its group starts.
    offset: int
    hash: bytes
    previous: bytes
    group: GroupHead
    # Rows that are left. The record of revision `erased_at` erased the others; 0 if none.
    rows: int
    erased_at: int = 0

    @property
    def payload_bytes(self) -> int:
        """Bytes of the reject summary and the body."""
        return len(self.rejects) + len(self.body)


class BadGroup(Exception):
    """Bytes that are no valid group. `offset` is the byte of the file at which they start."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


class MisplacedGroup(BadGroup):
    """A whole group header in a wrong place. An interrupted write cannot leave it there."""


class Erasure(NamedTuple):
    """What the log says of a record that has lost rows. Commitments have 32 bytes.

    Attributes:
        rows: how many are left.
        erased_at: the revision of the ERASE record.
        acknowledged, current: commitments to the payload as it was and as it is.
    """

    rows: int
    erased_at: int
    acknowledged: bytes
    current: bytes

    def to_bytes(self) -> bytes:
        """The bytes in the log, with their checksum."""
        rows, *others = self
        return _ERASURE.pack(rows, crc32c(_ERASURE.pack(rows, 0, *others)), *others)

    @classmethod
    def from_bytes(cls, memory: Buffer, at: int = 0) -> Erasure:
        """Reads the entry at a byte.

        Raises:
            ValueError: its checksum is wrong. An earlier version wrote 0, which is not compared.
        """
        rows, checksum, *others = _ERASURE.unpack_from(memory, at)
        made = cls(rows, *others)
        if checksum and checksum != crc32c(_ERASURE.pack(rows, 0, *others)):
            raise ValueError("the checksum of the entry of erased rows is wrong")
        return made


def align(n: int, to: int) -> int:
    """`n` rounded up to a multiple of `to`."""
    return n + -n % to


# ------------------------------------------------------------------------------------------- hashes


def default_hash_name() -> str:
    """The hash of a new log: BLAKE3 where the package is installed, else SHA-256."""
    return "sha256" if blake3 is None else "blake3"


def hash_function(name: str) -> Callable[..., Any]:
    """The function `f(data).digest()` of a hash.

    Raises LogError if the name is unknown or the package is missing.
    """
    if name == "sha256":
        return hashlib.sha256
    if name == "blake3" and blake3 is not None:
        return blake3.blake3
    missing = "needs the package blake3 (pip install blake3)" if name == "blake3" else "is unknown"
    raise LogError(f"the log's hash {name!r} {missing}")


def parts_of(body: Buffer | Sequence[Buffer]) -> list[Any]:
    """The pieces of the body as one-dimensional views of bytes."""
    pieces = body if isinstance(body, list | tuple) else (body,)
    return [piece if type(piece) is bytes else memoryview(piece).cast("B") for piece in pieces]


def commitment_of(
    new_hash: Callable[..., Any], salt: bytes, rejects: bytes, body: Buffer | Sequence[Buffer]
) -> bytes:
    """hash(salt ‖ u32 bytes of rejects ‖ rejects ‖ body), 32 bytes.

    Large payloads release the GIL.
    """
    parts = parts_of(body)
    head = b"".join((salt, LENGTH.pack(len(rejects)), rejects))
    if sum(map(len, parts)) <= _JOIN_BYTES_MAX:
        state = new_hash(b"".join((head, *parts)))
    else:
        state = new_hash(head)
        for part in parts:
            state.update(part)
    digest: bytes = state.digest()
    return digest


def first_previous(lineage: bytes) -> bytes:
    """The `previous` of a log's first record. It makes the chain cover the lineage."""
    return lineage.ljust(HASH_BYTES, b"\0")


_HASH_OF_ID = {number: name for name, number in HASH_IDS.items()}


def hash_name_of(hash_id: int) -> str:
    """The name of the hash with this number. Raises LogError for an unknown number."""
    if hash_id not in _HASH_OF_ID:
        raise LogError(f"hash {hash_id} in the log is of a later version of livefactor")
    return _HASH_OF_ID[hash_id]


def new_id() -> bytes:
    """A random log id."""
    return os.urandom(16)


def is_zero(piece: memoryview) -> bool:
    """Whether every byte is zero."""
    return not bytes(piece).rstrip(b"\0")


def nonzero_end(view: memoryview, start: int) -> int:
    """The offset after the last nonzero byte of `view[start:]`, or `start` if all are zero."""
    end = len(view)
    while end > start:
        step = min(len(_ZEROS), end - start)
        piece = view[end - step : end]
        if piece != _ZEROS[:step]:
            return end - step + len(bytes(piece).rstrip(b"\0"))
        end -= step
    return start


def is_earlier_layout(view: memoryview) -> bool:
    """Whether an earlier version wrote this segment. Its layout can no longer be read."""
    return bytes(view[EARLIER_MAGIC_AT : EARLIER_MAGIC_AT + len(MAGIC)]) == MAGIC
