"""Reads and verifies many small groups in one call of compiled code.

`parsing.py` reads a group in Python, record by record. Here a kernel reads consecutive groups, as
long as nothing is unusual: the group is whole and in its place, no rows were erased, and the
payload of each record is short. At the first other group it stops, and `parsing.py` reads that one.
So all errors are found and worded in one place. The kernel accepts a group only after the same
checks: the header's checksum, the place, every commitment, every chain hash and the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_server.log.format import (
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    GROUP_VERSION,
    HASH_BYTES,
    HEAD_BYTES,
    HEADER_VERSION,
    MAGIC,
    NO_HASH,
    PRODUCER_BYTES_MAX,
    SALT_BYTES,
    GroupHead,
    Record,
)
from livefactor_server.log.hashing import SHORT_BYTES, crc32c_of, hash_short
from livefactor_server.log.parsing import read_group_head

RECORDS_MAX = 8192
"""Maximum number of records of one call."""

BYTES_MAX = 1 << 20
"""A call stops after the group that passes this number of bytes."""

KIND, PRODUCER, SEQUENCE, TIME, COUNT, REJECTS_AT, REJECTS, BODY, SALT_AT, GROUP_AT = range(10)
"""The columns of `Columns.fields`.

PRODUCER is a row of `Columns.producers`, TIME is in microseconds, COUNT is the number of rows,
REJECTS and BODY are bytes, and the body follows the rejects. The places (`_AT`) are bytes of
`Columns.memory`.
"""

_ID_AT, _ID_BYTES, _EPOCH, _SMALLEST = range(4)
_REVISION, _INCARNATION, _HASH_ID = range(3)
_GROUP_MAGIC = np.frombuffer(GROUP_MAGIC, np.uint8)
_MAGIC = np.frombuffer(MAGIC, np.uint8)

# Numba compiles a function again for every literal that it is called with, but not for these.
_START, _FOUR, _EIGHT = np.int64(0), np.int64(4), np.int64(8)
_SALT, _HASH, _HASHED, _CLEARED = np.int64(SALT_BYTES), np.int64(HASH_BYTES), np.int64(192), np.int64(72)
_PRODUCER_BYTES = 17
_WIDE = np.uint64


@compiled
def _u32(memory: Any, at: Any) -> Any:
    value = _WIDE(0)
    for i in range(4):
        value |= _WIDE(memory[at + i]) << _WIDE(8 * i)
    return value


@compiled
def _u64(memory: Any, at: Any) -> Any:
    value = _WIDE(0)
    for i in range(8):
        value |= _WIDE(memory[at + i]) << _WIDE(8 * i)
    return value


@compiled
def _put(out: Any, at: Any, value: Any) -> None:
    for i in range(8):
        out[at + i] = np.uint8((value >> _WIDE(8 * i)) & _WIDE(0xFF))


@compiled
def _copy(out: Any, at: Any, memory: Any, start: Any, size: Any) -> None:
    for i in range(size):
        out[at + i] = memory[start + i]


@compiled
def _clear(out: Any, start: Any, end: Any) -> None:
    for i in range(start, end):
        out[i] = 0


@compiled
def _equal(memory: Any, at: Any, expected: Any) -> Any:
    equal = True
    for i in range(expected.size):
        equal &= memory[at + i] == expected[i]
    return equal


@compiled
def _header_fits(memory: Any, at: Any, place: Any, cursor: Any, log_id: Any, chain: Any) -> Any:
    """Whether a group header at `memory[at:]` is valid and follows the cursor and the chain."""
    return (
        at + GROUP_HEADER_BYTES <= memory.size
        and _equal(memory, at, _GROUP_MAGIC)
        and crc32c_of(memory, at + 12, GROUP_HEADER_BYTES - 12) == _u32(memory, at + 8)
        and memory[at + 12] == GROUP_VERSION
        and memory[at + 13] == 0
        and memory[at + 14] == cursor[_HASH_ID]
        and _equal(memory, at + 16, log_id)
        and _u32(memory, at + 32) >= cursor[_INCARNATION]
        and _u64(memory, at + 40) == place
        and _u64(memory, at + 56) == cursor[_REVISION] + _WIDE(1)
        and _equal(memory, at + 88, chain)
    )


@compiled
def _read_producers(memory: Any, at: Any, end: Any, listed: Any, entries: Any) -> Any:
    """Fills `entries`, int64[256, 4]. Returns the byte after the padded list, or -1.

    Number 0 is no producer.
    """
    start = at
    for i in range(4):
        entries[0, i] = 0
    for number in range(1, listed + 1):
        if at + _PRODUCER_BYTES > end:
            return -1
        length = np.int64(memory[at + 16])
        entries[number, _EPOCH] = np.int64(_u64(memory, at))
        entries[number, _SMALLEST] = np.int64(_u64(memory, at + 8))
        entries[number, _ID_AT] = at + _PRODUCER_BYTES
        entries[number, _ID_BYTES] = length
        at += _PRODUCER_BYTES + length
        if length > PRODUCER_BYTES_MAX or at > end:
            return -1
    padded = at + (start - at) % 8
    if padded > end:
        return -1
    for i in range(at, padded):
        if memory[i]:
            return -1
    return padded


@compiled
def _same_producer(memory: Any, a: Any, b: Any) -> Any:
    same = a[_ID_BYTES] == b[_ID_BYTES] and a[_EPOCH] == b[_EPOCH]
    for i in range(a[_ID_BYTES] if same else 0):
        same &= memory[a[_ID_AT] + i] == memory[b[_ID_AT] + i]
    return same


@compiled
def _commit(memory: Any, row: Any, hash_id: Any, data: Any, words: Any, out: Any) -> None:
    """Writes the commitment to a record's payload to `out`. `row` is a row of `fields`."""
    salt_at, at = np.int64(row[SALT_AT]), np.int64(row[REJECTS_AT])
    payload = np.int64(row[REJECTS] + row[BODY])
    _copy(data, _START, memory, salt_at, _SALT)
    # The field has 4 bytes. The bytes of the payload overwrite the rest.
    _put(data, _SALT, row[REJECTS])
    size = _SALT + _FOUR + payload
    _copy(data, _SALT + _FOUR, memory, at, payload)
    _clear(data, size, size + _CLEARED)
    hash_short(hash_id, data, size, words, out)


@compiled
def _chain(
    memory: Any,
    row: Any,
    entry: Any,
    numbers: Any,
    previous: Any,
    commitment: Any,
    data: Any,
    words: Any,
    out: Any,
) -> None:
    """Writes the chain hash of a record to `out`. `numbers` are its revision and the hash id."""
    _clear(data, _START, _HASHED + _CLEARED)
    _copy(data, _START, _MAGIC, _START, _EIGHT)
    data[8] = HEADER_VERSION
    data[10] = np.uint8(row[KIND])
    data[11] = np.uint8(numbers[1])
    data[12] = np.uint8(entry[_ID_BYTES])
    _put(data, np.int64(16), numbers[0])
    _put(data, np.int64(24), _WIDE(entry[_EPOCH]))
    _put(data, np.int64(32), row[SEQUENCE])
    _put(data, np.int64(40), row[TIME])
    _put(data, np.int64(48), row[COUNT])
    _copy(data, np.int64(56), commitment, _START, _HASH)
    _copy(data, np.int64(88), previous, _START, _HASH)
    _copy(data, np.int64(120), memory, entry[_ID_AT], entry[_ID_BYTES])
    hash_short(np.int64(numbers[1]), data, _HASHED, words, out)


@compiled
def _read_heads(memory: Any, at: Any, heads: Any, end: Any, count: Any, entries: Any, fields: Any) -> Any:
    """Fills `fields[:count]` from the record heads at `memory[heads:]` of the group at `at`.

    Returns the byte after the payloads, or -1.
    """
    if heads + count * HEAD_BYTES > end:
        return -1
    payload, time = heads + count * HEAD_BYTES, _u64(memory, at + 72)
    for i in range(count):
        head, row = heads + i * HEAD_BYTES, fields[i]
        number = np.int64(memory[head + 1])
        rejects, body = _u32(memory, head + 8), _u32(memory, head + 12)
        size = np.int64(rejects + body)
        usual = memory[head + 2] == 0 and memory[head + 3] == 0 and number <= memory[at + 15]
        if not usual or SALT_BYTES + 4 + size > SHORT_BYTES or payload + size > end:
            return -1
        row[KIND], row[PRODUCER], row[COUNT] = _WIDE(memory[head]), _WIDE(number), _u32(memory, head + 4)
        row[SEQUENCE] = _WIDE(entries[number, _SMALLEST]) + _u32(memory, head + 16)
        since = np.int64(np.int32(np.uint32(_u32(memory, head + 20))))
        row[TIME] = time + _WIDE(since)
        row[REJECTS_AT], row[REJECTS], row[BODY] = _WIDE(payload), rejects, body
        row[SALT_AT], row[GROUP_AT] = _WIDE(head + 24), _WIDE(at)
        payload += size
    return payload


@compiled
def _read_group(
    memory: Any, at: Any, place: Any, cursor: Any, log_id: Any, chain: Any, entries: Any, fields: Any,
    hashes: Any, commitments: Any, data: Any, words: Any, numbers: Any,
) -> Any:  # fmt: skip
    """Reads the group at `memory[at:]`. Returns (records, bytes); records is 0 if it must stop."""
    if not _header_fits(memory, at, place, cursor, log_id, chain):
        return 0, 0
    count, size = np.int64(_u32(memory, at + 36)), np.int64(_u64(memory, at + 48))
    if count > fields.shape[0] or size < GROUP_HEADER_BYTES or size > memory.size - at:
        return 0, 0
    end = at + size
    heads = _read_producers(memory, at + GROUP_HEADER_BYTES, end, np.int64(memory[at + 15]), entries)
    if heads < 0:
        return 0, 0
    payload = _read_heads(memory, at, heads, end, count, entries, fields)
    if payload < 0:
        return 0, 0
    for i in range(payload, end):
        if memory[i]:
            return 0, 0
    numbers[1] = cursor[_HASH_ID]
    for i in range(count):
        row = fields[i]
        _commit(memory, row, np.int64(numbers[1]), data, words, commitments[i])
        numbers[0] = cursor[_REVISION] + _WIDE(i + 1)
        previous = hashes[i - 1] if i else chain
        entry = entries[np.int64(row[PRODUCER])]
        _chain(memory, row, entry, numbers, previous, commitments[i], data, words, hashes[i])
    if count == 0 or not _equal(memory, at + 120, hashes[count - 1]):
        return 0, 0
    return count, size


@compiled
def _read_groups(
    memory: Any, at: Any, origin: Any, cursor: Any, log_id: Any, chain: Any, entries: Any, fields: Any,
    hashes: Any, commitments: Any, producers: Any, data: Any, words: Any, numbers: Any,
) -> Any:  # fmt: skip
    """Reads groups from `memory[at:]` on. Returns (records, producers, the byte after them).

    `cursor`, uint64[3], and `chain`, uint8[32], move behind them.
    """
    start, done, known = at, 0, 0
    while done < fields.shape[0] and at - start < BYTES_MAX:
        count, size = _read_group(
            memory, at, _WIDE(origin + at), cursor, log_id, chain, entries, fields[done:], hashes[done:],
            commitments[done:], data, words, numbers,
        )  # fmt: skip
        if count == 0:
            break
        for i in range(done, done + count):
            entry = entries[np.int64(fields[i, PRODUCER])]
            if known == 0 or not _same_producer(memory, entry, producers[known - 1]):
                # Numba takes seconds to compile the assignment of an array.
                for column in range(4):
                    producers[known, column] = entry[column]
                known += 1
            fields[i, PRODUCER] = _WIDE(known - 1)
        cursor[_REVISION] += _WIDE(count)
        cursor[_INCARNATION] = _u32(memory, at + 32)
        _copy(chain, _START, hashes[done + count - 1], _START, _HASH)
        done, at = done + count, at + size
    return done, known, at


@dataclass(slots=True)
class Columns(Sequence[Record]):
    """Verified records of consecutive groups, as columns. An element is made when it is read.

    Attributes:
        path: the file.
        memory: bytes of the file, uint8[:], from byte `origin` on.
        revision: of the first record.
        previous: the chain hash before the first record, 32 bytes.
        fields: uint64[n, 10]. Each column has a constant of this module.
        hashes: chain hashes, uint8[n, 32].
        commitments: uint8[n, 32].
        producers: (id, epoch) of the rows that `fields` names.
    """

    path: Path
    memory: Any
    origin: int
    revision: int
    previous: bytes
    fields: np.ndarray
    hashes: np.ndarray
    commitments: np.ndarray
    producers: list[tuple[bytes, int]]
    _head: GroupHead | None = None

    def __len__(self) -> int:
        return len(self.fields)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Columns: ...

    def __getitem__(self, index: int | slice) -> Record | Columns:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "records are consecutive"
            return Columns(
                self.path, self.memory, self.origin, self.revision + start, self._previous(start),
                self.fields[start:stop], self.hashes[start:stop], self.commitments[start:stop],
                self.producers,
            )  # fmt: skip
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        return self._record(number)

    def _previous(self, number: int) -> bytes:
        return self.hashes[number - 1].tobytes() if number else self.previous

    def _record(self, number: int) -> Record:
        kind, listed, sequence, _, count, rejects_at, rejects, body, salt_at, group_at = self.fields[
            number
        ].tolist()
        producer, epoch = self.producers[listed]
        body_at = rejects_at + rejects
        return Record(
            kind=kind,
            revision=self.revision + number,
            producer=producer,
            epoch=epoch,
            sequence=sequence,
            time_us=int(self.fields[number, TIME].astype(np.int64)),
            count=count,
            rejects=self.memory[rejects_at:body_at].tobytes(),
            body=memoryview(self.memory)[body_at : body_at + body],
            salt=self.memory[salt_at : salt_at + SALT_BYTES].tobytes(),
            commitment=self.commitments[number].tobytes(),
            path=self.path,
            offset=self.origin + group_at,
            hash=self.hashes[number].tobytes(),
            previous=self._previous(number),
            group=self._group(group_at),
            rows=count,
        )

    def _group(self, at: int) -> GroupHead:
        if self._head is None or self._head.place != self.origin + at:
            self._head = read_group_head(memoryview(self.memory), at, self.origin + at, self.path)
        return self._head


class ColumnReader:
    """Reads groups as `Columns`. It keeps the memory that its calls need."""

    def __init__(self, log_id: bytes, hash_id: int) -> None:
        self._log_id, self._hash_id = np.frombuffer(log_id, np.uint8), hash_id
        self._entries, self._producers = np.zeros((256, 4), np.int64), np.zeros((RECORDS_MAX, 4), np.int64)
        self._fields = np.zeros((RECORDS_MAX, GROUP_AT + 1), np.uint64)
        self._hashes, self._commitments = np.zeros((2, RECORDS_MAX, HASH_BYTES), np.uint8)
        self._data, self._words = np.zeros(SHORT_BYTES + 80, np.uint8), np.zeros(80, np.uint32)
        self._numbers = np.zeros(2, np.uint64)

    def read(
        self,
        memory: memoryview,
        at: int,
        origin: int,
        revision: int,
        chain: bytes,
        incarnation: int,
        path: Path,
    ) -> tuple[Columns, int, int] | None:
        """Reads the groups at `memory[at:]` that follow `revision`, `chain` and `incarnation`.

        `memory` starts at byte `origin` of the file `path`.

        Returns the records, the byte of `memory` after them, and the incarnation of the last group.
        None if the first group is unusual or not whole.
        """
        data = np.frombuffer(memory, np.uint8)
        # Before revision 0 the cursor is at -1, and the kernel's arithmetic wraps.
        cursor = np.array([revision % 2**64, incarnation, self._hash_id], np.uint64)
        moved = np.frombuffer(chain, np.uint8).copy()
        count, known, end = _read_groups(
            data, at, origin, cursor, self._log_id, moved, self._entries, self._fields, self._hashes,
            self._commitments, self._producers, self._data, self._words, self._numbers,
        )  # fmt: skip
        if not count:
            return None
        producers = [
            (data[start : start + size].tobytes(), epoch)
            for start, size, epoch, _ in self._producers[:known].tolist()
        ]
        columns = Columns(
            path, data, origin, revision + 1, chain, self._fields[:count].copy(),
            self._hashes[:count].copy(), self._commitments[:count].copy(), producers,
        )  # fmt: skip
        return columns, end, int(cursor[_INCARNATION])


def compile_kernels() -> None:
    """Compiles the kernel, or loads it from Numba's cache."""
    ColumnReader(bytes(16), 1).read(memoryview(b""), 0, 0, 0, NO_HASH, 0, Path())
