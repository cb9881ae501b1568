"""Power cuts on a simulated disk.

The log recovers from every state that a power cut could leave. It recovers a prefix of its records
that contains every acknowledged record. The same check must catch each planted bug below. Otherwise
it would prove nothing.
"""

from __future__ import annotations

import errno
import os
import random
from functools import cache
from pathlib import Path

import pytest

from crash_io import Ack, CrashIO, FileSync, Image, Write, crash_states
from livefactor_server.log import parsing as log_parsing
from livefactor_server.log import tail as log_tail
from livefactor_server.log.store import Entry, Kind, Log, LogError, LogFailed, LogMissing
from livefactor_server.log.tail import read_slots
from tally import Tally, amount

SEED = int(os.environ.get("LIVEFACTOR_SEED", "20240607"))
FOLDER = Path("/data/model")
SEGMENT_BYTES = 16 * 1024
ROOT = Image({Path("/"): -1, Path("/data"): -1})
TEARS = 12


@cache
def body_of(revision: int) -> bytes:
    """Return a body of 0 to about 5,000 bytes. Every sector of it depends on the revision.

    Of eight revisions, four have small bodies, so that groups grow in the last block.
    """
    size_max = 90 if revision % 8 < 4 else 5000
    return random.Random(revision).randbytes((revision * 1237) % size_max)


def entry(log: Log, revision: int) -> Entry:
    salt = random.Random(-revision).randbytes(16)
    rejects = b"r" * (revision % 3)
    body = body_of(revision)
    commitment = log.seal(salt, rejects, body)
    return Entry(Kind.INTERACTIONS, revision, b"shop", 1, revision, 5, 7, rejects, body, salt, commitment)


def append(log: Log, io: CrashIO, count: int) -> None:
    first = log.last_revision + 1
    log.append([entry(log, revision) for revision in range(first, first + count)])
    io.ack(log.last_revision)


def write_a_log(io: CrashIO, seed: int = 0) -> None:
    """Create a log, write records, and restart it once.

    The log has groups with one record and with several records, groups that grow, marks, several
    segments, and a group that is larger than a segment. `seed` determines the sizes of the groups.
    The sizes for 0 are fixed.
    """
    chance = random.Random(seed)
    counts = [chance.randint(1, 4) for _ in range(4)] if seed else [1, 2, 3, 1]
    log = Log.create(FOLDER, b"spec", io=io, segment_bytes=SEGMENT_BYTES, ahead=False)
    io.ack(0)
    for count in (1, 1, *counts, 12):
        append(log, io, count)
    for _ in range(4):
        append(log, io, 1)
        log.mark()
    log.close()
    log = Log.open(FOLDER, io, segment_bytes=SEGMENT_BYTES, ahead=False)
    append(log, io, 2)
    log.close()


def check_recovery(image: Image, acked: int, goes_on: bool) -> None:
    """Open the log on `image` and check it.

    It must hold a prefix at or past `acked` with the right bytes. If `goes_on` is true, it must
    also accept new records.
    """
    io = CrashIO(image)
    try:
        log = Log.open(FOLDER, io, segment_bytes=SEGMENT_BYTES, ahead=False)
    except LogMissing:
        assert acked < 0, "an acknowledged log is gone"
        log = Log.create(FOLDER, b"spec", io=io, segment_bytes=SEGMENT_BYTES, ahead=False)
    last = log.last_revision
    assert last >= acked, f"revision {acked} was acknowledged, {last} recovered"
    check_contents(log, last)
    if not goes_on:
        return
    append(log, io, 2)
    log.close()
    again = Log.open(FOLDER, io, read_only=True)
    assert again.tail is None
    check_contents(again, last + 2)


def check_contents(log: Log, last: int) -> None:
    records = list(log.read())
    assert [record.revision for record in records] == list(range(last + 1))
    assert bytes(records[0].body) == b"spec"
    for record in records[1:]:
        assert bytes(record.body) == body_of(record.revision)


def check_all(io: CrashIO, acked: int = -1, tears: int = TEARS) -> int:
    """Check every state that the disk's record allows, and return the number of states.

    Raises:
        AssertionError, LogError: a state is wrong. The check stops at the first one.
    """
    states = 0
    for known, image in crash_states(io, acked, tears, SEED):
        check_recovery(image, known, states % 3 == 0)
        states += 1
    return states


@pytest.mark.torture
@pytest.mark.parametrize(
    ("disks", "tears", "at_least"),
    [
        # TORTURE_DISKS sets the number of disks, of which the first has no short writes.
        ((disks := amount("DISKS", 2)), 24, 500 * disks),
        pytest.param(40, 60, 20_000, marks=pytest.mark.long),
    ],
)
def test_every_power_cut_recovers_what_was_acknowledged(
    disks: int, tears: int, at_least: int, tally: Tally
) -> None:
    states = 0
    for seed in range(disks):
        io = CrashIO(ROOT, short=random.Random(SEED + seed) if seed else None)
        write_a_log(io, seed)
        states += check_all(io, tears=tears)
    print(f"{states} distinct power-cut states, seed {SEED}")
    tally.add("states of a simulated disk", states)
    assert states > at_least


@pytest.mark.torture
@pytest.mark.parametrize(("tails", "at_least"), [(8, 500), pytest.param(200, 10_000, marks=pytest.mark.long)])
def test_a_power_cut_during_recovery_recovers_too(tails: int, at_least: int, tally: Tally) -> None:
    io = CrashIO(ROOT)
    write_a_log(io)
    torn = [(acked, image) for acked, image in crash_states(io, -1, 2, SEED) if has_tail(image)]
    chosen = random.Random(SEED).sample(torn, min(len(torn), tails))
    states = 0
    for acked, image in chosen:
        again = CrashIO(image)
        Log.open(FOLDER, again, segment_bytes=SEGMENT_BYTES, ahead=False).close()
        states += check_all(again, acked, 2)
    print(f"{states} states of power cuts inside recovery, seed {SEED}")
    tally.add("states of a simulated disk", states)
    assert states > at_least


def has_tail(image: Image) -> bool:
    try:
        return Log.open(FOLDER, CrashIO(image), read_only=True).tail is not None
    except LogMissing:
        return False


def test_a_torn_tail_is_saved_and_cleared() -> None:
    io = CrashIO(ROOT)
    write_a_log(io)
    acked, image = next((a, i) for a, i in crash_states(io, -1, 2, SEED) if a > 3 and has_tail(i))
    again = CrashIO(image)
    tail = Log.open(FOLDER, again, read_only=True).tail
    assert tail is not None
    before = bytes(again.map(tail.path))[tail.start : tail.end]
    log = Log.open(FOLDER, again, segment_bytes=SEGMENT_BYTES, ahead=False)
    broken = [name for name in again.names(FOLDER) if name.endswith(".broken")]
    assert broken == [f"{tail.path.name}.{tail.start}.0.broken"]
    assert before in bytes(again.map(FOLDER / broken[0]))
    assert log.last_revision >= acked
    slot = read_slots(again.map(tail.path))[0]
    assert (slot.incarnation, slot.synced) == (2, log.segments[-1].end)
    append(log, again, 1)
    incarnations = [record.group.incarnation for record in log.read()]
    assert incarnations == sorted(incarnations)
    assert incarnations[-1] == incarnations[0] + 1


# ------------------------------------------------------------------------------------------------
# Planted bugs.


class SoundUntilCreated(CrashIO):
    """A disk whose planted bug starts after the creation of the log."""

    @property
    def created(self) -> bool:
        return any(isinstance(event, Ack) for event in self.events)


class NoSync(SoundUntilCreated):
    def fdatasync(self, fd: int) -> None:
        if not self.created:
            super().fdatasync(fd)


class NoFolderSync(SoundUntilCreated):
    def fsync_dir(self, folder: Path) -> None:
        if not self.created:
            super().fsync_dir(folder)


class AckBeforeSync(SoundUntilCreated):
    """A disk on which a sync returns at once and happens at the next operation.

    So the acknowledgement comes before the sync.
    """

    late: FileSync | None = None

    def fdatasync(self, fd: int) -> None:
        self.happen()
        if self.created:
            self.late = FileSync(self._fds[fd])
        else:
            super().fdatasync(fd)

    def _do(self, event: object) -> None:
        self.happen()
        super()._do(event)

    def happen(self) -> None:
        if self.late is not None:
            self.events.append(self.late)
            self.late = None


@pytest.mark.torture
@pytest.mark.parametrize(
    ("disk", "plant"),
    [
        (NoSync, "no sync of files"),
        (NoFolderSync, "no sync of folders"),
        (AckBeforeSync, "answer before the sync"),
    ],
)
def test_the_check_catches_a_missing_sync(disk: type[CrashIO], plant: str, tally: Tally) -> None:
    io = disk(ROOT)
    write_a_log(io)
    with pytest.raises((AssertionError, LogError)):
        check_all(io)
    tally.catch(plant)


class LosingSync(CrashIO):
    """A disk with one failing sync, which drops what was written, as Linux does.

    A second sync then reports success, although the bytes are gone.
    """

    def fdatasync(self, fd: int) -> None:
        fails = bool(self.sync_errors and self.sync_errors[0])
        try:
            super().fdatasync(fd)
        finally:
            if fails:
                number = self._fds[fd]
                self.events = [e for e in self.events if not (isinstance(e, Write) and e.file == number)]


class SyncAgain(LosingSync):
    """The planted bug: it syncs again after an error."""

    def fdatasync(self, fd: int) -> None:
        try:
            super().fdatasync(fd)
        except OSError:
            super().fdatasync(fd)


def fail_a_sync(io: CrashIO) -> None:
    """Append a group whose sync fails."""
    log = Log.create(FOLDER, b"spec", io=io, segment_bytes=SEGMENT_BYTES, ahead=False)
    io.initial, io.events = io.live.copy(), []
    io.sync_errors.append(errno.EIO)
    try:
        append(log, io, 2)
    except LogFailed:
        with pytest.raises(LogFailed):
            append(log, io, 1)
    check_all(io, 0)


@pytest.mark.torture
def test_nothing_is_synced_again_after_an_error(tally: Tally) -> None:
    io = LosingSync(ROOT)
    fail_a_sync(io)
    assert not any(isinstance(event, Ack | FileSync) for event in io.events)
    with pytest.raises(AssertionError):
        fail_a_sync(SyncAgain(ROOT))
    tally.catch("sync again after an error")


def test_the_check_catches_unchecked_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    io = CrashIO(ROOT)
    write_a_log(io)
    monkeypatch.setattr(log_parsing, "check_chain", lambda *_: None)
    with pytest.raises(AssertionError):
        check_all(io)


def test_the_check_catches_a_tail_that_is_rewritten_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_tail, "SLOTS", 1)
    io = CrashIO(ROOT)
    write_a_log(io)
    with pytest.raises((AssertionError, LogError)):
        check_all(io)
