"""Which thread applies a group, and how groups form while the APPLY stage is busy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engine_rig import SPEC, Rig, batch, replayed_root
from livefactor.wire import columns as wire
from livefactor_server.engine.engine import SMALL_WORK_MAX
from livefactor_server.engine.handover import Handover
from livefactor_server.engine.intake import LITTLE_WORK, WAIT_WORK_MAX
from livefactor_server.engine.submission import Submission
from livefactor_server.rpc import decode

WAIT_S = 120.0


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def rows_for(work: int) -> int:
    """Return the number of events that have more than this work."""
    return work // SPEC.cost_of_event + 1


def applying_thread(rig: Rig, body: bytes) -> str:
    """Push a batch, and return the name of the thread that answers it."""
    names: list[str] = []
    answered = threading.Event()

    def reply(item: Submission) -> None:
        names.append(threading.current_thread().name)
        answered.set()

    request = decode.UpdateRequest("", b"", 0, 0, wire.INTERACTIONS, body)
    change, rejects = decode.change_from_wire(request, SPEC, 65_536)
    rig.engine.submit(Submission(change, body, b"", 0, 0, rejects, rig.log.seal, reply))
    assert answered.wait(WAIT_S)
    return names[0]


def watched_groups(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list to which each append to the log adds its number of records."""
    sizes: list[int] = []
    append = rig.log.append

    def counted(entries: Sequence[object]) -> list[bytes]:
        sizes.append(len(entries))
        return append(entries)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.log, "append", counted)
    return sizes


def until(condition: object, what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def test_a_small_group_takes_one_thread_and_a_large_one_two(rig: Rig) -> None:
    assert applying_thread(rig, batch(1, 1)) == "log-m"
    assert applying_thread(rig, batch(2, rows_for(SMALL_WORK_MAX))) == "apply-m"
    assert applying_thread(rig, batch(3, 1)) == "log-m"


def test_little_batches_gather_while_a_short_group_is_applied(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = watched_groups(rig, monkeypatch)
    with rig.engine.gate.reading():
        large = rig.push_async(batch(1, rows_for(SMALL_WORK_MAX)))
        until(lambda: rig.log.last_revision == 1, "the large batch is not logged")
        small = [rig.push_async(batch(2 + number, 1)) for number in range(5)]
        time.sleep(0.05)
        assert sizes == [1]
    for replies in (large, *small):
        replies.get(timeout=WAIT_S)
    assert sizes == [1, 5]
    assert rig.root() == replayed_root(tmp_path)


@pytest.mark.parametrize(
    ("ahead", "behind"),
    [(WAIT_WORK_MAX, 1), (SMALL_WORK_MAX, LITTLE_WORK)],
    ids=["a little batch behind a long group", "a larger batch behind a short group"],
)
def test_the_log_goes_on_while_a_group_is_applied(rig: Rig, ahead: int, behind: int) -> None:
    with rig.engine.gate.reading():
        first = rig.push_async(batch(1, rows_for(ahead)))
        until(lambda: rig.log.last_revision == 1, "the first batch is not logged")
        second = rig.push_async(batch(2, rows_for(behind)))
        until(lambda: rig.log.last_revision == 2, "the second batch is not logged beside it")
        assert rig.engine.revision == 0
    assert [replies.get(timeout=WAIT_S).result.revision for replies in (first, second)] == [1, 2]


def test_a_handover_counts_what_is_unfinished_and_limits_it() -> None:
    handover: Handover[str] = Handover(1)
    assert handover.is_idle and handover.work == 0
    handover.put("first", 7)
    assert not handover.is_idle and handover.work == 7
    put = threading.Thread(target=handover.put, args=("second", 2))
    put.start()
    assert handover.get() == "first"
    put.join(0.05)
    assert put.is_alive() and not handover.is_idle
    handover.finish(7)
    put.join(WAIT_S)
    assert handover.work == 2
    waiting = threading.Thread(target=handover.wait_until_idle)
    waiting.start()
    assert handover.get() == "second"
    handover.end()
    assert handover.get() is None
    waiting.join(0.05)
    assert waiting.is_alive()
    handover.finish(2)
    waiting.join(WAIT_S)
    assert not waiting.is_alive() and handover.is_idle and handover.work == 0
