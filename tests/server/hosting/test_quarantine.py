"""Quarantine: what is held, exactly once, decisions, limits, restarts, rollbacks and erasures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine_rig import SEGMENT_BYTES, SPEC, Rig, batch, replayed_root, state_root
from livefactor.wire import columns as wire
from livefactor_server.changes import show
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.engine.settings import EngineSettings
from livefactor_server.hosting.acts import quarantine
from livefactor_server.hosting.acts.rollback import Batches, to_moment, without
from livefactor_server.hosting.earlier import Moment
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.hosting.retaining.retention import Policy, Retention
from livefactor_server.judging.observer import ObserverSettings
from livefactor_server.judging.screening import BATCHES_MIN, ScreenSettings
from livefactor_server.log.store import Log
from livefactor_server.model import quarantine as codec
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.erasures import learned_root
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import recover, snapshot_store
from livefactor_server.snapshots.store import root_hash_of
from livefactor_server.statuses import Refused

SHOP, FEED = b"shop", b"feed"
USUAL = BATCHES_MIN + 4
"""Batches after which outliers are held."""


def settings(bytes_max: int = 1 << 20) -> EngineSettings:
    return EngineSettings(observer=ObserverSettings(quarantine=ScreenSettings(8.0, bytes_max)))


class Model:
    """A rig with a quarantine. The producer `shop` has sent usual batches, and knows all ids."""

    def __init__(self, folder: Path, bytes_max: int = 1 << 20) -> None:
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)
        self.rig = Rig(folder, SPEC, settings(bytes_max))
        keeper = Keeper(self.rig.engine, snapshot_store(folder), KeeperSettings(10**9, 3))
        self.hosted = SimpleNamespace(
            engine=self.rig.engine, folder=folder, sharing=None,
            forgetter=Forgetter(folder, self.rig.engine, keeper),
        )  # fmt: skip

    def begin(self) -> None:
        epoch = self.rig.open(SHOP).epoch
        users = np.arange(300, dtype=np.uint64)
        self.rig.push(wire.encode_interactions(users, users % np.uint64(200)), SHOP, epoch, 1)
        for number in range(2, USUAL):
            assert not self.rig.push(batch(number), SHOP, epoch, number).is_held
        self.epoch = self.rig.open(FEED).epoch

    def bad(self, sequence: int, rows: int = 60) -> bytes:
        """A batch of ids that nobody knows."""
        ids = np.arange(rows, dtype=np.uint64) + np.uint64(10_000 * sequence)
        return wire.encode_interactions(ids, ids)

    def send_bad(self, sequence: int, rows: int = 60):
        return self.rig.push(self.bad(sequence, rows), FEED, self.epoch, sequence)

    def waiting(self) -> list[quarantine.Waiting]:
        return quarantine.waiting(self.hosted, lambda: None)

    def decide(self, *revisions: int, accept: bool) -> list[quarantine.Decision]:
        return quarantine.decide(self.hosted, revisions, accept, lambda: None)

    def snapshot(self) -> None:
        snapshot_store(self.rig.folder).take(freeze_idle("m", self.rig.engine.state, "sha256"))

    def roll_back(self, made) -> None:
        start = lambda body: replay.start_of(  # noqa: E731
            self.rig.folder, self.rig.log, "cpu", body, skipped=made.skipped
        )
        self.rig.engine.promote(self.rig.engine.state.spec, start, None, made)

    @property
    def users(self) -> int:
        return int(self.rig.engine.state.backend.published[0])


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    made = Model(tmp_path / "data" / "models" / "m")
    made.begin()
    yield made
    made.rig.close()


def test_an_outlier_waits_and_the_next_batches_go_on(model: Model) -> None:
    users = model.users
    held = model.send_bad(1)
    assert held.is_held and held.accepted == 60 and model.users == users
    again = model.rig.push(batch(1000), FEED, model.epoch, 2)
    assert not again.is_held and again.revision == held.revision + 1
    (one,) = model.waiting()
    assert (one.revision, one.producer, one.sequence, one.rows) == (held.revision, FEED, 1, 60)
    assert one.in_log and one.reason is not None and one.reason["figure"] == "new_keys"
    assert one.reason["value"] == 1.0 > one.reason["bound"]


def test_a_retry_gets_the_same_answer_and_nothing_is_held_twice(model: Model) -> None:
    first = model.send_bad(1)
    retry = model.send_bad(1)
    assert retry == first._replace(duplicate=True, epoch=0)
    with pytest.raises(Refused, match="another payload"):
        model.rig.push(model.bad(2), FEED, model.epoch, 1)
    assert len(model.waiting()) == 1


def test_an_accepted_batch_is_learned_as_it_would_be_without_a_quarantine(
    model: Model, tmp_path: Path
) -> None:
    users, held = model.users, model.send_bad(1)
    model.rig.push(batch(1000), FEED, model.epoch, 2)
    (made,) = model.decide(held.revision, accept=True)
    assert (made.learned, made.rejected) == (60, 0) and made.revision == held.revision + 2
    assert model.users == users + 60 and not model.waiting()
    with pytest.raises(Refused, match="no batch waits"):
        model.decide(held.revision, accept=True)
    # The bits are those of interactions that came at the revision of the decision.
    other = Rig(tmp_path / "other")
    while other.engine.revision < made.revision:
        at = other.engine.revision + 1
        record = next(model.rig.log.read(at))
        body = model.bad(1) if at == made.revision else bytes(record.body)
        other.push(body) if record.rows and at != held.revision else other.open(b"nobody")
    ours, theirs = (_learned(each) for each in (model.rig, other))
    other.close()
    assert ours == theirs


def _learned(rig: Rig) -> bytes:
    state = rig.engine.state
    return learned_root(state.revision, root_hash_of(freeze_idle("m", state, "sha256"))[1])


def test_a_dropped_batch_is_never_learned(model: Model) -> None:
    users, held = model.users, model.send_bad(1)
    (made,) = model.decide(held.revision, accept=False)
    assert made.learned == 0 and model.users == users and not model.waiting()
    assert model.send_bad(1).is_held
    kinds = [row["kind"] for row in show.rows(model.rig.folder / "log", held.revision)]
    assert kinds == ["HELD", "DROPPED"]


@pytest.mark.parametrize("accept", [True, False, None])
def test_a_restart_and_a_replay_give_the_same_state(model: Model, accept: bool | None) -> None:
    first, second = model.send_bad(1), model.send_bad(2)
    model.snapshot()
    if accept is not None:
        model.decide(first.revision, accept=accept)
    model.rig.push(batch(1000), FEED, model.epoch, 3)
    root, folder = model.rig.root(), model.rig.folder
    model.rig.close()
    log = Log.open(folder / "log", read_only=True, segment_bytes=SEGMENT_BYTES)
    state = recover(folder, log, "cpu")
    log.close()
    waiting = {second.revision} if accept is not None else {first.revision, second.revision}
    assert {each.revision for each in state.quarantine.list()} == waiting
    assert state_root(state) == root == replayed_root(folder) == replayed_root(folder, "reference")
    assert replay_model(folder).good
    # The same decisions are possible, and retries get their answers.
    again = Model(folder)
    again.epoch = again.rig.open(FEED).epoch
    assert again.send_bad(2) == second._replace(duplicate=True, epoch=0)
    again.decide(second.revision, accept=True)
    assert replayed_root(folder) == again.rig.root()
    again.rig.close()
    model.rig = again.rig
    model.rig.close = lambda: None


def test_a_full_quarantine_refuses_outliers_and_takes_other_batches(tmp_path: Path) -> None:
    model = Model(tmp_path / "m", bytes_max=3000)
    model.begin()
    first, second = model.send_bad(1), model.send_bad(2)
    with pytest.raises(Refused, match="it is full"):
        model.send_bad(3)
    assert not model.rig.push(batch(1000), FEED, model.epoch, 3).is_held
    model.decide(first.revision, accept=False)
    assert model.send_bad(4).is_held
    assert model.rig.engine.state.quarantine.body_bytes <= 3000 and second.is_held
    model.rig.close()


def test_bad_batches_do_not_become_usual_and_accepted_ones_do(model: Model) -> None:
    held = [model.send_bad(number) for number in range(1, 2 * BATCHES_MIN)]
    assert all(each.is_held for each in held)
    model.decide(held[-1].revision, accept=True)
    assert not model.send_bad(2 * BATCHES_MIN).is_held


def test_poisoned_values_are_an_outlier_of_the_loss(tmp_path: Path) -> None:
    from livefactor_kernels.spec.model import Limits
    from livefactor_kernels.spec.presets import preset

    spec = preset("ratings", limits=Limits(users_max=5000, items_max=5000, value_abs_max=100.0))
    rig = Rig(tmp_path / "m", spec, settings())
    rng = np.random.default_rng(5)

    def ratings(scale: float) -> bytes:
        users, items = (rng.integers(0, most, 100, np.uint64) for most in (300, 200))
        return wire.encode_interactions(users, items, (scale * rng.integers(1, 6, 100)).astype(np.float32))

    users = np.arange(300, dtype=np.uint64)
    rig.push(wire.encode_interactions(users, users % np.uint64(200), np.full(300, 3, np.float32)))
    usual = [rig.push(ratings(1.0)).is_held for _ in range(4 * BATCHES_MIN)]
    assert not any(usual)
    assert rig.push(ratings(10.0)).is_held
    (held,) = rig.engine.state.quarantine.list()
    reason = quarantine.waiting(SimpleNamespace(engine=rig.engine), lambda: None)[0].reason
    assert held.rows == 100 and reason is not None and reason["figure"] in ("loss", "gradient")
    rig.close()


def test_small_batches_are_never_held(model: Model) -> None:
    assert not model.send_bad(1, rows=31).is_held
    assert model.send_bad(2, rows=32).is_held


def test_a_rollback_takes_decisions_back_and_batches_with_their_decisions(model: Model) -> None:
    users, held = model.users, model.send_bad(1)
    (made,) = model.decide(held.revision, accept=True)
    model.roll_back(to_moment(model.rig.log, Moment(held.revision)))
    assert model.users == users and [each.revision for each in model.waiting()] == [held.revision]
    model.decide(held.revision, accept=True)
    assert model.users == users + 60
    model.roll_back(without(model.rig.log, [Batches(FEED, 1, 1)], lambda: None))
    assert model.users == users and not model.waiting()
    # The producer gets its first answer nevertheless.
    assert model.send_bad(1).is_held
    assert replayed_root(model.rig.folder) == model.rig.root() and made.learned == 60


def test_an_erasure_takes_subjects_out_of_waiting_and_of_accepted_batches(model: Model) -> None:
    first, second = model.send_bad(1), model.send_bad(2)
    model.decide(first.revision, accept=True)
    subjects = Subjects(users=(10_000, 20_000, 20_001), items=(10_001,))
    found = model.hosted.forgetter.begin(subjects).outcome.result(60)
    # Three records name them: HELD, ACCEPTED and HELD.
    assert found.records == 3 and found.rows == 2 + 2 + 2
    (waiting,) = model.waiting()
    assert waiting.revision == second.revision and waiting.rows == 58
    (made,) = model.decide(second.revision, accept=True)
    assert made.learned == 58
    root = model.rig.root()
    model.rig.close()
    for path in (model.rig.folder / "log").iterdir():
        data = path.read_bytes()
        assert not any(int(each).to_bytes(8, "little") in data for each in (20_000, 20_001))
    report = replay_model(model.rig.folder)
    assert report.good and report.root_hash == root
    model.rig.close = lambda: None


def test_a_batch_that_is_erased_whole_does_not_wait_any_more(model: Model) -> None:
    held = model.send_bad(1, rows=32)
    subjects = Subjects(users=tuple(range(10_000, 10_032)))
    model.hosted.forgetter.begin(subjects).outcome.result(60)
    assert not model.waiting()
    with pytest.raises(Refused, match="no batch waits"):
        model.decide(held.revision, accept=False)
    assert replayed_root(model.rig.folder) == model.rig.root()


def test_a_retention_keeps_the_segments_of_waiting_batches(model: Model) -> None:
    held = model.send_bad(1)
    for number in range(2, 100):
        model.rig.push(batch(number), FEED, model.epoch, number)
    model.snapshot()
    retention = Retention(model.rig.engine, snapshot_store(model.rig.folder), Policy.of("1r"))
    retention.run()
    gap = model.rig.log.gap
    assert gap is None or gap.last < held.revision
    assert model.waiting()[0].in_log
    model.decide(held.revision, accept=False)
    assert retention.run() > 0 and model.rig.log.gap is not None
    assert model.rig.log.gap.last >= held.revision


def test_the_bytes_in_a_snapshot_are_canonical_and_damage_is_found() -> None:
    empty = codec.Quarantine()
    assert empty.encode() == b"" and not len(codec.Quarantine.decode(b""))
    for held in (codec.Held(5, 40, 900), codec.Held(9, 32, 700)):
        empty.put(held)
    data = empty.encode()
    again = codec.Quarantine.decode(data[2:])
    assert again.list() == empty.list() and again.body_bytes == 1600 and again.first == 5
    again.decide(5)
    again.decide(5)
    assert again.body_bytes == 700 and 5 not in again and 9 in again
    with pytest.raises(ValueError, match="no whole number"):
        codec.Quarantine.decode(data[2:-1])
    with pytest.raises(ValueError, match="follows"):
        codec.Quarantine.decode(data[2:18] * 2)
