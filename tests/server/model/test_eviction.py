"""A spec with `eviction.idle_events`: rows that no event touches for long leave the tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SPEC, Rig, replayed_root, state_root
from livefactor.wire import columns as wire
from livefactor_kernels.spec.admission import MIN_IDLE_EVENTS, Admission, Eviction
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import ITEMS, USERS, ModelSpec, Replay, SpecError
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables.keymap import compile_kernels
from livefactor_server.engine.settings import EngineSettings
from livefactor_server.judging.judge import JudgeSettings
from livefactor_server.judging.observer import ObserverSettings
from livefactor_server.log.store import Kind, Log
from livefactor_server.model.compaction import compacted
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.replay import follow, recover, replay, snapshot_store
from livefactor_server.statuses import Refused

IDLE = Eviction(MIN_IDLE_EVENTS)
EVICTED = replace(SPEC, eviction=IDLE)


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """No reply waits for the compiler."""
    compile_kernels()


def wave(number: int, rows: int = 100) -> bytes:
    """Events of users and items that later waves do not name, and of some that all waves name."""
    draw = np.random.default_rng(number)
    own = draw.random(rows) < 0.6
    users = np.where(own, 1000 + 40 * number + draw.integers(0, 40, rows), draw.integers(0, 30, rows))
    items = np.where(draw.random(rows) < 0.5, 5000 + 20 * number + draw.integers(0, 20, rows), users % 20)
    return wire.encode_interactions(users.astype(np.uint64), items.astype(np.uint64))


def evictions(folder: Path) -> list[int]:
    with Log.open(folder / "log", read_only=True) as log:
        return [record.revision for record in log.read() if record.kind == Kind.EVICT]


def push(rig: Rig, body: bytes) -> None:
    """A first batch may wait for the compiler."""
    assert not isinstance(rig.push_async(body).get(timeout=240).result, Refused)


def pushed(folder: Path, spec: ModelSpec, waves: int) -> tuple[Rig, list[int]]:
    """A rig after so many waves, and its number of users after each."""
    rig, sizes = Rig(folder, spec), []
    for number in range(waves):
        push(rig, wave(number))
        sizes.append(rig.engine.state.backend.published[USERS])
    return rig, sizes


@pytest.mark.parametrize("name", ["clicks_sgd", "clicks", "auto"])
def test_live_replayed_and_restored_states_are_equal_on_both_backends(tmp_path: Path, name: str) -> None:
    small = replace(preset(name), k=8, limits=SPEC.limits, eviction=IDLE)
    rig, _ = pushed(tmp_path, replace(small, admission=Admission(2)), 34)
    with rig.engine.view() as view:
        snapshot_store(tmp_path).take(view)
    for number in range(34, 60):
        push(rig, wave(number))
    root, revisions = closed_root(rig), evictions(tmp_path)
    assert len(revisions) >= 2
    assert replayed_root(tmp_path) == root
    with Log.open(tmp_path / "log", read_only=True) as log:
        # The reference takes seconds for each hundred events of `auto`, so it ends soon after the
        # first eviction.
        end = revisions[0] + 3 if name == "auto" else log.last_revision
        expected = root if end == log.last_revision else state_root(replay(tmp_path, log, "cpu", end))
        assert state_root(replay(tmp_path, log, "reference", end)) == expected
        assert state_root(recover(tmp_path, log, "cpu")) == root
        # One record at a time gives the bits of many.
        state = replay(tmp_path, log, "cpu", 0)
        for revision in range(1, log.last_revision + 1):
            follow(state, log, revision)
        assert state_root(state) == root


def test_the_tables_stay_small_and_known_ids_stay(tmp_path: Path) -> None:
    rig, sizes = pushed(tmp_path, EVICTED, 80)
    rig.close()
    state, users = rig.engine.state, state_users(rig)
    # 15 waves are not idle, and an eviction takes place when an eighth is.
    assert max(sizes) < 30 + 40 * 20 and sum(sizes[-1:]) < 30 + 40 * 20
    known = state.backend.users.find(np.arange(30, dtype=np.uint64), users)
    assert (known < users).all()
    gone = np.arange(1000, 1040, dtype=np.uint64)
    assert (state.backend.users.find(gone, users) >= users).all()
    # An id that comes back is new, at once.
    again = Rig(tmp_path, EVICTED)
    push(again, wire.encode_interactions([1000], [5000]))
    again.close()
    now = again.engine.state.backend
    assert now.users.find(gone[:1], state_users(again))[0] < state_users(again)


def state_users(rig: Rig) -> int:
    return rig.engine.state.backend.published[USERS]


def closed_root(rig: Rig) -> bytes:
    """The root hash at the end. An eviction may follow the last answer."""
    rig.close()
    return state_root(rig.engine.state)


def test_a_restart_a_rollback_and_a_switch_go_on_with_the_rows_that_are_left(tmp_path: Path) -> None:
    rig, _ = pushed(tmp_path, EVICTED, 30)
    root, users = closed_root(rig), state_users(rig)
    again = Rig(tmp_path, EVICTED)
    assert again.root() == root and state_users(again) == users
    # Another spec learns the whole log. Without eviction it has all rows.
    again.engine.promote(SPEC)
    assert state_users(again) > users and again.engine.state.touches is None
    again.engine.promote(replace(EVICTED, l2=0.01))
    assert state_users(again) == users
    push(again, wave(30))
    root = closed_root(again)
    assert replayed_root(tmp_path) == root


def test_the_labels_and_the_judge_follow_and_the_marks_stay(tmp_path: Path) -> None:
    judged = EngineSettings(observer=ObserverSettings(JudgeSettings(record_share=1.0, sampled_share=1.0)))
    rig, folder = Rig(tmp_path, EVICTED, judged), tmp_path
    push(rig, wave(0))
    state = rig.engine.state
    keys = state.backend.users.keys[: state.backend.published[USERS]]
    ids = np.append(keys[keys < 30][:1], keys[keys >= 1000][:2])
    state.labels[USERS].put(ids, ["known", "one", "two"])
    state.marks.put(np.array([5000, 5001, 7], np.uint64), available=False)
    for number in range(1, 40):
        push(rig, wave(number))
    rig.close()
    now = rig.engine.state
    assert now is not state and evictions(folder)
    assert [now.labels[USERS].get(int(each)) for each in ids] == ["known", "", ""]
    assert now.marks.freeze().keys().tolist() == [7, 5000, 5001]
    report = rig.engine.observer.report()
    assert report is not None and report.revision > evictions(folder)[0]
    # Its counts of items moved with the rows.
    assert rig.engine.observer.nbytes < 1 << 20


def test_rows_stay_while_the_memory_does_not_suffice_for_a_second_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path, EVICTED)
    used = sum(rig.engine.memory_bytes.values())
    rig.close()
    rig = Rig(tmp_path, EVICTED, EngineSettings(memory_bytes_max=used + (60 << 10)))
    for number in range(40):
        push(rig, wave(number))
    rig.close()
    assert not evictions(tmp_path)
    assert "idle rows stay" in caplog.text


def test_the_spec_is_checked() -> None:
    check(EVICTED)
    with pytest.raises(SpecError, match=r"eviction\.idle_events"):
        check(replace(SPEC, eviction=Eviction(MIN_IDLE_EVENTS - 1)))
    with pytest.raises(SpecError, match=r"replay\.size"):
        check(replace(EVICTED, replay=Replay(64, 0.5)))


# ------------------------------------------------------------------ compaction beside plain Python


def events_of(rows: dict[str, np.ndarray], row: int) -> list[tuple[float, ...]]:
    """The events of a row, oldest first."""
    ring, seen = rows["seen_rows"], int(rows["seen_count"][row])
    length = ring.shape[1]
    names = [name for name in ("seen_rows", "seen_values", "seen_weights", "seen_visits") if name in rows]
    places = [number % length for number in range(max(0, seen - length), seen)]
    return [tuple(rows[name][row, place].item() for name in names) for place in places]


def test_rings_followers_and_sums_are_those_of_plain_python(tmp_path: Path) -> None:
    history = replace(preset("clicks").history, users=16, items=16, paged=False)
    spec = replace(
        preset("clicks"),
        k=4,
        limits=SPEC.limits,
        history=history,
        counts=replace(preset("clicks").counts, span=8),
    )
    rig = Rig(tmp_path, spec)
    draw = np.random.default_rng(4)
    for _ in range(6):
        rig.push(
            wire.encode_interactions(
                draw.integers(0, 40, 150, np.uint64), draw.integers(0, 25, 150, np.uint64)
            )
        )
    state: ModelState = rig.engine.state
    rows = tuple(
        {name: np.array(array) for name, array in state.backend.sections(side, count).items()}
        for side, count in enumerate(state.backend.published)
    )
    kept = tuple(draw.random(count) < 0.6 for count in state.backend.published)
    beside = {name: array.copy() for name, array in state.backend.state().items()}
    left = compacted(spec, (rows[USERS], rows[ITEMS]), beside, (kept[USERS], kept[ITEMS]))
    number = [{int(old): new for new, old in enumerate(np.flatnonzero(each))} for each in kept]
    for side in (USERS, ITEMS):
        other = number[1 - side]
        for old, new in number[side].items():
            before, after = events_of(rows[side], old), events_of(left.rows[side], new)
            if side == USERS:
                expected = [(other[each[0]], *each[1:]) for each in before if each[0] in other]
            else:
                expected = [(other[each[0]], *each[1:]) if each[0] in other else (0, 0, 0) for each in before]
                assert left.rows[side]["seen_count"][new] == rows[side]["seen_count"][old]
            assert after == expected
            for name in ("keys", "factors", "bias"):
                np.testing.assert_array_equal(left.rows[side][name][new], rows[side][name][old])
    for old, new in number[ITEMS].items() if "neighbor_rows" in rows[ITEMS] else ():
        pairs = zip(rows[ITEMS]["neighbor_rows"][old], rows[ITEMS]["neighbor_counts"][old], strict=True)
        wanted = [
            (number[ITEMS][int(row)], count)
            for row, count in pairs
            if count > 0 and int(row) in number[ITEMS]
        ]
        got = zip(
            left.rows[ITEMS]["neighbor_rows"][new], left.rows[ITEMS]["neighbor_counts"][new], strict=True
        )
        assert [(int(row), count) for row, count in got if count > 0] == wanted
    for side in (USERS, ITEMS):
        gram = left.beside["gram"].reshape(2, 5, 5)[side]
        had = left.rows[side]["seen_count"] > 0
        ones = np.append(left.rows[side]["factors"][had].astype(np.float64), np.ones((had.sum(), 1)), axis=1)
        np.testing.assert_allclose(gram, ones.T @ ones, atol=1e-6)
    rig.close()
