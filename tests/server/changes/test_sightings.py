"""A spec with `admission.sightings`: new ids get rows when they were seen often enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SPEC, Rig, batch, replayed_root, state_root
from livefactor.wire import columns as wire
from livefactor_kernels.spec.admission import MAX_SIGHTINGS, Admission
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import ModelSpec, SpecError
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables.keymap import compile_kernels
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.judging.judge import JudgeSettings
from livefactor_server.judging.observer import ObserverSettings
from livefactor_server.log.store import Log
from livefactor_server.model.sightings import WINDOW, Sightings
from livefactor_server.snapshots.replay import follow, recover, replay, snapshot_store
from livefactor_server.statuses import Refused

SIGHTED = replace(SPEC, admission=Admission(3))


def events(users: Sequence[int], items: Sequence[int]) -> bytes:
    return wire.encode_interactions(list(users), list(items))


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """No reply waits for the compiler."""
    compile_kernels()


def rows(rig: Rig) -> tuple[int, int]:
    return rig.engine.state.backend.published


def test_an_id_gets_a_row_at_its_third_event(tmp_path: Path) -> None:
    rig = Rig(tmp_path, SIGHTED)
    seen = []
    for _ in range(4):
        assert rig.push(events([1], [2])).accepted == 1
        seen.append((*rows(rig), rig.engine.state.events))
    assert seen == [(0, 0, 0), (0, 0, 0), (1, 1, 1), (1, 1, 2)]
    # Within one batch the order of the events counts.
    rig.push(events([5] * 5, [2] * 5))
    assert (*rows(rig), rig.engine.state.events) == (2, 1, 5)
    # An item that waits keeps the event from being learned, though its user has a row.
    rig.push(events([5, 6], [9, 2]))
    assert (*rows(rig), rig.engine.state.events) == (2, 1, 5)
    rig.close()


def hostile(number: int) -> bytes:
    """A batch with known ids, ids that come again, and ids that come once."""
    draw = np.random.default_rng(number)
    once = np.arange(10**6 + 40 * number, 10**6 + 40 * number + 40, dtype=np.uint64)
    users = np.concatenate((draw.integers(0, 60, 60, np.uint64), once))
    items = np.concatenate((draw.integers(0, 40, 60, np.uint64), once))
    order = draw.permutation(100)
    return wire.encode_interactions(users[order], items[order])


@pytest.mark.parametrize("name", ["clicks_sgd", "clicks"])
def test_live_replayed_and_restored_states_are_equal_on_both_backends(tmp_path: Path, name: str) -> None:
    spec: ModelSpec = replace(preset(name), k=8, limits=SPEC.limits, admission=Admission(3))
    rig = Rig(tmp_path, spec)
    replies = [rig.push_async(hostile(number)) for number in range(12)]
    for reply in replies:
        reply.get(timeout=120)
    with rig.engine.view() as view:
        snapshot_store(tmp_path).take(view)
    for number in range(12, 90):
        rig.push(batch(number, 3) if number % 2 else events([number % 70], [number % 50]))
    root, published = rig.root(), rows(rig)
    rig.close()
    assert published[0] <= 300 and published[0] > 40
    assert replayed_root(tmp_path) == root
    assert replayed_root(tmp_path, "reference") == root
    with Log.open(tmp_path / "log", read_only=True) as log:
        assert state_root(recover(tmp_path, log, "cpu")) == root
        # One record at a time gives the bits of many.
        state = replay(tmp_path, log, "cpu", 0)
        for revision in range(1, log.last_revision + 1):
            follow(state, log, revision)
        assert state_root(state) == root
    again = Rig(tmp_path, spec)
    again.push(hostile(5))
    root = again.root()
    again.close()
    assert replayed_root(tmp_path) == root


def test_a_flood_of_ids_that_come_once_takes_no_rows_and_no_memory(tmp_path: Path) -> None:
    rig = Rig(tmp_path, SIGHTED)
    for start in range(0, 60_000, 10_000):
        ids = np.arange(10**6 + start, 10**6 + start + 10_000, dtype=np.uint64)
        rig.push(wire.encode_interactions(ids, ids))
    memory = sum(rig.engine.memory_bytes.values())
    assert sum(rows(rig)) < 200
    for start in range(60_000, 120_000, 10_000):
        ids = np.arange(10**6 + start, 10**6 + start + 10_000, dtype=np.uint64)
        rig.push(wire.encode_interactions(ids, ids))
    assert sum(rows(rig)) < 1000
    assert sum(rig.engine.memory_bytes.values()) - memory < 200_000
    rig.close()


def test_counters_are_halved_so_that_old_sightings_are_forgotten() -> None:
    sketch = Sightings(3)
    assert not sketch.admit(0, np.array([7, 7], np.uint64)).any()
    assert sketch.admit(0, np.array([7], np.uint64)).all()
    assert not sketch.admit(1, np.array([7], np.uint64)).any()
    draw = np.random.default_rng(1)
    sketch.count(0, draw.integers(1 << 40, 1 << 62, WINDOW - 2, np.uint64))
    assert not sketch.admit(0, np.array([7], np.uint64)).any()


def test_the_sketch_of_the_applied_state_follows_that_of_the_placed_one() -> None:
    placed, applied = Sightings(2), Sightings(2)
    ids = np.random.default_rng(2).integers(0, 3 * WINDOW, WINDOW + 5, np.uint64)
    for part in np.array_split(ids, 7):
        applied.count(0, part[~placed.admit(0, part)])
    for name, array in placed.arrays().items():
        np.testing.assert_array_equal(array, applied.arrays()[name])
    copy = Sightings(2)
    copy.load(*placed.arrays().values())
    np.testing.assert_array_equal(copy.admit(0, ids[:500]), placed.admit(0, ids[:500]))


def test_the_limit_is_checked() -> None:
    check(replace(SPEC, admission=Admission(MAX_SIGHTINGS)))
    with pytest.raises(SpecError, match=r"admission\.sightings"):
        check(replace(SPEC, admission=Admission(MAX_SIGHTINGS + 1)))


def test_the_judge_counts_and_ranks_what_the_model_learns(tmp_path: Path) -> None:
    judge = JudgeSettings(record_share=1.0, sampled_share=1.0)
    settings = EngineSettings(observer=ObserverSettings(judge))
    rig = Rig(tmp_path, SIGHTED, settings)
    for number in range(40):
        rig.push(hostile(number))
    rig.push(events([10**7], [10**7]))
    rig.engine.observer.report()
    learned = rig.engine.state.events
    assert 0 < learned < 4000
    assert rig.engine.observer.nbytes < 1 << 22
    rig.close()


def test_a_switch_cannot_change_the_admission(tmp_path: Path) -> None:
    rig = Rig(tmp_path, SIGHTED)
    rig.push(events([1], [2]))
    with pytest.raises(Refused, match="admission cannot be changed"):
        rig.engine.promote(SPEC)
    rig.engine.promote(replace(SIGHTED, l2=0.01))
    rig.push(events([1, 1], [2, 2]))
    assert rows(rig) == (1, 1)
    root = rig.root()
    rig.close()
    assert replayed_root(tmp_path) == root
