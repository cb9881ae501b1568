"""Groups that compiled code reads.

It reads what `parsing.py` reads, and it leaves every unusual or damaged group to it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crash_io import CrashIO
from livefactor_server.log import format as log_format
from livefactor_server.log import walk
from livefactor_server.log.columns import Columns
from livefactor_server.log.crc32c import crc32c
from livefactor_server.log.hashing import BLAKE3, SHA256, SHORT_BYTES, crc32c_of, hash_short
from livefactor_server.log.store import Entry, Kind, Log
from logs import FOLDER, ROOT

HASHES = {"sha256": SHA256, "blake3": BLAKE3} if log_format.blake3 else {"sha256": SHA256}
BLOCK_EDGES = [0, 1, 46, 55, 56, 63, 64, 65, 119, 120, 128, 192, 1023, SHORT_BYTES]


@pytest.mark.parametrize("size", BLOCK_EDGES)
def test_the_hashes_are_those_of_the_libraries(size: int) -> None:
    raw = os.urandom(size)
    data, out = np.zeros(SHORT_BYTES + 80, np.uint8), np.zeros(32, np.uint8)
    data[:size] = np.frombuffer(raw, np.uint8)
    for name, hash_id in HASHES.items():
        hash_short(hash_id, data, size, np.zeros(80, np.uint32), out)
        assert out.tobytes() == log_format.hash_function(name)(raw).digest(), name
    assert int(crc32c_of(data, 0, size)) == crc32c(raw)


producers = st.sampled_from([(b"", 0), (b"shop", 1), (b"shop", 2), (b"p" * 64, 2**40)])
records = st.tuples(
    producers,
    st.integers(0, 3),
    st.binary(max_size=60) | st.sampled_from([bytes(1004), bytes(1005), bytes(3000)]),
    st.binary(max_size=40),
    st.integers(0, 2**32 - 1),
    st.integers(-(2**40), 2**40),
    st.sampled_from([Kind.INTERACTIONS, Kind.LABELS, Kind.OPEN_PRODUCER]),
)


def entries_of(log: Log, group: list[tuple]) -> list[Entry]:
    entries = []
    for revision, ((producer, epoch), step, body, rejects, count, since, kind) in enumerate(
        group, log.last_revision + 1
    ):
        salt = hashlib.sha256(str(revision).encode()).digest()[:16]
        sequence = 2**50 + revision * step if producer else 0
        sealed = log.seal(salt, rejects, body)
        entries.append(
            Entry(
                kind, revision, producer, epoch, sequence, 10**15 + since, count, rejects, body, salt, sealed
            )
        )
    return entries


def slow(groups: list[walk.Group]) -> list[object]:
    return [plain(record) for group in groups for record in group.records]


def plain(record: log_format.Record) -> object:
    fields = {name: getattr(record, name) for name in log_format.Record.__slots__}
    return {**fields, "body": bytes(record.body)}


@pytest.mark.parametrize("hash_name", HASHES)
@settings(max_examples=40, deadline=None)
@given(groups=st.lists(st.lists(records, min_size=1, max_size=6), min_size=1, max_size=8))
def test_compiled_code_and_python_read_the_same_records(hash_name: str, groups: list[list[tuple]]) -> None:
    io = CrashIO(ROOT)
    log = Log.create(FOLDER, b"spec", io=io, hash_name=hash_name, segment_bytes=64 * 1024, ahead=False)
    for group in groups:
        log.append(entries_of(log, group))
    log.close()
    fast = [plain(record) for record in Log.open(FOLDER, io, read_only=True).read()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk.ColumnReader, "read", lambda *_: None)
        assert fast == [plain(record) for record in Log.open(FOLDER, io, read_only=True).read()]
    assert len(fast) == 1 + sum(map(len, groups))


def small_log(io: CrashIO) -> Log:
    log = Log.create(FOLDER, b"spec", io=io, segment_bytes=64 * 1024, ahead=False)
    for _ in range(200):
        log.append(entries_of(log, [((b"shop", 1), 1, os.urandom(26), b"", 1, 0, Kind.INTERACTIONS)]))
    log.close()
    return log


def test_small_groups_come_as_columns_and_can_be_cut() -> None:
    io = CrashIO(ROOT)
    small_log(io)
    log = Log.open(FOLDER, io, read_only=True)
    whole = [plain(record) for record in log.read()]
    for first in (1, 60, 61, 150, 200):
        parts = list(log.read_groups(first))
        assert all(isinstance(part, Columns) for part in parts)
        assert [plain(record) for part in parts for record in part] == whole[first:]
        assert plain(parts[-1][-1]) == whole[-1]
        assert [plain(record) for record in parts[0][:3]] == whole[first : first + 3]
        with pytest.raises(IndexError):
            parts[0][len(parts[0])]


def test_no_flipped_bit_passes_the_compiled_reader() -> None:
    """Compiled code stops at the damaged group. It never returns a changed record."""
    io = CrashIO(ROOT)
    log = small_log(io)
    group = next(log.read(1)).group
    data = io.live.contents[io.live.names[log.segments[0].path]]
    chain = next(log.read(1)).previous
    reader = walk.ColumnReader(group.log_id, group.hash_id)
    place = group.place

    def passes(image: bytes) -> int:
        found = reader.read(memoryview(image), 0, place, 0, chain, 1, Path())
        return 0 if found is None else len(found[0])

    block = bytes(data[place : place + group.size])
    assert passes(block) == group.records
    for bit in range(0, len(block) * 8, 3):
        image = bytearray(block)
        image[bit // 8] ^= 1 << bit % 8
        assert passes(bytes(image)) == 0, bit
    for size in range(0, len(block), 7):
        assert passes(block[:size]) == 0
