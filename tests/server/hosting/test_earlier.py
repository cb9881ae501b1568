"""The state of a model at an earlier moment, and models that begin with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine_rig import SPEC, Rig, batch, state_root
from livefactor_server.hosting.earlier import Moment, revision_at, snapshot_at, state_at
from livefactor_server.snapshots.replay import snapshot_store
from livefactor_server.snapshots.store import SnapshotStore
from livefactor_server.statuses import Refused


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    folder = tmp_path / "m"
    (folder / "snapshots").mkdir(parents=True)
    made = Rig(folder)
    yield made
    made.close()


def roots_of(rig: Rig, seeds: range) -> dict[int, bytes]:
    roots = {}
    for seed in seeds:
        rig.push(batch(seed, 20))
        roots[rig.engine.revision] = rig.root()
    return roots


def test_every_earlier_state_has_the_root_that_it_had(rig: Rig) -> None:
    roots = {0: rig.root()} | roots_of(rig, range(4))
    with rig.engine.view() as view:
        snapshot_store(rig.folder).take(view)
    roots |= roots_of(rig, range(4, 6))
    switched = rig.engine.promote(replace(SPEC, k=4))
    roots[switched] = rig.root()
    roots |= roots_of(rig, range(6, 9))
    for revision, root in roots.items():
        with state_at(rig.folder, rig.engine, revision) as state:
            assert state_root(state) == root and state.spec.k == (4 if revision >= switched else 8)
    assert rig.root() == roots[max(roots)], "the live state is as before"


def test_a_snapshot_of_an_earlier_state_verifies_and_is_removed(rig: Rig) -> None:
    roots = roots_of(rig, range(5))
    with snapshot_at(rig.folder, rig.engine, Moment(3)) as path:
        manifest = SnapshotStore(path.parent).load().manifest
        assert (manifest.revision, manifest.root_hash) == (3, roots[3])
        assert manifest.lineage == rig.log.lineage
    assert not path.exists() and not path.parent.exists()


def test_what_cannot_be_built_is_refused(rig: Rig) -> None:
    roots_of(rig, range(3))
    with pytest.raises(Refused, match="the model is at revision 3"), state_at(rig.folder, rig.engine, 4):
        pass
    with state_at(rig.folder, rig.engine, 1):
        with pytest.raises(Refused, match="in progress"), state_at(rig.folder, rig.engine, 2):
            pass
        with pytest.raises(Refused, match="in progress"):
            rig.engine.promote(replace(SPEC, k=4))
    # It gives the turn back.
    with state_at(rig.folder, rig.engine, 2) as state:
        assert state.revision == 2

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), state_at(rig.folder, rig.engine, 2, stop):
        pass


def test_memory_counts_both_states(rig: Rig) -> None:
    roots_of(rig, range(3))
    admission, before = rig.engine.admission, rig.engine.admission.free_bytes
    with state_at(rig.folder, rig.engine, 2):
        assert admission.free_bytes < before
    assert admission.free_bytes == before
    admission.memory_bytes_max -= before - 100
    with pytest.raises(Refused, match="memory: both states need"), state_at(rig.folder, rig.engine, 2):
        pass


def test_the_revision_at_a_time(rig: Rig) -> None:
    roots_of(rig, range(40))
    assert len(rig.log.segments) > 1
    times = {record.revision: record.time_us for record in rig.log.read(1)}
    for revision, time_us in times.items():
        found = revision_at(rig.log, time_us)
        assert times[found] == time_us and found >= revision
    assert revision_at(rig.log, max(times.values()) + 1) == max(times)
    with pytest.raises(Refused, match="so early"):
        revision_at(rig.log, -1)
