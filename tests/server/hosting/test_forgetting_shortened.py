"""Forgetting in a model whose log lacks its beginning: with a snapshot, or with the archive."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SPEC, Rig, batch, state_root
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor_kernels.spec.admission import Admission, Eviction
from livefactor_server.changes import LabelsChange
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.hosting import earlier
from livefactor_server.hosting.forgetting import archive as archives
from livefactor_server.hosting.forgetting import job as jobs
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.hosting.retaining.archive import FolderArchive
from livefactor_server.hosting.retaining.retention import Policy
from livefactor_server.log.disk import FileIO
from livefactor_server.snapshots import strangers
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.erasures import Report, learned_root
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import snapshot_store
from livefactor_server.snapshots.store import root_hash_of
from livefactor_server.statuses import Refused
from test_forgetting import (
    CANARY,
    NAME,
    SUBJECTS,
    Crash,
    CrashingIO,
    found_in,
    never_saw,
    reopened,
    rig_at,
    without,
)

GUEST = Subjects(users=(CANARY,))


@dataclass
class Shop:
    """A model whose log was shortened, and what it got: revision -> body."""

    rig: Rig
    archive: Path | str | None = None
    sent: dict[int, bytes] = field(default_factory=dict)

    def push(self, seeds: range) -> None:
        producer = b"shop-%d" % seeds.start
        epoch = self.rig.open(producer).epoch
        for number, seed in enumerate(seeds, 1):
            self.sent[self.rig.push(batch(seed, 40), producer, epoch, number).revision] = batch(seed, 40)

    def push_guest(self) -> None:
        """The guest has events among others, and a label."""
        body = wire.encode_interactions([CANARY, 3, CANARY], [1, 2, 9])
        self.sent[self.rig.push(body).revision] = body
        body = wire.encode_labels(updates_pb2.SIDE_USER, [CANARY], [NAME])
        self.rig.send(LabelsChange.from_log(body), body, b"", 0, 0).get(timeout=20)

    @property
    def keeper(self) -> Keeper:
        policy = Policy.of("1r", self.archive)
        return Keeper(self.rig.engine, snapshot_store(self.rig.folder), KeeperSettings(10**9, 3, policy))

    def shorten(self) -> str:
        """Takes a snapshot, and deletes what is before it. Returns the snapshot's id."""
        keeper = self.keeper
        info = keeper.take()
        keeper._retain()
        assert self.rig.log.gap is not None
        return info.snapshot_id

    def forgetter(self, io: FileIO | None = None) -> Forgetter:
        return Forgetter(self.rig.folder, self.rig.engine, self.keeper, io)

    def forget(self, subjects: Subjects) -> Report:
        each = self.forgetter()
        made = each.begin(subjects).outcome.result(60)
        each.stop()
        return made

    def never_saw(self, folder: Path, subjects: Subjects, revision: int) -> str:
        left = {at: without(body, subjects) for at, body in self.sent.items()}
        return never_saw(folder, left, revision).hex()

    def restart(self) -> None:
        self.rig.close()
        self.rig = rig_at(self.rig.folder)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(rig_at(tmp_path / "data" / "models" / "m"))
    made.push(range(1, 100))
    yield made
    made.rig.close()


def check_all(shop: Shop, found: Report, subjects: Subjects, tmp_path: Path) -> None:
    """The state is that of a run that never saw the subjects, also after a restart."""
    assert found.learned_root_hash == shop.never_saw(tmp_path / "other", subjects, found.revision)
    root = shop.rig.root()
    shop.rig.close()
    assert state_root(reopened(shop.rig)) == root
    report = replay_model(shop.rig.folder)
    assert report.good and report.root_hash == root and report.erasures == {found.erase: ""}
    assert not (shop.rig.folder / jobs.FILE).exists()


def test_a_snapshot_that_never_knew_them_is_the_beginning(shop: Shop, tmp_path: Path) -> None:
    begun = shop.shorten()
    shop.push_guest()
    shop.push(range(200, 210))
    last, gap = shop.rig.log.last_revision, shop.rig.log.gap
    cost = shop.forgetter().cost(GUEST)
    assert cost.since == int(begun[:20]) and cost.revisions == last - cost.since and not cost.put_back
    assert (cost.records, cost.rows, cost.events) == (2, 3, 2)
    found = shop.forget(GUEST)
    assert (found.began_with, found.put_back, found.archives) == (begun, (), ())
    assert found_in(shop.rig.folder) == []
    assert shop.rig.log.gap == gap and begun in snapshot_store(shop.rig.folder).ids()
    check_all(shop, found, GUEST, tmp_path)
    # The audit has replayed the log from this snapshot. Without it only the records are compared.
    assert begun in replay_model(shop.rig.folder).begins_with
    changed = replace(found, learned_root_hash="00" * 32)
    assert not replay_with(shop.rig.folder, changed)
    snapshot_store(shop.rig.folder).remove_before(int(begun[:20]) + 1)
    report = replay_model(shop.rig.folder)
    assert report.good and begun not in report.begins_with


def replay_with(folder: Path, report: Report) -> bool:
    """Whether an audit agrees with a report whose hash the log does not have."""
    from livefactor_server.log.store import Log
    from livefactor_server.snapshots import audit, erasures

    with Log.open(folder / "log", read_only=True) as log:
        return erasures.fits(report, audit._without_subjects(folder, log, "cpu", report))


def test_the_newest_snapshot_that_fits_is_taken(shop: Shop, tmp_path: Path) -> None:
    shop.shorten()
    shop.push(range(200, 210))
    second = shop.keeper.take().snapshot_id
    shop.push_guest()
    third = shop.keeper.take().snapshot_id
    found = shop.forget(GUEST)
    assert found.began_with == second
    assert {third} < set(found.snapshots) and second not in found.snapshots
    check_all(shop, found, GUEST, tmp_path)


def test_archived_segments_are_put_back_and_rewritten(shop: Shop, tmp_path: Path) -> None:
    shop.archive = tmp_path / "archive"
    shop.push_guest()
    shop.push(range(300, 380))
    shop.shorten()
    (folder,) = shop.archive.iterdir()
    gap = shop.rig.log.gap
    moved = {path.name for path in folder.glob("*.log")}
    assert any(CANARY.to_bytes(8, "little") in path.read_bytes() for path in folder.iterdir())
    cost = shop.forgetter().cost(SUBJECTS)
    assert cost.put_back == sum((folder / name).stat().st_size for name in moved) and cost.since == 0
    both = Subjects(users=(7, 11, CANARY), items=(5,))
    found = shop.forget(both)
    assert found.began_with == "" and set(found.put_back) == moved and found.archives == ()
    assert set(found.archives_changed) <= moved and found.archives_changed
    assert shop.rig.log.gap is None and shop.rig.log.lacks == ""
    assert found_in(shop.rig.folder) == found_in(folder) == []
    assert found.rows > cost.rows > 0
    # Retention moves the segments away again, and the next erasure fetches them.
    shop.keeper._retain()
    assert shop.rig.log.gap.first == gap.first and shop.rig.log.gap.last >= gap.last
    again = shop.forget(Subjects(users=(20,)))
    assert again.put_back
    everybody = Subjects(users=(7, 11, 20, CANARY), items=(5,))
    assert again.learned_root_hash == shop.never_saw(tmp_path / "both", everybody, again.revision)


def test_without_a_snapshot_or_an_archive_it_is_refused_by_name(shop: Shop) -> None:
    begun = shop.shorten()
    root, last = shop.rig.root(), shop.rig.log.last_revision
    with pytest.raises(Refused) as refused:
        shop.forgetter().cost(SUBJECTS)
    text = refused.value.text
    assert f"of the snapshot at revision {int(begun[:20])}: the record of revision 3 names them" in text
    assert "the server has no --log-archive" in text
    # Whoever begins without asking for the cost gets the same, and nothing has changed.
    each = shop.forgetter()
    with pytest.raises(Refused, match="names them"):
        each.begin(SUBJECTS).outcome.result(60)
    each.stop()
    assert shop.rig.root() == root and shop.rig.log.last_revision == last
    assert not (shop.rig.folder / jobs.FILE).exists() and each.running is None


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_archive_that_is_damaged_or_lacks_a_segment_is_refused(shop: Shop, tmp_path: Path) -> None:
    shop.archive = tmp_path / "archive"
    shop.shorten()
    (folder,) = shop.archive.iterdir()
    files = sorted(folder.glob("*.log"))
    gap = shop.rig.log.gap
    good = {path: path.read_bytes() for path in files}

    def refuse(match: str) -> None:
        before = names_of(shop.rig.folder / "log")
        each = shop.forgetter()
        with pytest.raises(Refused, match=match):
            each.begin(SUBJECTS).outcome.result(60)
        each.stop()
        assert names_of(shop.rig.folder / "log") == before
        assert shop.rig.log.gap == gap and not (shop.rig.folder / jobs.FILE).exists()
        assert shop.rig.push(batch(1)).accepted == 100

    for number, at in ((0, 9000), (len(files) // 2, 8300), (len(files) - 1, 8192)):
        data = bytearray(good[files[number]])
        data[at] ^= 1
        files[number].write_bytes(data)
        with pytest.raises(Refused, match=files[number].name):
            shop.forgetter().cost(SUBJECTS)
        refuse(files[number].name)
        files[number].write_bytes(good[files[number]])
    files[0].unlink()
    refuse(f"lacks the segment with revision {gap.first}")
    files[0].write_bytes(good[files[0]])
    files[1].unlink()
    refuse("cannot be put back")
    files[1].write_bytes(good[files[1]])
    assert shop.forget(SUBJECTS).put_back


def test_an_archive_that_an_earlier_erasure_did_not_change_is_refused(shop: Shop, tmp_path: Path) -> None:
    """The replay would learn again of whom it forgot."""
    shop.archive = tmp_path / "archive"
    shop.push_guest()
    shop.push(range(300, 380))
    shop.shorten()
    (folder,) = shop.archive.iterdir()
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    shop.forget(GUEST)
    shop.keeper._retain()
    # The operator had moved the archive away, and an erasure could not reach it.
    (path,) = shop.rig.folder.glob("erasure-*.json")
    report = Report.from_json(path.read_bytes())
    path.write_bytes(replace(report, archives=tuple(map(str, folder.glob("*.log")))).to_json())
    with pytest.raises(Refused, match=f"the erasure at revision {report.erase} did not change them"):
        shop.forgetter().cost(SUBJECTS)
    path.write_bytes(b"{")
    with pytest.raises(Refused, match="is missing or damaged"):
        shop.forgetter().cost(SUBJECTS)


def test_archived_segments_that_name_them_are_told(shop: Shop, tmp_path: Path) -> None:
    """A label that was taken back leaves nothing in a snapshot, and the archive has it."""
    shop.archive = tmp_path / "archive"
    for text in (NAME, ""):
        body = wire.encode_labels(updates_pb2.SIDE_USER, [CANARY], [text])
        shop.rig.send(LabelsChange.from_log(body), body, b"", 0, 0).get(timeout=20)
    shop.push(range(300, 380))
    shop.shorten()
    (folder,) = shop.archive.iterdir()
    found = shop.forget(GUEST)
    assert found.began_with and [Path(each).name for each in found.archives] == found_in(folder) != []


def restored(source: Rig, folder: Path) -> Rig:
    store = snapshot_store(source.folder)
    info = store.take(freeze_idle("m", source.engine.state, "sha256"))
    (folder / "snapshots").mkdir(parents=True)
    earlier.begin_with(folder, store.folder / info.snapshot_id, info, uuid.uuid4(), "cpu")
    return rig_at(folder)


def test_a_restored_model_forgets_whom_its_base_never_knew(shop: Shop, tmp_path: Path) -> None:
    other = Shop(restored(shop.rig, tmp_path / "models" / "m"))
    other.push_guest()
    other.push(range(200, 240))
    twin = shutil.copytree(tmp_path / "models" / "m" / "base", tmp_path / "base")
    with pytest.raises(Refused, match="are in no archive of this model"):
        other.forgetter().cost(SUBJECTS)
    found = other.forget(GUEST)
    assert twin.exists() and found_in(other.rig.folder) == []
    # The run that never saw the guest begins with the same base.
    never = Shop(restored(shop.rig, tmp_path / "never" / "m"))
    while never.rig.engine.revision < found.revision:
        body = (
            without(other.sent.get(never.rig.engine.revision + 1, b""), GUEST)
            if (never.rig.engine.revision + 1 in other.sent)
            else b""
        )
        if body:
            never.rig.push(body)
        else:
            never.rig.open(b"nobody")
    state = never.rig.engine.state
    tensors = root_hash_of(freeze_idle("m", state, "sha256"))[1]
    assert found.learned_root_hash == learned_root(state.revision, tensors).hex()
    never.rig.close()
    root = other.rig.root()
    other.rig.close()
    assert state_root(reopened(other.rig)) == root
    report = replay_model(other.rig.folder)
    assert report.good and report.root_hash == root and report.erasures == {found.erase: ""}


def test_a_spec_under_which_ids_leave_or_wait_is_never_sure(shop: Shop) -> None:
    shop.shorten()
    loaded = snapshot_store(shop.rig.folder).load()
    log, nobody = shop.rig.log, Subjects(users=(CANARY,))
    assert strangers.known(SPEC, loaded.tensors, log, nobody) == ""
    leaving = replace(SPEC, eviction=Eviction(idle_events=10))
    assert "rows leave its tables" in strangers.known(leaving, loaded.tensors, log, nobody)
    waiting = replace(SPEC, admission=Admission(sightings=2))
    assert "counts ids" in strangers.known(waiting, loaded.tensors, log, nobody)
    marked = dict(loaded.tensors, unavailable=np.array([5000], np.uint64))
    assert "a mark of an item" in strangers.known(SPEC, marked, log, Subjects(items=(5000,)))
    labelled = dict(loaded.tensors) | {"labels.user.keys": np.array([CANARY], np.uint64)}
    assert "1 of 1 users" in strangers.known(SPEC, labelled, log, nobody)


def test_nothing_is_deleted_while_an_erasure_is_in_progress(shop: Shop) -> None:
    keeper = shop.keeper
    keeper.take()
    forgetter = Forgetter(shop.rig.folder, shop.rig.engine, keeper)
    jobs.Job(GUEST, shop.rig.log.last_revision).save(shop.rig.folder)
    for _ in range(4):
        keeper.take()
        shop.push(range(400, 402))
        keeper._retain()
    assert shop.rig.log.gap is None and len(keeper.store.ids()) == 4
    jobs.end(shop.rig.folder)
    assert forgetter.running is None
    keeper._retain()
    assert shop.rig.log.gap is not None


# ---------------------------------------------------------------------- crashes


@pytest.fixture(scope="module", params=["snapshot", "archive"])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A shortened model with a guest, and the learned root hash after the guest is forgotten."""
    root = tmp_path_factory.mktemp(request.param)
    made = Shop(rig_at(root / "before" / "m"), root / "before" / "archive")
    made.push(range(1, 40))
    if request.param == "archive":
        made.push_guest()
    made.push(range(40, 120))
    made.shorten()
    if request.param == "snapshot":
        made.push_guest()
    made.push(range(120, 130))
    made.rig.close()
    shutil.copytree(root / "before", root / "done")
    done = Shop(rig_at(root / "done" / "m"), root / "done" / "archive")
    found = done.forget(GUEST)
    assert bool(found.began_with) == (request.param == "snapshot") != bool(found.put_back)
    done.rig.close()
    return root / "before", found.learned_root_hash


def crash_and_resume(
    template: tuple[Path, str], to: Path, spoil: Callable[[Forgetter], None], io: FileIO | None = None
) -> bool:
    """Ends the process somewhere in a job, starts again, and checks that all is done."""
    shutil.copytree(template[0], to)
    shop = Shop(rig_at(to / "m"), to / "archive")
    each = shop.forgetter(io)
    spoil(each)
    failure = each.begin(GUEST).outcome.exception(60)
    each.stop()
    shop.restart()
    again = shop.forgetter()
    again.resume()
    if (resumed := again.running) is not None:
        assert resumed.outcome.result(60).learned_root_hash == template[1]
    again.stop()
    (path,) = shop.rig.folder.glob("erasure-*.json")
    assert Report.from_json(path.read_bytes()).learned_root_hash == template[1]
    assert found_in(to) == [] and not (shop.rig.folder / jobs.FILE).exists()
    assert [path.name for path in (shop.rig.folder / "log").iterdir() if path.suffix != ".log"] == []
    assert shop.rig.push(batch(99)).accepted == 100
    shop.rig.close()
    assert replay_model(shop.rig.folder).good
    return failure is not None


@pytest.mark.torture
@pytest.mark.parametrize("at", [2, 5, 9, 14, 20])
def test_a_crash_at_an_operation_of_the_disk_only_delays(template, tmp_path: Path, at: int) -> None:
    assert crash_and_resume(template, tmp_path / "m", lambda each: None, CrashingIO(at))


STAGES = {"erase": ("_engine", "append"), "erased": ("_engine", "promote"), "snapshot": ("_keeper", "renew")}


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


@pytest.mark.parametrize("name", ["fetch", "sync_folder", "take_over"])
def test_a_crash_while_the_archive_is_read_or_written_only_delays(
    template, tmp_path: Path, monkeypatch, name: str
) -> None:
    owner = FolderArchive if name == "fetch" else archives
    given, calls = getattr(owner, name), list[int]()

    def crash(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == (2 if name == "fetch" else 1):
            raise Crash
        return given(*arguments)

    monkeypatch.setattr(owner, name, crash)
    is_ended = crash_and_resume(template, tmp_path / "m", lambda each: None)
    assert is_ended == ((template[0].parent.name.startswith("archive")) or name == "take_over")
