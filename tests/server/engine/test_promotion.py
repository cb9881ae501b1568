"""A model gets another spec while it serves.

From the revision of the SWITCH record on, its state is the one that the new spec gives over the
whole log, live, after a restart, in a replay and in an audit. A refusal changes nothing.
"""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SEGMENT_BYTES, Rig, batch, replayed_root, state_root
from livefactor.wire import columns as wire
from livefactor.wire.scoring import ScoreQuery
from livefactor_kernels.spec.model import Limits
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import ReplayError
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.engine.readers import Reader
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.log.store import Kind, Log, LogFull
from livefactor_server.model import spec_codec
from livefactor_server.snapshots import audit, replay
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.statuses import Refused
from server_process import wait_until

SMALL = Limits(users_max=5000, items_max=5000, value_abs_max=10.0, error_max=4.0)
OLD = preset("purchases_sgd", k=8, limits=SMALL)
NEW = preset("clicks", k=8, limits=SMALL)
BODY = spec_codec.encode(NEW)


@pytest.fixture
def rig(tmp_path: Path):
    made = Rig(tmp_path / "model", OLD)
    yield made
    made.close()


def followed(folder: Path, spec_body: bytes, until: int, backend: str = "cpu") -> bytes:
    """The root hash of the state that a spec gives over the log up to a revision."""
    with Log.open(folder / "log", read_only=True) as log:
        state = replay.origin(log, backend, spec_body)
        return state_root(replay.follow(state, log, until))


def reopened(rig: Rig, into: Path) -> Rig:
    """An engine on a copy of the folder as it is now, as a crash would leave it."""
    shutil.copytree(rig.folder, into)
    return Rig(into)


def keeper_of(rig: Rig) -> Keeper:
    return Keeper(rig.engine, replay.snapshot_store(rig.folder), KeeperSettings(0, 3))


def query() -> ScoreQuery:
    ids = np.arange(20, dtype=np.uint64)
    return ScoreQuery("m", None, 0, ids[:3], "candidates", ids, None, 0, False, False)


def test_a_switch_gives_the_state_of_the_new_spec_over_the_whole_log(rig: Rig, tmp_path: Path) -> None:
    epoch = rig.open(b"p").epoch
    for number in range(1, 31):
        rig.push(batch(number), b"p", epoch, number)
    before = Reader(rig.engine)
    told: list[tuple[int, int]] = []
    revision = rig.engine.promote(NEW, progress=lambda at, last: told.append((at, last)))
    assert revision == 32 == rig.engine.revision and told[-1] == (31, 31)
    assert rig.root() == followed(rig.folder, BODY, revision)
    # A reader that began before the switch answers at the last revision before it.
    assert (before.score(query()).revision, Reader(rig.engine).score(query()).revision) == (31, 32)
    assert Reader(rig.engine).score(query()).spec_id == int(spec_codec.id_of(BODY), 16)
    assert before.score(query()).spec_id == int(spec_codec.id_of(spec_codec.encode(OLD)), 16)
    # A retry of an old batch gets its first answer, and the producer goes on.
    again = rig.push(batch(30), b"p", epoch, 30)
    assert again.duplicate and again.revision == 31
    rig.push(batch(31), b"p", epoch, 31)
    assert rig.root() == followed(rig.folder, BODY, 33) == replayed_root(rig.folder)
    assert replayed_root(rig.folder, "reference") == rig.root()
    crashed = reopened(rig, tmp_path / "crashed")
    assert crashed.root() == rig.root() and crashed.engine.state.spec_body == BODY
    crashed.close()


def test_the_old_state_leaves_the_memory(rig: Rig) -> None:
    rig.push(batch(1))
    old = weakref.ref(rig.engine.state.backend)
    rig.engine.promote(NEW)
    wait_until(lambda: gc.collect() >= 0 and old() is None, "the end of the old state")


def test_every_revision_has_the_state_of_its_spec(rig: Rig) -> None:
    keeper = keeper_of(rig)
    third = replace(NEW, k=16)
    specs = {0: spec_codec.encode(OLD)}
    for spec in (NEW, third, OLD):
        for number in range(3):
            rig.push(batch(rig.engine.revision + number))
        keeper.take()
        specs[rig.engine.promote(spec)] = spec_codec.encode(spec)
        rig.push(batch(7))
    keeper.take()
    assert dict(rig.log.switches) == {at: body for at, body in specs.items() if at}
    report = audit.replay_model(rig.folder)
    assert report.good and len(report.snapshots) == 3 and report.root_hash == rig.root()
    for manifest in replay.snapshot_store(rig.folder).list():
        in_force = specs[max(at for at in specs if at <= manifest.revision)]
        assert manifest.spec == in_force == rig.log.spec_at(manifest.revision)
        assert manifest.root_hash == followed(rig.folder, in_force, manifest.revision)


def test_an_audit_finds_a_snapshot_that_has_not_the_spec_in_force(rig: Rig) -> None:
    rig.push(batch(1))
    with Log.open(rig.folder / "log", read_only=True) as log:
        other = replay.follow(replay.origin(log, "cpu", BODY), log)
    replay.snapshot_store(rig.folder).take(freeze_idle("m", other, rig.log.hash_name))
    assert not audit.replay_model(rig.folder).good


def test_a_snapshot_of_a_challenger_is_a_start(rig: Rig) -> None:
    for number in range(10):
        rig.push(batch(number))
    with Log.open(rig.folder / "log", read_only=True) as log:
        challenger = replay.follow(replay.origin(log, "cpu", BODY), log, 8)
    replay.challenger_store(rig.folder).take(freeze_idle("m", challenger, rig.log.hash_name))
    starts: list[int] = []

    def start(body: bytes):
        state = replay.start_of(rig.folder, rig.log, "cpu", body)
        starts.append(state.revision)
        return state

    revision = rig.engine.promote(NEW, start)
    assert starts == [8] and rig.root() == followed(rig.folder, BODY, revision)


def test_a_restart_uses_the_snapshots_of_the_new_spec_alone(rig: Rig, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    keeper = keeper_of(rig)
    rig.push(batch(1))
    keeper.take()
    revision = rig.engine.promote(NEW)
    # The SWITCH record is durable, and no snapshot has the new spec: the whole log is replayed.
    crashed = reopened(rig, tmp_path / "crashed")
    assert crashed.engine.revision == revision and crashed.root() == rig.root()
    crashed.close()
    taken = keeper.take()
    rig.push(batch(2))
    crashed = reopened(rig, tmp_path / "later")
    assert crashed.root() == rig.root() and f"snapshot {taken.snapshot_id} loaded" in caplog.text
    crashed.close()


def test_a_start_that_reads_the_end_of_the_log_finds_the_spec(rig: Rig) -> None:
    rig.push(batch(1))
    rig.engine.promote(NEW)
    while len(rig.log.segments) < 3:
        rig.push(batch(2, 400))
    info = keeper_of(rig).take()
    rig.push(batch(3))
    with Log.open(
        rig.folder / "log", read_only=True, since=info.revision, segment_bytes=SEGMENT_BYTES
    ) as log:
        assert log.switches_from > 2 and not log.switches
        state = replay.recover(rig.folder, log, "cpu")
        assert state.spec_body == BODY and state_root(state) == rig.root()
        # The keeper reads the rest by and by.
        assert list(log.check_earlier()) and list(log.switches) == [2] and not log.switches_from


def test_a_start_without_a_snapshot_of_the_new_spec_replays_the_unread_part(rig: Rig) -> None:
    while len(rig.log.segments) < 3:
        rig.push(batch(rig.engine.revision, 400))
    info = keeper_of(rig).take()
    revision = rig.engine.promote(NEW)
    with Log.open(rig.folder / "log", read_only=True, since=info.revision) as log:
        assert log.switches_from and list(log.switches) == [revision]
        assert state_root(replay.recover(rig.folder, log, "cpu")) == rig.root()


def test_a_crash_before_the_record_leaves_the_old_spec(rig: Rig, tmp_path: Path) -> None:
    for number in range(3):
        rig.push(batch(number))
    crashed: list[Rig] = []

    def progress(at: int, last: int) -> None:
        if not crashed:
            crashed.append(reopened(rig, tmp_path / "crashed"))

    rig.engine.promote(NEW, progress=progress)
    (before,) = crashed
    assert before.engine.state.spec == spec_codec.decode(spec_codec.encode(OLD))
    assert before.engine.revision == 3 and before.root() == followed(rig.folder, before.log.spec_body, 3)
    before.close()


def test_updates_and_reads_go_on_during_a_promotion(rig: Rig) -> None:
    for number in range(20):
        rig.push(batch(number))
    stop = threading.Event()
    failures: list[BaseException] = []
    sent: list[int] = []

    def push() -> None:
        number = 100
        while not stop.is_set():
            sent.append(rig.push(batch(number, 20)).revision)
            number += 1

    def read() -> None:
        newest = 0
        while not stop.is_set():
            answer = Reader(rig.engine).score(query())
            assert answer.revision >= newest
            newest = answer.revision

    def guarded(work) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (push, read, read)]
    for thread in threads:
        thread.start()
    revisions = [rig.engine.promote(spec) for spec in (NEW, OLD, NEW)]
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures and not set(sent) & set(revisions)
    assert [kind for kind in (record.kind for record in rig.log.read()) if kind == Kind.SWITCH] == [8] * 3
    assert rig.root() == followed(rig.folder, BODY, rig.engine.revision)


def test_what_the_new_spec_does_not_accept_refuses_the_switch(rig: Rig, tmp_path: Path) -> None:
    users, items = np.arange(40, dtype=np.uint64), np.arange(40, dtype=np.uint64)
    rig.push(wire.encode_interactions(users, items, np.full(40, 3, np.float32), np.full(40, 5, np.float32)))
    root, revision = rig.root(), rig.engine.revision
    small = replace(SMALL, users_max=30)
    for spec, reason in (
        (OLD, "the one in force"),
        (replace(NEW, limits=small), "the model has 40 users, and the spec allows 30"),
        (replace(NEW, limits=replace(SMALL, value_abs_max=1.0)), "revision 1 has a value of 3"),
        (replace(NEW, limits=replace(SMALL, weight_max=4.0)), "revision 1 has a weight of 5"),
    ):
        with pytest.raises(Refused, match=reason) as refused:
            rig.engine.promote(spec)
        assert refused.value.code.name == "FAILED_PRECONDITION"
    rig.push(batch(1))
    with pytest.raises(Refused, match="revision 2 has events without values"):
        rig.engine.promote(preset("ratings", k=8, limits=SMALL))
    assert rig.engine.revision == revision + 1 and not rig.log.switches
    assert rig.root() == replayed_root(rig.folder) != root


def test_a_batch_that_waits_is_checked_against_the_new_spec(rig: Rig) -> None:
    users = np.arange(4, dtype=np.uint64)
    body = wire.encode_interactions(users, users, np.array([1, 5, 1, 1], np.float32))
    rig.push(wire.encode_interactions(users, users))
    narrow = replace(NEW, limits=replace(SMALL, value_abs_max=1.0))
    old_spec = rig.engine.state.spec
    rig.engine.promote(narrow)
    from livefactor_server.changes import NO_REJECTS, InteractionsChange
    from livefactor_server.engine.submission import Submission

    change, rejects = InteractionsChange.from_wire(body, old_spec, 100)
    assert rejects is NO_REJECTS
    done = threading.Event()
    late = Submission(change, body, b"", 0, 0, rejects, rig.log.seal, lambda _: done.set(), spec=old_spec)
    rig.engine.submit(late)
    assert done.wait(20) and late.result.accepted == 3 and late.result.rejects.listed == ((1, 2),)
    assert rig.root() == replayed_root(rig.folder)


def test_a_full_disk_and_a_caller_who_leaves_change_nothing(rig: Rig) -> None:
    rig.push(batch(1))
    root = rig.root()

    class Left(Exception):
        pass

    def leave(*_: int) -> None:
        raise Left

    with pytest.raises(Left):
        rig.engine.promote(NEW, progress=leave)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.log, "append", lambda _: (_ for _ in ()).throw(LogFull("full")))
        with pytest.raises(Refused, match="disk: it is full"):
            rig.engine.promote(NEW)
    assert rig.root() == root and rig.engine.memory_bytes["promotion"] == 0
    rig.push(batch(2))
    assert rig.engine.promote(NEW) == 3


def test_an_error_of_the_new_spec_leaves_the_model(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.push(batch(1))

    def broken(*arguments: object, **others: object) -> None:
        if threading.current_thread() is rig.engine._log_thread:
            raise ReplayError("broken")
        replay.follow(*arguments, **others)

    monkeypatch.setattr("livefactor_server.engine.promotion.follow", broken)
    with pytest.raises(Refused, match="it failed"):
        rig.engine.promote(NEW)
    assert rig.push(batch(2)).revision == 2 and rig.engine.state.spec.loss == OLD.loss


def test_a_failed_sync_of_the_record_stops_the_writes(rig: Rig) -> None:
    rig.push(batch(1))

    def fail(at: int, last: int) -> None:
        rig.io.sync_error = True

    with pytest.raises(Refused, match="writes are stopped after a fail"):
        rig.engine.promote(NEW, progress=fail)
    assert rig.engine.failure is not None and rig.engine.state.spec.loss == OLD.loss
    rig.io.sync_error = False


def test_the_memory_of_both_states_is_limited(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "model", OLD, EngineSettings(memory_bytes_max=128 << 10))
    rig.push(batch(1))
    with pytest.raises(Refused, match="MiB more than memory_bytes_max"):
        rig.engine.promote(NEW)
    rig.engine._parts.admission.memory_bytes_max = 8 << 20
    free = rig.engine._parts.admission.free_bytes
    seen: list[int] = []
    rig.engine.promote(
        NEW, progress=lambda *_: seen.append(rig.engine._parts.admission.free_bytes) if not seen else None
    )
    assert seen[0] < free
    rig.close()


def test_one_promotion_at_a_time_and_a_drain_ends_it(rig: Rig) -> None:
    rig.push(batch(1))
    waiting, go_on = threading.Event(), threading.Event()
    refused: list[Refused] = []

    def progress(*_: int) -> None:
        waiting.set()
        go_on.wait(20)

    def promote() -> None:
        try:
            rig.engine.promote(NEW, progress=progress)
        except Refused as refusal:
            refused.append(refusal)

    thread = threading.Thread(target=promote)
    thread.start()
    assert waiting.wait(20)
    with pytest.raises(Refused, match="another one is in progress"):
        rig.engine.promote(NEW)
    drain = threading.Thread(target=rig.engine.drain)
    drain.start()
    while not rig.engine._draining:
        pass
    go_on.set()
    thread.join(20)
    drain.join(20)
    assert [each.text for each in refused] == ["server: draining"]
    with Log.open(rig.folder / "log", read_only=True) as log:
        assert not log.switches
    # The fixture drains once more.
    rig.close = lambda: None  # type: ignore[method-assign]
