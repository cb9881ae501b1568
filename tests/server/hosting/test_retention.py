"""What the retention of the log deletes, when, and what a model can do afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import click.testing
import pytest
import typer

from engine_rig import SEGMENT_BYTES, SPEC, Rig, batch, replayed_root, state_root
from livefactor_server.changes import show
from livefactor_server.cli.app import app
from livefactor_server.cli.serve.settings import EntryError, ServerSettings
from livefactor_server.engine.engine import Engine, EngineSettings
from livefactor_server.hosting import backup
from livefactor_server.hosting.acts.rollback import to_moment
from livefactor_server.hosting.earlier import Moment, state_at
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.host import Hosted
from livefactor_server.hosting.hosted import describe
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.hosting.retaining.retention import Policy, PolicyError, Retention
from livefactor_server.log.store import Log, LogGap
from livefactor_server.rpc import encode
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.replay import ReplayError, recover, snapshot_store, start_of
from livefactor_server.statuses import Refused

BATCHES = 100


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    folder = tmp_path / "models" / "m"
    (folder / "snapshots").mkdir(parents=True)
    made = Rig(folder)
    for seed in range(BATCHES):
        made.push(batch(seed))
    assert len(made.log.segments) > 8
    yield made
    made.close()


def keeper(rig: Rig, policy: Policy | None = None, kept: int = 3) -> Keeper:
    return Keeper(rig.engine, snapshot_store(rig.folder), KeeperSettings(10**9, kept, policy))


def retain(rig: Rig, policy: Policy) -> int:
    return Retention(rig.engine, snapshot_store(rig.folder), policy).run()


def files(rig: Rig) -> list[str]:
    return sorted(path.name for path in (rig.folder / "log").glob("*.log"))


def reopened(rig: Rig) -> tuple[Log, Engine]:
    store = snapshot_store(rig.folder)
    log = Log.open(rig.folder / "log", since=store.list()[-1].revision, segment_bytes=SEGMENT_BYTES)
    return log, Engine("m", recover(rig.folder, log, "cpu"), log, EngineSettings())


def test_the_text_of_a_policy() -> None:
    assert (Policy.of("30d").amount, Policy.of("30d").unit) == (30 * 86_400 * 10**6, "d")
    assert (Policy.of("100GB").amount, Policy.of("2MB").unit) == (100 * 10**9, "B")
    assert Policy.of("5000000r") == Policy(5_000_000, "r")
    for text in ("", "0d", "5", "r", "-1d", "1.5GB", "7 d", "3x", "1gb"):
        with pytest.raises(PolicyError, match="30d, 100GB or 5000000r"):
            Policy.of(text)


def test_the_settings_of_a_server() -> None:
    settings = ServerSettings(log_keep="30d", log_archive="archive")
    assert settings.hosting().keeper.retention == Policy.of("30d", Path("archive"))
    assert ServerSettings().hosting().keeper.retention is None
    with pytest.raises(EntryError, match="--log-archive needs --log-keep"):
        ServerSettings(log_archive="archive").entry()
    command = typer.main.get_command(app)
    asked = click.testing.CliRunner().invoke(command, ["serve", "--log-keep", "soon"])
    assert asked.exit_code == 2 and "30d, 100GB or 5000000r" in asked.output


def test_nothing_goes_without_a_snapshot_that_stands_in_for_it(rig: Rig) -> None:
    before = files(rig)
    assert retain(rig, Policy.of("1r")) == 0
    info = keeper(rig).take()
    damaged = rig.folder / "snapshots" / info.snapshot_id / "users.safetensors"
    found = sorted(damaged.parent.glob("*.safetensors"))[0]
    data = bytearray(found.read_bytes())
    data[-1] ^= 1
    found.write_bytes(data)
    assert retain(rig, Policy.of("1r")) == 0
    assert files(rig) == before and rig.log.gap is None


def test_the_policy_decides_how_much_stays(rig: Rig) -> None:
    keeper(rig).take()
    for text in ("1000000r", "1d", "1GB"):
        assert retain(rig, Policy.of(text)) == 0
    segments = rig.log.segments
    assert retain(rig, Policy.of("50r")) > 0
    kept_from = rig.log.segments[1].first
    assert rig.log.gap.last == kept_from - 1 <= BATCHES - 50
    assert next(each.first for each in segments if each.first > kept_from) - 1 > BATCHES - 50
    # Two more segments go, for the bytes of the others.
    left = rig.log.segments
    size = sum(each.end or each.size for each in (left[0], *left[3:]))
    assert retain(rig, Policy(size, "B")) == 2
    assert [each.first for each in rig.log.segments] == [left[0].first, *(each.first for each in left[3:])]
    assert retain(rig, Policy(1, "d")) > 0
    assert len(rig.log.segments) == 3
    assert retain(rig, Policy(1, "d")) == 0


def test_only_what_lies_behind_every_kept_snapshot_goes(rig: Rig) -> None:
    watching = keeper(rig)
    first = watching.take()
    for seed in range(60):
        rig.push(batch(1000 + seed))
    watching.take()
    assert retain(rig, Policy.of("1r")) > 0
    assert rig.log.gap.last < first.revision == rig.log.gap.note.snapshot_revision
    assert rig.log.gap.note.root_hash == first.root_hash


def test_a_model_goes_on_restarts_and_is_verified_after_a_deletion(rig: Rig) -> None:
    keeper(rig).take()
    assert retain(rig, Policy.of("1r")) > 0
    gap = rig.log.gap
    for seed in range(5):
        rig.push(batch(2000 + seed))
    root, second = rig.root(), keeper(rig).take()
    rig.push(batch(3000))
    last_root = rig.root()
    rig.close()
    log, engine = reopened(rig)
    assert state_root(engine.state) == last_root
    assert (log.gap.first, log.gap.last) == (gap.first, gap.last)
    log.close()
    report = replay_model(rig.folder)
    assert report.good and report.root_hash == last_root
    assert len(report.begins_with) == 1 and report.snapshots == {second.snapshot_id: True}
    assert second.root_hash == root
    assert f"{gap.first} to {gap.last}" in report.fields()["missing"]
    with pytest.raises(LogGap, match=f"{gap.first} to {gap.last}"):
        replayed_root(rig.folder)


def test_without_a_snapshot_the_model_is_refused_by_name(rig: Rig) -> None:
    keeper(rig).take()
    assert retain(rig, Policy.of("1r")) > 0
    rig.close()
    shutil.rmtree(rig.folder / "snapshots")
    (rig.folder / "snapshots").mkdir()
    with (
        Log.open(rig.folder / "log", read_only=True) as log,
        pytest.raises(ReplayError, match="no snapshot after them can be used"),
    ):
        recover(rig.folder, log, "cpu")
    with pytest.raises(ReplayError, match="no snapshot after them"):
        replay_model(rig.folder)


def test_another_spec_is_refused_by_name(rig: Rig) -> None:
    keeper(rig).take()
    assert retain(rig, Policy.of("1r")) > 0
    with pytest.raises(Refused) as refused:
        rig.engine.promote(replace(SPEC, k=16))
    assert "another spec cannot learn them" in refused.value.text
    rig.push(batch(1))
    keeper(rig).take()
    rig.close()
    # A start does not read the record that tells why the revisions are missing.
    log, rig.engine = reopened(rig)
    rig.engine.start()
    with pytest.raises(Refused) as refused:
        rig.engine.promote(replace(SPEC, k=16))
    assert "another spec cannot learn them" in refused.value.text
    assert log.last_revision == rig.engine.revision


def test_specs_that_were_in_force_in_deleted_revisions_stay_known(rig: Rig) -> None:
    switched = rig.engine.promote(replace(SPEC, k=4))
    for seed in range(80):
        rig.push(batch(4000 + seed))
    keeper(rig).take()
    before = dict(rig.log.switches)
    assert retain(rig, Policy.of("1r")) > 0
    assert rig.log.gap.last > switched
    root = rig.root()
    rig.close()
    with Log.open(rig.folder / "log", read_only=True) as log:
        assert dict(log.switches) == before and log.spec_at(switched - 1) == log.spec_body
        assert state_root(recover(rig.folder, log, "cpu")) == root
    log, rig.engine = reopened(rig)
    assert state_root(rig.engine.state) == root
    assert list(log.check_earlier()) and dict(log.switches) == before
    rig.engine.start()


def test_archived_segments_make_the_log_whole_again(rig: Rig, tmp_path: Path) -> None:
    keeper(rig).take()
    assert retain(rig, Policy.of("1r", tmp_path / "archive")) > 0
    assert rig.log.gap.note.archived and "archived on" in str(rig.log.gap)
    root = rig.root()
    rig.close()
    (folder,) = (tmp_path / "archive").iterdir()
    assert folder.name == f"m-{rig.log.lineage}"
    moved = sorted(folder.iterdir())
    assert not {path.name for path in moved} & set(files(rig))
    for path in moved:
        shutil.copy(path, rig.folder / "log" / path.name)
    report = replay_model(rig.folder)
    assert report.gap is None and report.good and len(report.snapshots) == 1
    assert report.root_hash == replayed_root(rig.folder) == root


def test_a_deletion_that_a_crash_interrupted_is_finished(rig: Rig, tmp_path: Path) -> None:
    keeper(rig).take()
    before = {name: (rig.folder / "log" / name).read_bytes() for name in files(rig)}
    assert retain(rig, Policy.of("1r")) > 0
    gone = sorted(set(before) - set(files(rig)))
    last = rig.log.last_revision
    rig.close()
    # The crash came after the first file.
    for name in gone[1:]:
        (rig.folder / "log" / name).write_bytes(before[name])
    log, rig.engine = reopened(rig)
    rig.log = log
    rig.engine.start()
    assert list(log.check_earlier())
    assert (log.gap.first, log.gap.last) == (int(gone[0][:20]), int(gone[1][:20]) - 1)
    assert retain(rig, Policy.of("1r")) == len(gone) - 1
    assert files(rig) == sorted(set(before) - set(gone))
    assert log.last_revision == last, "the record is there already"


def test_an_archive_that_cannot_be_written_keeps_the_log(rig: Rig, tmp_path: Path) -> None:
    keeper(rig).take()
    (tmp_path / "archive").write_text("no folder")
    before = files(rig)
    policy = Policy.of("1r", tmp_path / "archive")
    with pytest.raises(OSError, match="archive"):
        retain(rig, policy)
    assert files(rig) == before and rig.log.gap is None
    (tmp_path / "archive").unlink()
    assert retain(rig, policy) > 0


def test_the_keeper_deletes_by_itself_and_describe_says_so(rig: Rig) -> None:
    watching = keeper(rig, Policy.of("20r"))
    watching.take()
    watching._retain()
    gap = rig.log.gap
    assert gap is not None
    forgetter = Forgetter(rig.folder, rig.engine, watching)
    message = encode.description(describe(Hosted("m", rig.folder, rig.engine, watching, forgetter))).log_gap
    assert (message.first_revision, message.last_revision) == (gap.first, gap.last)
    assert (message.time_us, message.archived) == (gap.note.time_us, False)
    assert message.snapshot_root_hash == gap.note.root_hash


def test_a_backup_of_a_shortened_log(rig: Rig, tmp_path: Path) -> None:
    keeper(rig).take()
    whole, short = tmp_path / "whole", tmp_path / "short"
    backup.back_up(tmp_path, whole)
    assert retain(rig, Policy.of("1r")) > 0
    rig.push(batch(5))
    for target in (whole, short):
        backup.back_up(tmp_path, target)
    rig.push(batch(6))
    keeper(rig).take()
    for target in (whole, short):
        (made,) = backup.back_up(tmp_path, target)
        assert made.revision == rig.log.last_revision
    backup.restore(short, tmp_path / "restored")
    restored = replay_model(tmp_path / "restored" / "models" / "m")
    assert restored.gap is not None and restored.root_hash == rig.root()
    # A backup keeps the segments that it has.
    assert replay_model(whole / "models" / "m").root_hash == rig.root()
    assert [row["trouble"] for row in show.rows(short / "models" / "m" / "log") if "trouble" in row] == [
        "deleted"
    ]


def test_an_earlier_revision_that_was_deleted_is_refused(rig: Rig) -> None:
    keeper(rig).take()
    roots = {rig.engine.revision: rig.root()}
    for seed in range(3):
        rig.push(batch(5000 + seed))
        roots[rig.engine.revision] = rig.root()
    assert retain(rig, Policy.of("1r")) > 0
    gap = rig.log.gap
    for revision, root in roots.items():
        with state_at(rig.folder, rig.engine, revision) as state:
            assert state_root(state) == root
    for revision in (gap.first, gap.last, gap.last + 1):
        with pytest.raises(Refused) as refused, state_at(rig.folder, rig.engine, revision):
            pass
        assert f"{gap.first} to {gap.last}" in refused.value.text
    # The first segment is there.
    with state_at(rig.folder, rig.engine, gap.first - 1) as state:
        assert state.revision == gap.first - 1


def test_a_snapshot_from_before_a_rollback_stands_in_for_nothing(rig: Rig) -> None:
    watching = keeper(rig)
    watching.take()
    for seed in range(30):
        rig.push(batch(6000 + seed))
    rollback = to_moment(rig.log, Moment(BATCHES // 2))
    start = partial(start_of, rig.folder, rig.log, "cpu", skipped=rollback.skipped)
    rig.engine.promote(rig.engine.state.spec, start, act=rollback)
    for seed in range(30):
        rig.push(batch(7000 + seed))
    assert retain(rig, Policy.of("1r")) == 0
    watching.take()
    assert retain(rig, Policy.of("1r")) > 0
    root = rig.root()
    rig.close()
    with Log.open(rig.folder / "log", read_only=True) as log:
        assert state_root(recover(rig.folder, log, "cpu")) == root
    report = replay_model(rig.folder)
    assert report.good and report.root_hash == root
