"""The log: the bytes that it writes, the hash chain, and reading."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livefactor_server.log import format as log_format
from livefactor_server.log.crc32c import crc32c, crc32c_fallback
from livefactor_server.log.disk import BLOCK_BYTES
from livefactor_server.log.segments import SPARE_NAME
from livefactor_server.log.store import Entry, Kind, Log, LogDamaged, LogError, LogFailed, LogMissing, Record
from livefactor_server.log.tail import pack_slot, place_of, read_slots

LINEAGE = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
SMALL = 16 * 1024
HASHES = ["sha256", "blake3"] if log_format.blake3 else ["sha256"]


def entry(log: Log, revision: int, body: object = b"body", rejects: bytes = b"", **fields: object) -> Entry:
    salt = hashlib.sha256(str(revision).encode()).digest()[:16]
    entry = Entry(
        Kind.INTERACTIONS, revision, b"shop", 2, revision + 100, 1_700_000_000_000_000, 3, rejects, body, salt
    )
    entry.commitment = log.seal(salt, rejects, body)
    for name, value in fields.items():
        setattr(entry, name, value)
    return entry


def append(log: Log, count: int, size: int = 20) -> list[bytes]:
    first = log.last_revision + 1
    return log.append([entry(log, r, bytes([r % 256]) * size) for r in range(first, first + count)])


@pytest.fixture(params=["blake3", "sha256"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    if request.param == "blake3":
        pytest.importorskip("blake3")
    return Log.create(tmp_path / "log", b"the spec", lineage=LINEAGE, hash_name=request.param)


# ------------------------------------------------------------------------------------------------
# Round trip and bytes.


def test_every_field_reads_back(log: Log, tmp_path: Path) -> None:
    column = np.arange(1000, dtype=np.uint64)
    bodies = [b"", b"x", bytearray(b"yy"), memoryview(b"zzz"), column, [column, b"tail", memoryview(b"")]]
    flat = [b"", b"x", b"yy", b"zzz", column.tobytes(), column.tobytes() + b"tail"]
    entries = [entry(log, r, body, b"r" * r) for r, body in enumerate(bodies, 1)]
    hashes = log.append(entries)
    assert (log.last_revision, log.last_hash) == (6, hashes[-1])
    log.close()
    log = Log.open(tmp_path / "log")
    assert (log.last_revision, log.last_hash, log.lineage, log.spec_body) == (
        6,
        hashes[-1],
        LINEAGE,
        b"the spec",
    )
    records = list(log.read())
    assert (records[0].kind, records[0].revision, bytes(records[0].body)) == (Kind.SPEC, 0, b"the spec")
    for record, given_entry, body, chain in zip(records[1:], entries, flat, hashes, strict=True):
        assert bytes(record.body) == body
        assert record.hash == chain
        for name in (
            "kind",
            "revision",
            "producer",
            "epoch",
            "sequence",
            "time_us",
            "count",
            "rejects",
            "salt",
            "commitment",
        ):
            assert getattr(record, name) == getattr(given_entry, name), name
    assert [record.previous for record in records[1:]] == [record.hash for record in records[:-1]]


def test_the_bytes_are_those_of_the_tables(tmp_path: Path) -> None:
    """Read the log with a reader that follows the tables in log/format.py and log/tail.py.

    The reader uses none of the log's code except the CRC, which has its own test.
    """
    log = Log.create(tmp_path / "log", b"the spec", lineage=LINEAGE, hash_name="sha256")
    log.append([entry(log, 1, b"abc", b"rr"), entry(log, 2, b"d" * 5000)])
    log.append([entry(log, 3, b"", producer=b"", epoch=0, sequence=0)])
    log.close()
    file = log.segments[0].path.read_bytes()
    slots = [file[start : start + 4096] for start in (0, 4096)]
    assert all(slot[:8] == b"lvf-tail" for slot in slots)
    assert all(struct.unpack_from("<I", slot, 8)[0] == crc32c_fallback(slot[12:]) for slot in slots)
    newest = max(slots, key=lambda slot: struct.unpack_from("<Q", slot, 16)[0])
    used, counter, base, synced, incarnation, segment = struct.unpack_from("<IQQQII", newest, 12)
    assert newest is slots[counter % 2]
    assert (incarnation, segment, base % 4096) == (1, len(file) // 4096, 0)
    assert not any(newest[64 + used :]) and not any(file[base:])
    data = file[:base] + newest[64 : 64 + used]
    at, previous, revision, log_id = 8192, LINEAGE.bytes + bytes(16), 0, newest[48:64]
    expected = {0: (b"", b"the spec"), 1: (b"rr", b"abc"), 2: (b"", b"d" * 5000), 3: (b"", b"")}
    while at < len(data):
        assert data[at : at + 8] == b"lvfgroup"
        assert struct.unpack_from("<I", data, at + 8)[0] == crc32c_fallback(data[at + 12 : at + 152])
        fields = struct.unpack_from("<HBB16sIIQQQQqI", data, at + 12)
        version, hash_id, producers, found_id, incarnation, records, place, size = fields[:8]
        first, mark, time_us, segment = fields[8:]
        assert (version, hash_id, found_id, incarnation, segment) == (2, 1, log_id, 1, len(file) // 4096)
        assert (place, first, mark) == (at, revision, max(revision - 1, 0))
        assert data[at + 88 : at + 120] == previous
        last, cursor, listed = data[at + 120 : at + 152], at + 152, [(0, 0, b"")]
        for _ in range(producers):
            epoch, sequence, length = struct.unpack_from("<QQB", data, cursor)
            listed.append((epoch, sequence, data[cursor + 17 : cursor + 17 + length]))
            cursor += 17 + length
        cursor += -(cursor - at) % 8
        payload = cursor + 40 * records
        for number in range(records):
            kind, producer, flags, count, rejects, body, above, since, salt = struct.unpack_from(
                "<BBHIIIIi16s", data, cursor + 40 * number
            )
            assert (data[payload : payload + rejects], data[payload + rejects :][:body]) == expected[revision]
            committed = salt + struct.pack("<I", rejects) + data[payload : payload + rejects + body]
            epoch, sequence, name = listed[producer]
            hashed = struct.pack(
                "<8sHBBB3xQQQqQ32s32s64s8x", b"lvfactor", 1, kind, 1, len(name), revision, epoch,
                sequence + above if producer else 0, time_us + since, count,
                hashlib.sha256(committed).digest(), previous, name,
            )  # fmt: skip
            assert flags == 0
            previous, revision = hashlib.sha256(hashed).digest(), revision + 1
            payload += rejects + body
        assert previous == last
        assert not any(data[payload : at + size])
        at += size
    assert (at, revision, previous) == (len(data), 4, log.last_hash)
    assert synced == at - size


def test_grouping_is_not_in_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two logs are equal only if the salt of the spec and the id of the log are not random.
    monkeypatch.setattr(os, "urandom", lambda size: bytes(range(size)))
    chains = []
    for name, groups in (("a", [1] * 6), ("b", [6]), ("c", [2, 4])):
        log = Log.create(tmp_path / name, b"s", lineage=LINEAGE)
        chains.append([next(log.read()).hash])
        for count in groups:
            chains[-1] += append(log, count)
            log.mark()
        log.close()
    assert chains[0] == chains[1] == chains[2]
    assert len(set(chains[0])) == 7


def test_records_are_packed_tightly(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s")
    before = log.size_bytes
    append(log, 1000, 36)
    assert (log.size_bytes - before) / 1000 < 80
    assert {record.offset for record in log.read(1)} == {before}


@pytest.mark.parametrize("marked", [False, True])
def test_single_records_share_a_group(tmp_path: Path, marked: bool) -> None:
    """Each commit has one record with one event. `marked`: the mark of an idle log follows each."""
    log = Log.create(tmp_path / "log", b"s")
    before = log.size_bytes
    for _ in range(300):
        append(log, 1, 26)
        if marked:
            log.mark()
    assert (log.size_bytes - before) / 300 < 80
    assert [record.revision for record in log.read(150)] == list(range(150, 301))
    log.close()
    log = Log.open(tmp_path / "log")
    assert [bytes(record.body) for record in log.read(1)] == [bytes([r % 256]) * 26 for r in range(1, 301)]
    assert len({record.offset for record in log.read()}) < 20


def test_a_group_grows_only_by_what_its_fields_can_hold(tmp_path: Path) -> None:
    """A new producer, an earlier sequence, a far time and a large sequence are read back."""
    log = Log.create(tmp_path / "log", b"s")
    fields = [
        {},
        {"producer": b"other"},
        {"sequence": 5},
        {"time_us": 1_700_000_000_000_000 + 2**31},
        {"time_us": 1_700_000_000_000_000 - 2**31},
        {"sequence": 2**40},
        {"producer": b"", "epoch": 0, "sequence": 0},
    ]
    given = [entry(log, revision, b"b" * revision, **each) for revision, each in enumerate(fields, 1)]
    for each in given:
        log.append([each])
    log.close()
    records = list(Log.open(tmp_path / "log", read_only=True).read(1))
    names = ("producer", "epoch", "sequence", "time_us", "commitment")
    assert [[getattr(record, name) for name in names] for record in records] == [
        [getattr(each, name) for name in names] for each in given
    ]


def test_a_mark_says_that_the_last_group_was_synced(log: Log) -> None:
    append(log, 3)
    size, chain, path = log.size_bytes, log.last_hash, log.segments[-1].path
    assert read_slots(memoryview(path.read_bytes()))[0].synced < size
    log.mark()
    log.mark()
    assert (log.size_bytes, log.last_revision, log.last_hash) == (size, 3, chain)
    assert read_slots(memoryview(path.read_bytes()))[0].synced == size
    append(log, 1)
    assert next(log.read(4)).group.mark == 3


@given(st.binary(max_size=700))
def test_both_checksums_agree(data: bytes) -> None:
    assert crc32c(data) == crc32c_fallback(data)


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == crc32c_fallback(b"123456789") == 0xE3069283
    with pytest.raises(ValueError, match="4096"):
        crc32c_fallback(bytes(4097))


@given(st.lists(st.binary(max_size=3000), max_size=4), st.binary(max_size=50), st.sampled_from(HASHES))
def test_a_commitment_does_not_depend_on_the_pieces(pieces: list[bytes], rejects: bytes, name: str) -> None:
    new_hash = log_format.hash_function(name)
    whole = b"".join(pieces)
    expected = new_hash(b"s" * 16 + struct.pack("<I", len(rejects)) + rejects + whole).digest()
    assert log_format.commitment_of(new_hash, b"s" * 16, rejects, pieces) == expected
    assert log_format.commitment_of(new_hash, b"s" * 16, rejects, whole) == expected


def test_an_erased_payload_leaves_the_chain_whole(log: Log, tmp_path: Path) -> None:
    """Erasing changes the content, the salt and the current commitment.

    The hashes and the original commitment stay.
    """
    append(log, 3, 400)
    log.mark()
    log.close()
    before = {record.revision: record for record in log.read(mapped=False)}
    group, path = before[2].group, before[2].path
    slot = read_slots(memoryview(path.read_bytes()))[0]
    data = bytearray(slot.content)
    heads = 152 + 24
    payloads = heads + 3 * 40
    kept, salt = b"what is left", os.urandom(16)
    current = log_format.commitment_of(log_format.hash_function(log.hash_name), salt, b"", kept)
    struct.pack_into("<H", data, heads + 40 + 2, 1)
    struct.pack_into("<I", data, heads + 40 + 12, len(kept))
    data[heads + 40 + 24 : heads + 80] = salt
    erasure = struct.pack("<I4xQ32s32s", 1, 3, before[2].commitment, current)
    data[payloads:] = (
        erasure + data[payloads : payloads + 400] + kept + data[payloads + 800 : payloads + 1200]
    )
    data += bytes(group.size - len(data))
    with path.open("r+b") as file:
        block = bytearray(4096)
        for counter in (slot.counter + 1, slot.counter + 2):
            pack_slot(memoryview(block), slot._replace(counter=counter, content=bytes(data)))
            file.seek(place_of(counter))
            file.write(block)
    after = {record.revision: record for record in Log.open(tmp_path / "log", read_only=True).read()}
    assert [r.hash for r in after.values()] == [r.hash for r in before.values()]
    erased = after[2]
    assert (bytes(erased.body), erased.count, erased.rows, erased.erased_at) == (b"what is left", 3, 1, 3)
    assert (erased.commitment, erased.salt) == (before[2].commitment, salt)
    assert bytes(after[3].body) == bytes(before[3].body)


# ------------------------------------------------------------------------------------------------
# Opening and creating.


def test_a_log_is_created_once(tmp_path: Path) -> None:
    with pytest.raises(LogMissing):
        Log.open(tmp_path / "log")
    Log.create(tmp_path / "log", b"s").close()
    with pytest.raises(FileExistsError):
        Log.create(tmp_path / "log", b"s")


def test_an_unfinished_creation_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / f"{5:020d}.log").write_bytes(bytes(12288))
    (folder / SPARE_NAME).write_bytes(b"x")
    with pytest.raises(LogMissing):
        Log.open(folder)
    log = Log.create(folder, b"s", base_revision=7)
    append(log, 2)
    log.close()
    assert [path.name for path in folder.iterdir()] == [f"{7:020d}.log"]
    log = Log.open(folder)
    assert log.last_revision == 9
    assert [r.revision for r in log.read()] == [7, 8, 9]


def test_creation_never_overwrites_a_damaged_log(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s")
    append(log, 3)
    log.mark()
    log.close()
    path = log.segments[0].path
    data = bytearray(path.read_bytes())
    data[8192 + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogDamaged):
        Log.create(tmp_path / "log", b"s")
    assert path.read_bytes() == data


def test_each_opening_raises_the_incarnation(log: Log, tmp_path: Path) -> None:
    for _ in range(3):
        append(log, 1)
        log.close()
        log = Log.open(tmp_path / "log")
    assert [record.group.incarnation for record in log.read()] == [1, 1, 2, 3]
    assert read_slots(memoryview(log.segments[-1].path.read_bytes()))[0].incarnation == 4


def test_reading_only_changes_nothing(log: Log, tmp_path: Path) -> None:
    append(log, 3)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "log").iterdir()}
    reader = Log.open(tmp_path / "log", read_only=True)
    assert len(list(reader.read())) == 4
    for attempt in (lambda: append(reader, 1), reader.mark):
        with pytest.raises(LogFailed, match="read-only"):
            attempt()
    reader.close()
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "log").iterdir()
    } == files


def test_opening_reports_progress(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s", segment_bytes=SMALL)
    for _ in range(40):
        append(log, 1, 1000)
    log.close()
    told: list[tuple[int, int]] = []
    Log.open(tmp_path / "log", progress=lambda done, total: told.append((done, total))).close()
    assert told == sorted(told)
    assert len({total for _, total in told}) == 1
    assert told[-1][1] * 0.8 < told[-1][0] <= told[-1][1]


def test_a_missing_hash_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("blake3")
    Log.create(tmp_path / "fast", b"s", hash_name="blake3").close()
    monkeypatch.setattr(log_format, "blake3", None)
    with pytest.raises(LogError, match="pip install blake3"):
        Log.open(tmp_path / "fast")
    log = Log.create(tmp_path / "new", b"s")
    assert log.hash_name == "sha256"
    with pytest.raises(LogError, match="unknown"):
        Log.create(tmp_path / "other", b"s", hash_name="md5")


# ------------------------------------------------------------------------------------------------
# Appending and reading.


def test_wrong_groups_are_refused_and_nothing_is_written(log: Log) -> None:
    size = log.size_bytes
    for wrong in (
        [],
        [entry(log, 2)],
        [entry(log, 1), entry(log, 1)],
        [entry(log, 1), entry(log, 3)],
        [entry(log, 1, producer=b"p" * 65)],
        [entry(log, 1, salt=bytes(32))],
    ):
        with pytest.raises(ValueError, match=r"expected|at least one|at most 64|has 16 bytes"):
            log.append(wrong)
    assert log.size_bytes == size
    assert log.failed is None
    append(log, 1)


def test_segments_follow_each_other(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s", segment_bytes=SMALL, ahead=False)
    for size in (1000, 1000, 50_000, 10, 1000, 12_000, 12_000):
        append(log, 2, size)
    log.close()
    log = Log.open(tmp_path / "log", segment_bytes=SMALL)
    assert all(segment.path.name == f"{segment.first:020d}.log" for segment in log.segments)
    assert len(log.segments) >= 4
    assert max(segment.size for segment in log.segments) > 100_000
    for start in range(15):
        for mapped in (True, False):
            assert [record.revision for record in log.read(start, mapped)] == list(range(start, 15))
    assert [record.revision for record in log.read(15)] == []


def test_a_segment_without_a_revision_gives_way_to_a_larger_one(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s", segment_bytes=3 * BLOCK_BYTES, ahead=False)
    append(log, 1)
    log.mark()
    append(log, 1, 20_000)
    log.mark()
    append(log, 2, 30_000)
    log.close()
    log = Log.open(tmp_path / "log", segment_bytes=3 * BLOCK_BYTES)
    assert [record.revision for record in log.read()] == [0, 1, 2, 3, 4]
    names = [segment.path.name for segment in log.segments]
    assert len(set(names)) == len(names)


def test_bodies_outlive_the_log(log: Log) -> None:
    append(log, 3, 5000)
    bodies = [record.body for record in log.read(1)]
    log.close()
    assert [bytes(body) for body in bodies] == [bytes([r]) * 5000 for r in (1, 2, 3)]
    assert all(body.readonly for body in bodies)


def test_reading_starts_inside_a_large_segment(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s")
    for _ in range(30):
        append(log, 5, 60_000)
    for revision in (1, 77, 150):
        assert [r.revision for r in log.read(revision)] == list(range(revision, 151))
    log.close()
    again = Log.open(tmp_path / "log", read_only=True)
    for revision in (1, 77, 150):
        assert [r.revision for r in again.read(revision)] == list(range(revision, 151))


def test_reading_beside_appending(tmp_path: Path) -> None:
    """Readers always see a whole prefix, through the same log and through the folder."""
    log = Log.create(tmp_path / "log", b"s", segment_bytes=64 * 1024)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            append(log, 3, 3000)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        end, rounds = time.monotonic() + 1.5, 0
        while time.monotonic() < end or rounds < 5:
            low = log.last_revision
            inside = check_prefix(log.read())
            outside = Log.open(tmp_path / "log", read_only=True)
            assert low <= inside <= outside.last_revision
            assert check_prefix(outside.read()) == outside.last_revision
            rounds += 1
    finally:
        stop.set()
        thread.join()
    log.close()


def check_prefix(records: object) -> int:
    last = -1
    for record in records:
        assert isinstance(record, Record)
        assert record.revision == last + 1
        assert record.revision == 0 or bytes(record.body) == bytes([record.revision % 256]) * 3000
        last = record.revision
    return last


def test_the_next_segment_is_made_ahead(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s", segment_bytes=1 << 20)
    spare = tmp_path / "log" / SPARE_NAME
    append(log, 1, 100)
    assert not spare.exists()
    append(log, 1, 600_000)
    end = time.monotonic() + 60
    while not (spare.exists() and spare.stat().st_blocks * 512 >= 1 << 20):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert spare.stat().st_size == 1 << 20
    inode = spare.stat().st_ino
    append(log, 1, 600_000)
    assert log.segments[-1].path.stat().st_ino == inode
    assert log.segments[-1].first == 3
    log.close()
    assert not spare.exists()
    assert Log.open(tmp_path / "log", read_only=True).last_revision == 3
