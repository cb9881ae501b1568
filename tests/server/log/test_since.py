"""Opening a log from a snapshot's revision on: what is read, and what a later check finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_io import CrashIO
from livefactor_server.changes import show
from livefactor_server.log.store import Log, LogDamaged
from logs import FOLDER, ROOT, append, body_of, new_log

SEGMENT_BYTES = 24 * 1024


def many_segments() -> tuple[CrashIO, Log]:
    io = CrashIO(ROOT)
    log = new_log(io, segment_bytes=SEGMENT_BYTES)
    for _ in range(40):
        append(log, 3)
    log.close()
    assert len(log.segments) > 5
    return io, log


def since(io: CrashIO, revision: int) -> Log:
    return Log.open(FOLDER, io, read_only=True, since=revision)


def flip(io: CrashIO, path: Path, at: int) -> None:
    io.live.contents[io.live.names[path]][at] ^= 4


def test_earlier_segments_are_read_and_checked_later() -> None:
    io, whole = many_segments()
    for revision in (0, 20, 61, 119):
        log = since(io, revision)
        assert (log.last_revision, log.last_hash) == (whole.last_revision, whole.last_hash)
        assert (log.lineage, log.spec_body, log.hash_name) == (whole.lineage, b"spec", whole.hash_name)
        for first in (1, revision // 2, revision, 119):
            bodies = [bytes(record.body) for record in log.read(max(first, 1))]
            assert bodies == [body_of(r) for r in range(max(first, 1), 121)]
        passed = list(log.check_earlier())
        assert passed == sorted(passed) and bool(passed) == (revision >= whole.segments[1].first)
        assert log.size_bytes == whole.size_bytes


def test_the_log_goes_on_after_an_opening_from_a_snapshot() -> None:
    io, _ = many_segments()
    log = Log.open(FOLDER, io, since=118, segment_bytes=SEGMENT_BYTES, ahead=False)
    for _ in range(20):
        append(log, 3)
    assert len(list(log.check_earlier())) > 5
    log.close()
    assert [bytes(record.body) for record in Log.open(FOLDER, io).read(1)] == [
        body_of(r) for r in range(1, 181)
    ]


def test_damage_before_the_snapshot_does_not_stop_the_opening_and_is_found() -> None:
    for number in (0, 1, 3):
        io, whole = many_segments()
        segment = whole.segments[number]
        flip(io, segment.path, segment.end - 300)
        with pytest.raises(LogDamaged):
            since(io, 0)
        log = since(io, 118)
        assert [record.revision for record in log.read(118)] == [118, 119, 120]
        for find in (lambda log=log: list(log.check_earlier()), lambda log=log: list(log.read(1))):
            with pytest.raises(LogDamaged) as caught:
                find()
            assert caught.value.path == segment.path


def test_a_lost_segment_before_the_snapshot_is_found() -> None:
    io, whole = many_segments()
    io.unlink(whole.segments[2].path)
    with pytest.raises(LogDamaged, match="missing"):
        list(since(io, 118).check_earlier())


def test_earlier_segments_of_another_history_are_found() -> None:
    """The first part of the log is whole, but the rest does not follow it."""
    io, whole = many_segments()
    last = whole.segments[-1]
    kept = bytes(io.live.contents[io.live.names[last.path]])
    other_io, other = many_segments()
    assert other.segments[-1].path == last.path
    other_io.live.contents[other_io.live.names[last.path]] = bytearray(kept)
    with pytest.raises(LogDamaged, match="another log"):
        since(other_io, 119)


def test_a_damaged_spec_is_found_at_once() -> None:
    io, whole = many_segments()
    flip(io, whole.segments[0].path, 8192 + 200)
    with pytest.raises(LogDamaged):
        since(io, 118)


def test_the_log_is_shown_from_a_segment_that_has_only_a_tail_slot() -> None:
    io = CrashIO(ROOT)
    log = new_log(io, segment_bytes=SEGMENT_BYTES)
    while len(log.segments) == 1:
        append(log, 1)
    log.close()
    last = log.last_revision
    assert log.segments[-1].first == last
    assert [row["revision"] for row in show.rows(FOLDER, last, io=io)] == [last]
    assert since(io, last).last_revision == last
