"""`livefactor log show` shows records, and where a log ends or is damaged.

It never shows a traceback.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from livefactor.wire import columns as wire
from livefactor_server.changes import Rejects, encode_rejects
from livefactor_server.changes import show as log_show
from livefactor_server.log.store import Entry, Kind, Log, LogMissing

SMALL = 16 * 1024


def entry(log: Log, revision: int, body: bytes, rejects: bytes = b"") -> Entry:
    salt, time_us = bytes([revision]) * 16, 1_700_000_000_000_000
    sealed = log.seal(salt, rejects, body)
    return Entry(
        Kind.INTERACTIONS, revision, b"shop", 2, revision + 100, time_us, 3, rejects, body, salt, sealed
    )


def append(log: Log, count: int, size: int = 20) -> None:
    first = log.last_revision + 1
    log.append([entry(log, revision, b"x" * size) for revision in range(first, first + count)])


def test_show_has_a_row_for_each_record(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"the spec")
    append(log, 3)
    rejects = encode_rejects(Rejects(2, ((0, 1), (4, 1))), bytes(32))
    body = wire.encode_interactions([1, 2, 3], [4, 5, 6], values=[1, 1, 1])
    log.append([entry(log, 4, body, rejects)])
    log.close()
    rows = list(log_show.rows(tmp_path / "log"))
    assert [row["revision"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(set(row) == set(log_show.COLUMNS) for row in rows)
    assert rows[4] == {
        "revision": 4,
        "kind": "INTERACTIONS",
        "producer": "shop",
        "epoch": 2,
        "sequence": 104,
        "time": "2023-11-14T22:13:20.000Z",
        "rows": 3,
        "rejected": 2,
        "bytes": len(rejects) + len(body),
        "segment": f"{0:020d}.log",
        "offset": next(log.read(4)).offset,
        "hash": log.last_hash.hex(),
        "change": "events with values",
    }
    # The body is not a spec, so the row describes no change.
    assert rows[0]["change"] is None
    assert [row["revision"] for row in log_show.rows(tmp_path / "log", 2, 2)] == [2, 3]
    lines = list(log_show.plain_lines(rows))
    assert len(lines) == 6
    assert lines[0].split() == list(log_show.COLUMNS)
    assert lines[5].split()[-4:] == [log.last_hash.hex()[:16], "events", "with", "values"]
    assert lines[1].split()[-1] == "?"


def test_show_starts_in_a_later_segment(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s", segment_bytes=SMALL, ahead=False)
    for _ in range(40):
        append(log, 1, 3000)
    log.close()
    expected = {record.revision: record.hash.hex() for record in log.read()}
    # The command does not read the segments before the start.
    log.segments[0].path.write_bytes(bytes(SMALL))
    shown = list(log_show.rows(tmp_path / "log", 30))
    assert [(row["revision"], row["hash"]) for row in shown] == [(r, expected[r]) for r in range(30, 41)]


def test_show_says_where_the_damage_is(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s", segment_bytes=SMALL, ahead=False)
    for _ in range(10):
        append(log, 1, 3000)
    log.close()
    record = next(log.read(4))
    data = bytearray(record.path.read_bytes())
    data[record.offset + 400] ^= 1
    record.path.write_bytes(data)
    rows = list(log_show.rows(tmp_path / "log"))
    assert [row["revision"] for row in rows[:-1]] == [0, 1, 2, 3]
    assert log_show.is_damaged(rows[-1])
    assert (rows[-1]["segment"], rows[-1]["offset"]) == (record.path.name, record.offset)
    assert "payload" in list(log_show.plain_lines(rows))[-1]
    assert list(log_show.plain_lines(rows))[-1].startswith("damaged: ")
    log.segments[0].path.write_bytes(data[:4095])
    (only,) = log_show.rows(tmp_path / "log")
    assert log_show.is_damaged(only)
    assert only["offset"] == 4095


def test_show_tells_a_tail_from_damage(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s")
    append(log, 1, 3000)
    append(log, 1, 3000)
    log.close()
    record = next(log.read(2))
    data = bytearray(record.path.read_bytes())
    data[record.offset : record.offset + 512] = bytes(512)
    record.path.write_bytes(data)
    *rows, last = log_show.rows(tmp_path / "log")
    assert [row["revision"] for row in rows] == [0, 1]
    assert last["trouble"] == "unsynced tail"
    assert last["offset"] == record.offset
    assert not log_show.is_damaged(last)
    with pytest.raises(LogMissing):
        list(log_show.rows(tmp_path / "nothing"))
