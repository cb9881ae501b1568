"""Segments that a retention policy deleted: what the log says, and what it refuses."""

from __future__ import annotations

import pytest

from crash_io import CrashIO, crash_states
from livefactor_server.changes import show
from livefactor_server.log.following import Follower
from livefactor_server.log.gaps import Retained
from livefactor_server.log.store import Entry, Kind, Log, LogDamaged, LogGap
from logs import FOLDER, ROOT, append, body_of, new_log

SEGMENT_BYTES = 24 * 1024


def long_log() -> tuple[CrashIO, Log]:
    io = CrashIO(ROOT)
    log = new_log(io, segment_bytes=SEGMENT_BYTES)
    for _ in range(40):
        append(log, 3)
    assert len(log.segments) > 6
    return io, log


def note_for(log: Log, count: int) -> Retained:
    """The note that `count` segments after the first are deleted."""
    first, last = log.segments[1].first, log.segments[1 + count].first - 1
    before, behind = next(log.read(first)).previous, next(log.read(last + 1)).previous
    return Retained(first, last, before, behind, 100, bytes(32), False, {}, 1_700_000_000_000_000)


def record(log: Log, note: Retained) -> None:
    salt, body = bytes(16), note.to_body()
    entry = Entry(
        Kind.RETENTION, log.last_revision + 1, time_us=note.time_us, body=body, salt=salt,
        commitment=log.seal(salt, b"", body),
    )  # fmt: skip
    log.append([entry])


def shortened(count: int = 3) -> tuple[CrashIO, Log, Retained]:
    io, log = long_log()
    note = note_for(log, count)
    record(log, note)
    log.drop(note)
    return io, log, note


def test_what_is_left_is_read_and_what_is_gone_is_named() -> None:
    io, log, note = shortened()
    for opened in (log, Log.open(FOLDER, io, read_only=True)):
        assert (opened.gap.first, opened.gap.last) == (note.first, note.last)
        assert opened.gap.note == note
        for first in (note.last + 1, 100, 120):
            bodies = [bytes(each.body) for each in opened.read(first)][:-1]
            assert bodies == [body_of(revision) for revision in range(first, 121)]
        for first in (1, note.first, note.last):
            with pytest.raises(LogGap, match=f"{note.first} to {note.last} .* deleted on 2023-11-14"):
                list(opened.read(first))
        assert next(opened.read()).kind == Kind.SPEC
        assert "not in the log any more" in opened.lacks


def test_the_log_goes_on_and_is_shortened_again() -> None:
    io, log, _ = shortened(2)
    for _ in range(20):
        append(log, 3)
    second = note_for(log, 3)
    second = Retained(
        log.gap.first, second.last, log.gap.note.before, second.hash, 150, bytes(32), True, {}, 5
    )
    record(log, second)
    log.drop(second)
    append(log, 2)
    log.close()
    again = Log.open(FOLDER, io, segment_bytes=SEGMENT_BYTES, ahead=False)
    assert again.gap.note == second
    append(again, 2)
    revisions = [each.revision for each in again.read(second.last + 1)]
    assert revisions == list(range(second.last + 1, again.last_revision + 1))


def test_an_opening_from_a_snapshot_knows_the_gap_at_once_and_the_note_later() -> None:
    io, log, note = shortened()
    for _ in range(20):
        append(log, 3)
    opened = Log.open(FOLDER, io, read_only=True, since=log.last_revision)
    assert (opened.gap.first, opened.gap.last) == (note.first, note.last)
    assert opened.gap.note is None
    with pytest.raises(LogGap):
        list(opened.read(1))
    assert list(opened.check_earlier())
    assert opened.gap.note == note


def test_segments_that_are_put_back_make_the_log_whole() -> None:
    io, log = long_log()
    note = note_for(log, 3)
    record(log, note)
    saved = {each.path: bytes(io.live.contents[io.live.names[each.path]]) for each in log.segments[1:4]}
    log.drop(note)
    for path, data in saved.items():
        fd = io.open(path, create=True)
        io.live.contents[io.live.names[path]][:] = data
        io.close(fd)
    opened = Log.open(FOLDER, io, read_only=True)
    assert opened.gap is None and not opened.lacks
    assert [bytes(each.body) for each in opened.read(1)][:-1] == [body_of(r) for r in range(1, 121)]


def test_a_segment_that_no_record_names_is_damage() -> None:
    for number in (2, 4):
        io, log, _ = shortened(1)
        io.unlink(log.segments[number].path)
        with pytest.raises(LogDamaged, match="missing"):
            Log.open(FOLDER, io, read_only=True)
        opened = Log.open(FOLDER, io, read_only=True, since=120)
        with pytest.raises(LogDamaged, match="missing"):
            list(opened.check_earlier())
        assert [row.get("trouble") for row in show.rows(FOLDER, io=io)][-1] == "damaged"


@pytest.mark.parametrize("part", ["before", "hash", "first", "last"])
def test_a_note_that_does_not_fit_is_damage(part: str) -> None:
    io, log = long_log()
    good = note_for(log, 3)
    wrong = {
        "before": Retained(good.first, good.last, bytes(32), good.hash, 100, bytes(32), False),
        "hash": Retained(good.first, good.last, good.before, bytes(32), 100, bytes(32), False),
        "first": Retained(good.first + 1, good.last, good.before, good.hash, 100, bytes(32), False),
        "last": Retained(good.first, good.last - 1, good.before, good.hash, 100, bytes(32), False),
    }[part]
    record(log, wrong)
    log.drop(good)
    with pytest.raises(LogDamaged, match="missing"):
        Log.open(FOLDER, io, read_only=True)


def test_a_power_cut_at_any_step_leaves_a_log_that_opens() -> None:
    io, log = long_log()
    note, before = note_for(log, 3), log.last_revision
    io.initial, io.events = io.live.copy(), []
    record(log, note)
    io.ack(log.last_revision)
    log.drop(note)
    states, gaps = 0, set()
    for acked, image in crash_states(io, before, tears=1, seed=7):
        opened = Log.open(FOLDER, CrashIO(image), segment_bytes=SEGMENT_BYTES, ahead=False)
        assert opened.last_revision >= acked
        bodies = [bytes(each.body) for each in opened.read(note.last + 1)]
        assert bodies[: 120 - note.last] == [body_of(r) for r in range(note.last + 1, 121)]
        gaps.add(None if opened.gap is None else (opened.gap.first, opened.gap.last))
        if opened.last_revision > before:
            opened.drop(note)
            assert (opened.gap.first, opened.gap.last) == (note.first, note.last)
            append(opened, 1)
        states += 1
    assert states > 10 and None in gaps and (note.first, note.last) in gaps and len(gaps) > 2


def test_a_follower_goes_on_beside_a_deletion_and_refuses_to_pass_one() -> None:
    io, log = long_log()
    note = note_for(log, 3)
    ahead, behind = Follower(FOLDER, 100, io), Follower(FOLDER, 0, io)
    assert [each.revision for some in ahead.read(110) for each in some] == list(range(101, 111))
    assert [each.revision for some in behind.read(2) for each in some]
    record(log, note)
    log.drop(note)
    assert [each.revision for some in ahead.read(121) for each in some] == list(range(111, 122))
    with pytest.raises(LogGap):
        list(behind.read(121))


def test_the_gap_is_shown() -> None:
    io, _, note = shortened()
    rows = list(show.rows(FOLDER, io=io))
    troubles = [row for row in rows if "trouble" in row]
    assert [row["trouble"] for row in troubles] == ["deleted"]
    assert f"{note.first} to {note.last}" in troubles[0]["reason"]
    assert not show.is_damaged(troubles[0])
    assert rows[-1]["kind"] == "RETENTION" and f"{note.first} to {note.last}" in rows[-1]["change"]
