"""Forgetting users and items: the state, the log, the evidence, and crashes in every stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SEGMENT_BYTES, Rig, batch, state_root
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor_server.changes import LabelsChange, OpenProducerChange, show
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.hosting import backup
from livefactor_server.hosting.encrypting import encrypt
from livefactor_server.hosting.forgetting import forgetter as forgetting
from livefactor_server.hosting.forgetting import job as jobs
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.log import sealing
from livefactor_server.log.disk import FileIO
from livefactor_server.log.sealing import Key
from livefactor_server.log.store import Log
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots import erasures as reports
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.erasures import Report, learned_root
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import recover, snapshot_store
from livefactor_server.snapshots.store import root_hash_of
from livefactor_server.statuses import Refused
from tally import Tally

PRODUCER = b"shop"
SUBJECTS = Subjects(users=(7, 11), items=(5,))
CANARY, NAME = 0x1122334455667788, "Erika Mustermann"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = rig_at(tmp_path / "data" / "models" / "m")
    yield made
    made.close()


def rig_at(folder: Path) -> Rig:
    (folder / "snapshots").mkdir(parents=True, exist_ok=True)
    return Rig(folder)


def forgetter(rig: Rig, io: FileIO | None = None) -> Forgetter:
    keeper = Keeper(rig.engine, snapshot_store(rig.folder), KeeperSettings(10**9, 3))
    return Forgetter(rig.folder, rig.engine, keeper, io)


def forget(rig: Rig, subjects: Subjects = SUBJECTS) -> Report:
    each = forgetter(rig)
    made = each.begin(subjects).outcome.result(60)
    each.stop()
    return made


def push(rig: Rig, seeds: range, rows: int) -> dict[int, int]:
    """Pushes a batch for each seed. Returns the seeds by revision."""
    epoch = rig.open(PRODUCER).epoch
    return {rig.push(batch(each, rows), PRODUCER, epoch, each).revision: each for each in seeds}


def push_canary(rig: Rig) -> None:
    """The canary has events among others, and a label."""
    rig.push(wire.encode_interactions([CANARY, 3, CANARY], [1, 2, 9]))
    body = wire.encode_labels(updates_pb2.SIDE_USER, [CANARY, 3], [NAME, "Max"])
    rig.send(LabelsChange.from_log(body), body, b"", 0, 0).get(timeout=20)


def found_in(folder: Path) -> list[str]:
    """The files in which the canary or its name can be read."""
    wanted = CANARY.to_bytes(8, "little"), str(CANARY).encode(), NAME.encode()
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.name for path in files if any(each in path.read_bytes() for each in wanted)]


def without(body: bytes, subjects: Subjects) -> bytes:
    columns = wire.decode_interactions(body)
    users, items = subjects.sides
    keep = ~(np.isin(columns.user_ids, users) | np.isin(columns.item_ids, items))
    return wire.encode_interactions(columns.user_ids[keep], columns.item_ids[keep]) if keep.any() else b""


def never_saw(folder: Path, batches: dict[int, bytes], until: int) -> bytes:
    """The learned root hash of a model that got the batches at these revisions, and no other."""
    other = rig_at(folder)
    while other.engine.revision < until:
        body = batches.get(other.engine.revision + 1, b"")
        if body:
            other.push(body)
        else:
            other.send(OpenProducerChange(), b"", b"nobody", 0, 0).get(timeout=20)
    state = other.engine.state
    found = learned_root(state.revision, root_hash_of(freeze_idle("m", state, "sha256"))[1])
    other.close()
    return found


def reopened(rig: Rig) -> ModelState:
    since = max((info.revision for info in snapshot_store(rig.folder).list()), default=0)
    log = Log.open(rig.folder / "log", since=since, segment_bytes=SEGMENT_BYTES)
    state = recover(rig.folder, log, "cpu")
    log.close()
    return state


@pytest.mark.parametrize("rows", [1, 40])
def test_the_state_is_that_of_a_model_that_never_saw_them(rig: Rig, tmp_path: Path, rows: int) -> None:
    """With one row the records are read as columns, many at a time."""
    seeds = push(rig, range(1, 401 if rows == 1 else 61), rows)
    cost = forgetter(rig).cost(SUBJECTS)
    found = forget(rig)
    left = {at: without(batch(seed, rows), SUBJECTS) for at, seed in seeds.items()}
    gone = sum(rows - (len(wire.decode_interactions(body)) if body else 0) for body in left.values())
    assert cost.events == cost.rows == found.rows == gone > 0 and cost.records == found.records
    assert cost.segments and cost.seconds > 0 and cost.revisions == max(seeds)
    assert bytes.fromhex(found.learned_root_hash) == never_saw(tmp_path / "other", left, found.revision)
    assert found.erase < found.erased <= found.revision
    root = rig.root()
    rig.close()
    # A restart from the snapshot, and a replay of the rewritten log, give the same state.
    assert state_root(reopened(rig)) == root
    report = replay_model(rig.folder)
    assert report.good and report.root_hash == root and report.erasures == {found.erase: ""}


def test_nothing_on_disk_names_them_afterwards(rig: Rig, tmp_path: Path) -> None:
    push(rig, range(1, 40), 40)
    snapshot_store(rig.folder).take(freeze_idle("m", rig.engine.state, "sha256"))
    push_canary(rig)
    keeper = Keeper(rig.engine, snapshot_store(rig.folder), KeeperSettings(10**9, 3))
    keeper.take()
    (rig.folder / "log" / "0.log.0.0.broken").write_bytes(CANARY.to_bytes(8, "little") * 512)
    copied = tmp_path / "backup"
    backup.back_up(tmp_path / "data", copied)
    assert len(found_in(rig.folder)) >= 4 and len(found_in(copied)) >= 3
    hashes = {record.revision: record.hash for record in rig.log.read()}
    found = forget(rig, Subjects(users=(CANARY,)))
    assert found_in(rig.folder) == []
    assert len(found.snapshots) == 2 and found.tails == ("0.log.0.0.broken",)
    # The chain is the same, and the records say what is gone.
    assert {at: hash_ for at, hash_ in _hashes(rig).items() if at in hashes} == hashes
    shown = {row["revision"]: row["change"] for row in show.rows(rig.folder / "log")}
    assert any(text == f"events; 2 rows erased by revision {found.erase}" for text in shown.values())
    assert any(text.startswith("labels of users; 1 rows erased") for text in shown.values())
    assert shown[found.erase] == f"1 rows erased by revision {found.erase}"
    backup.back_up(tmp_path / "data", copied)
    assert found_in(copied) == []
    push_canary(rig)
    assert rig.engine.state.labels[0].get(CANARY) == NAME
    root = rig.root()
    rig.close()
    assert state_root(reopened(rig)) == root == replay_model(rig.folder).root_hash
    key = Key(bytes(32))
    encrypt(tmp_path / "data", tmp_path / "sealed", None, key)
    sealing.use(key)
    try:
        assert replay_model(tmp_path / "sealed" / "models" / "m").root_hash == root
    finally:
        sealing.use(None)


def _hashes(rig: Rig) -> dict[int, bytes]:
    return {record.revision: record.hash for record in rig.log.read()}


def test_a_sealed_log_is_rewritten(tmp_path: Path) -> None:
    sealing.use(Key(bytes(range(32))))
    try:
        rig = rig_at(tmp_path / "m")
        push_canary(rig)
        push(rig, range(1, 20), 40)
        found = forget(rig, Subjects(users=(CANARY,)))
        assert (found.records, found.rows) == (2, 3)
        root = rig.root()
        rig.close()
        assert state_root(reopened(rig)) == root and replay_model(rig.folder).good
        bodies = [bytes(each.body) for each in Log.open(rig.folder / "log", read_only=True).read()]
        assert not any(CANARY.to_bytes(8, "little") in body for body in bodies)
    finally:
        sealing.use(None)


def test_retries_get_their_first_answer(rig: Rig) -> None:
    epoch = rig.open(PRODUCER).epoch
    acks = [rig.push(batch(each), PRODUCER, epoch, each) for each in range(1, 6)]
    found = forget(rig)
    assert without(batch(1, 100), SUBJECTS) != batch(1)
    events = rig.engine.state.events
    for _ in range(2):
        for ack, sequence in zip(acks, range(1, 6), strict=True):
            again = rig.push(batch(sequence), PRODUCER, epoch, sequence)
            assert again.duplicate and (again.revision, again.accepted) == (ack.revision, ack.accepted)
        assert rig.engine.state.events == events == 500 - found.rows
        with pytest.raises(Refused, match="expected 6"):
            rig.push(batch(4), PRODUCER, epoch, 7)
        rig.close()
        rig.__init__(rig.folder)  # type: ignore[misc]
    assert rig.push(batch(6), PRODUCER, epoch, 6).accepted == 100


def test_rows_are_cleared_at_once_and_a_restart_clears_them_too(rig: Rig, monkeypatch) -> None:
    push(rig, range(1, 20), 40)
    push_canary(rig)
    users = rig.engine.state.backend.users
    row = users.find(np.array([CANARY], np.uint64), 10**6)
    before = rig.engine.state.backend.gather(0, row)[0].copy()

    def fail(*_: object) -> None:
        raise Refused(None, "not now")  # type: ignore[arg-type]

    monkeypatch.setattr(rig.engine, "promote", fail)
    each = forgetter(rig)
    with pytest.raises(Refused):
        each.begin(Subjects(users=(CANARY,))).outcome.result(60)
    each.stop()
    assert rig.engine.state.labels[0].get(CANARY) == ""
    assert not np.array_equal(rig.engine.state.backend.gather(0, row)[0], before)
    root = rig.root()
    rig.close()
    assert state_root(reopened(rig)) == root == replay_model(rig.folder).root_hash


@pytest.mark.torture
def test_a_changed_report_is_found(rig: Rig, tally: Tally) -> None:
    push(rig, range(1, 10), 40)
    found = forget(rig)
    rig.close()
    path = reports.path_of(rig.folder, found.erase)
    good = path.read_bytes()
    assert Report.from_json(good) == found and replay_model(rig.folder).good
    for bad in (good.replace(b'"rows": ', b'"rows": 1'), good + b" ", good[:-3], b""):
        path.write_bytes(bad)
        report = replay_model(rig.folder)
        assert not report.good and "not those that the log has the hash of" in report.erasures[found.erase]
    with Log.open(rig.folder / "log", read_only=True) as log:
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            assert reports.check(rig.folder, log)[found.erase][1], at
    tally.add("changed bytes of a report", len(good))
    path.unlink()
    assert replay_model(rig.folder).erasures == {found.erase: "the file is missing"}
    reports.path_of(rig.folder, 3).write_bytes(good)
    assert "no evidence" in replay_model(rig.folder).erasures[3]


def test_what_cannot_be_forgotten_is_refused(rig: Rig, monkeypatch) -> None:
    push(rig, range(1, 10), 40)
    root, last, each = rig.root(), rig.log.last_revision, forgetter(rig)
    with pytest.raises(Refused, match="nobody is named"):
        each.begin(Subjects())
    each.is_sharing = lambda: True
    with pytest.raises(Refused, match="settle the model first"):
        each.begin(SUBJECTS)
    each.is_sharing = lambda: False
    monkeypatch.setattr(type(rig.log), "lacks", "it began late")
    with pytest.raises(Refused, match="it began late, so the state without"):
        each.cost(SUBJECTS)
    assert rig.root() == root and rig.log.last_revision == last
    assert not (rig.folder / jobs.FILE).exists()


class Crash(Exception):
    """The process ends here."""


class CrashingIO(FileIO):
    """A disk on which the process ends before operation number `at`."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _count(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Crash


def _counted(name: str) -> Callable[..., object]:
    def method(self: CrashingIO, *arguments: object, **named: object) -> object:
        self._count()
        return getattr(FileIO, name)(self, *arguments, **named)

    return method


CHANGING = ("open", "pwrite", "fdatasync", "fsync_dir", "fallocate", "rename", "link", "unlink")
for _name in CHANGING:
    setattr(CrashingIO, _name, _counted(_name))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model with a canary, and the learned root hash after it is forgotten."""
    folder = tmp_path_factory.mktemp("forget") / "m"
    rig = rig_at(folder)
    push(rig, range(1, 12), 40)
    push_canary(rig)
    rig.close()
    shutil.copytree(folder, folder.parent / "done")
    done = rig_at(folder.parent / "done")
    found = forget(done, Subjects(users=(CANARY,)))
    done.close()
    return folder, found.learned_root_hash


def crash_and_resume(
    template: tuple[Path, str],
    to: Path,
    spoil: Callable[[Forgetter], None],
    io: FileIO | None = None,
    tally: Tally | None = None,
) -> bool:
    """Ends the process somewhere in a job, starts again, and checks that all is done.

    Returns whether the process was ended.
    """
    shutil.copytree(template[0], to)
    rig = rig_at(to)
    each = forgetter(rig, io)
    spoil(each)
    running = each.begin(Subjects(users=(CANARY,)))
    failure = running.outcome.exception(60)
    each.stop()
    rig.close()
    rig = rig_at(to)
    again = forgetter(rig)
    again.resume()
    if (resumed := again.running) is not None:
        found = resumed.outcome.result(60)
        assert found.learned_root_hash == template[1]
    again.stop()
    assert found_in(to) == [] and not (to / jobs.FILE).exists()
    assert list((to / "log").glob("*.old")) == list((to / "log").glob("*.rewritten")) == []
    assert rig.push(batch(99)).accepted == 100
    rig.close()
    report = replay_model(to)
    assert report.good and list(report.erasures.values()) == [""]
    if tally is not None:
        tally.add("crashes while forgetting")
    return failure is not None


@pytest.mark.torture
@pytest.mark.parametrize("at", [2, 4, 6, 7, 8, 9, 11, 13, 14, 19, 21, 22, 24])
def test_a_crash_at_an_operation_of_the_disk_only_delays(
    template, tmp_path: Path, at: int, tally: Tally
) -> None:
    assert crash_and_resume(template, tmp_path / "m", lambda each: None, CrashingIO(at), tally)


STAGES = {
    "before-erase": ("_engine", "append"),
    "before-erased": ("_engine", "promote"),
    "before-snapshot": ("_keeper", "renew"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_two_stages_only_delays(
    template, tmp_path: Path, monkeypatch, stage: str, after: bool
) -> None:
    part, method = STAGES[stage]

    def spoil(each: Forgetter) -> None:
        given = getattr(getattr(each, part), method)

        def crash(*arguments: object) -> None:
            if after:
                given(*arguments)
            raise Crash

        monkeypatch.setattr(getattr(each, part), method, crash)

    assert crash_and_resume(template, tmp_path / "m", spoil)


@pytest.mark.parametrize("name", ["write", "evidence"])
def test_a_crash_around_the_report_only_delays(template, tmp_path: Path, monkeypatch, name: str) -> None:
    given = getattr(reports, name)
    calls: list[int] = []

    def crash(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 1:
            return given(*arguments)
        given(*arguments)
        raise Crash

    monkeypatch.setattr(forgetting.reports, name, crash)
    assert crash_and_resume(template, tmp_path / "m", lambda each: None)


def test_a_crash_before_the_job_ends_only_delays(template, tmp_path: Path, monkeypatch) -> None:
    given, calls = jobs.end, list[int]()

    def crash(folder: Path) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise Crash
        given(folder)

    monkeypatch.setattr(forgetting.jobs, "end", crash)
    assert crash_and_resume(template, tmp_path / "m", lambda each: None)
