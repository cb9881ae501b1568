"""Reading a log that is being written."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from livefactor_server.log import following
from livefactor_server.log.following import Follower
from livefactor_server.log.store import Log, LogDamaged, LogMissing
from logs import append, body_of, new_log


def bodies(follower: Follower, until: int) -> list[tuple[int, bytes]]:
    return [(r.revision, bytes(r.body)) for records in follower.read(until) for r in records]


def expected(first: int, last: int) -> list[tuple[int, bytes]]:
    return [(r, body_of(r)) for r in range(first, last + 1)]


@pytest.mark.parametrize("size", [None, 40])
def test_passes_read_each_record_once_whatever_its_group(tmp_path: Path, size: int | None) -> None:
    """Small groups grow in the last block, large ones fill several segments."""
    log, rng = new_log(folder=tmp_path / "log"), random.Random(3)
    follower, read = Follower(tmp_path / "log", after=0), []
    for _ in range(30):
        append(log, rng.randint(1, 9), size)
        if rng.random() < 0.3:
            log.mark()
        until = rng.randint(follower.revision, log.last_revision)
        read += [(r.revision, r.hash) for records in follower.read(until) for r in records]
        assert follower.revision == until
    read += [(r.revision, r.hash) for records in follower.read(log.last_revision) for r in records]
    assert read == [(record.revision, record.hash) for record in log.read(1)]
    log.close()


def test_a_follower_begins_with_the_spec_or_behind_a_revision(tmp_path: Path) -> None:
    log = new_log(folder=tmp_path / "log")
    for _ in range(200):
        append(log, 3)
    assert len(log.segments) > 2
    whole = Follower(tmp_path / "log")
    first = next(whole.read(0))
    assert [bytes(record.body) for record in first] == [b"spec"]
    assert bodies(whole, 600) == expected(1, 600)
    assert bodies(Follower(tmp_path / "log", after=431), 600) == expected(432, 600)
    log.close()


def test_a_follower_beside_a_writing_thread_reads_what_was_written(tmp_path: Path) -> None:
    log, last = new_log(folder=tmp_path / "log"), 600
    synced, failures = threading.Semaphore(0), []

    def write() -> None:
        rng = random.Random(5)
        try:
            while log.last_revision < last:
                append(log, min(rng.randint(1, 5), last - log.last_revision))
                synced.release()
        except BaseException as error:
            failures.append(error)
            raise

    writer = threading.Thread(target=write)
    writer.start()
    follower, read = Follower(tmp_path / "log", after=0), []
    while follower.revision < last:
        assert synced.acquire(timeout=60)
        read += bodies(follower, log.last_revision)
    writer.join()
    assert not failures and read == expected(1, last)
    log.close()


def test_a_promised_revision_that_is_missing_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PASS_REST_S", 0.0)
    log = new_log(folder=tmp_path / "log")
    append(log, 5)
    log.close()
    follower = Follower(tmp_path / "log", after=0)
    assert bodies(follower, 5) == expected(1, 5)
    with pytest.raises(LogDamaged, match="revision 6 is synced, but the log ends at revision 5"):
        bodies(follower, 6)
    with pytest.raises(LogMissing):
        Follower(tmp_path / "nothing")


def test_a_follower_changes_nothing(tmp_path: Path) -> None:
    log = new_log(folder=tmp_path / "log")
    append(log, 5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    bodies(Follower(tmp_path / "log", after=0), 5)
    assert {path.name: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before
    log.close()
    assert Log.open(tmp_path / "log").last_revision == 5
