"""When the keeper takes snapshots by itself, and what it finds in the log behind a snapshot."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from engine_rig import SEGMENT_BYTES, SPEC, Rig, batch
from livefactor_server.engine.engine import Engine, EngineSettings
from livefactor_server.hosting import keeper
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.log.store import Log
from livefactor_server.snapshots.replay import recover, snapshot_store
from server_process import wait_until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "snapshots").mkdir()
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "POLL_S", 0.01)


def kept(rig: Rig, every: int = 10**9, replayed_s: float = 0.0) -> Keeper:
    made = Keeper(rig.engine, snapshot_store(rig.folder), KeeperSettings(every), replayed_s)
    made.start()
    return made


def revisions(rig: Rig) -> list[int]:
    return [manifest.revision for manifest in snapshot_store(rig.folder).list()]


def test_many_small_records_give_a_snapshot(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "REPLAY_S_MAX", 1e-3)
    monkeypatch.setattr(keeper, "SNAPSHOT_SHARE_MAX", 1.0)
    watching = kept(rig)
    assert revisions(rig) == []
    for seed in range(120):
        rig.push(batch(seed, 1))
    wait_until(lambda: len(revisions(rig)) > 0, "a snapshot of many records")
    watching.stop(take_last=False)


def test_a_long_recovery_gives_a_snapshot(rig: Rig) -> None:
    rig.push(batch(1))
    watching = kept(rig, replayed_s=keeper.REPLAY_S_MAX)
    wait_until(lambda: revisions(rig) == [1], "a snapshot after a long recovery")
    watching.stop(take_last=False)


def test_no_snapshot_is_taken_without_need(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not below the limits, not if 0 switches it off, and not if snapshots take too much time."""
    rig.push(batch(1))
    for every, replayed_s, share in ((10**9, 0.0, 1.0), (0, 100.0, 1.0), (10**9, 100.0, -1.0)):
        monkeypatch.setattr(keeper, "SNAPSHOT_SHARE_MAX", share)
        watching = Keeper(rig.engine, snapshot_store(rig.folder), KeeperSettings(every), replayed_s)
        assert not watching._is_due()
    assert revisions(rig) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_the_log_before_the_snapshot_is_checked_while_the_model_is_served(
    rig: Rig, damaged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(30):
        rig.push(batch(seed))
    watching = kept(rig)
    watching.take()
    watching.stop(take_last=False)
    rig.close()
    segment = rig.log.segments[1]
    if damaged:
        data = bytearray(segment.path.read_bytes())
        data[segment.end - 300] ^= 1
        segment.path.write_bytes(data)
    store = snapshot_store(rig.folder)
    log = Log.open(rig.folder / "log", since=store.list()[-1].revision, segment_bytes=SEGMENT_BYTES)
    rig.engine = Engine("m", recover(rig.folder, log, "cpu"), log, EngineSettings())
    rig.engine.start()
    with caplog.at_level(logging.ERROR):
        again = kept(rig)
        wait_until(lambda: again._unchecked is None, "the check of the earlier segments")
    again.stop(take_last=False)
    assert REGISTRY.get_sample_value("livefactor_log_damaged", {"model": "m"}) == float(damaged)
    assert (segment.path.name in caplog.text) == damaged
    assert rig.engine.failure is None and rig.engine.revision == 30


def test_a_switch_of_the_spec_gives_a_snapshot(rig: Rig) -> None:
    rig.push(batch(1))
    watching = kept(rig)
    revision = rig.engine.promote(replace(SPEC, k=16))
    wait_until(lambda: revisions(rig) == [revision], "a snapshot after a switch")
    watching.stop(take_last=False)
