"""Rolling a model back in place: its state, its producers, restarts, snapshots and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SEGMENT_BYTES, SPEC, Rig, batch, state_root
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import Features
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import OpenProducerChange, show
from livefactor_server.changes.history.rollback import Ranges, are_in, is_in, ranges_of, up_to
from livefactor_server.hosting.acts.rollback import Batches, to_moment, without
from livefactor_server.hosting.earlier import Moment, state_at
from livefactor_server.log.store import Log
from livefactor_server.model.state import ModelState
from livefactor_server.rpc import decode
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import recover, snapshot_store
from livefactor_server.snapshots.store import root_hash_of
from livefactor_server.statuses import Refused

PRODUCER = b"shop"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = rig_at(tmp_path / "m")
    yield made
    made.close()


def rig_at(folder: Path) -> Rig:
    (folder / "snapshots").mkdir(parents=True)
    return Rig(folder)


def push(rig: Rig, sequences: range, rows: int = 20) -> list[int]:
    """Pushes one batch for each sequence, which decides its events. Returns their revisions."""
    epoch = rig.open(PRODUCER).epoch
    return [rig.push(batch(each, rows), PRODUCER, epoch, each).revision for each in sequences]


def roll_back(rig: Rig, rollback: object) -> int:
    start = partial(replay.start_of, rig.folder, rig.log, "cpu", skipped=rollback.skipped)
    return rig.engine.promote(rig.engine.state.spec, start, act=rollback)


def tables(state: ModelState) -> dict[str, bytes]:
    """The hashes of all sections but those of producers."""
    hashes = root_hash_of(freeze_idle("m", state, "sha256"))[1]
    return {each.place.name: each.digest for each in hashes if each.place.name != "producers"}


def never_saw(folder: Path, skipped: Ranges, revisions: dict[int, int], rows: int) -> dict[str, bytes]:
    """The tables of a model that never got the skipped batches.

    A record without effect has the revision of each, because draws depend on revisions.
    """
    other = rig_at(folder)
    while other.engine.revision < max(revisions):
        revision = other.engine.revision + 1
        if revision in revisions and not is_in(skipped, revision):
            other.push(batch(revisions[revision], rows))
        else:
            other.send(OpenProducerChange(), b"", b"nobody", 0, 0).get(timeout=20)
    found = tables(other.engine.state)
    other.close()
    return found


def snapshot(rig: Rig) -> int:
    with rig.engine.view() as view:
        return snapshot_store(rig.folder).take(view).revision


def restarted(rig: Rig) -> ModelState:
    """The state after a crash and a start from the newest snapshot."""
    rig.close()
    since = max((info.revision for info in snapshot_store(rig.folder).list()), default=0)
    log = Log.open(rig.folder / "log", since=since, segment_bytes=SEGMENT_BYTES)
    state = recover(rig.folder, log, "cpu")
    log.close()
    return state


def test_ranges() -> None:
    made = ranges_of([(7, 9), (1, 2), (3, 3), (8, 12), (20, 20)])
    assert made == ((1, 3), (7, 12), (20, 20))
    assert up_to(made, 9) == ((1, 3), (7, 9)) and up_to(made, 6) == ((1, 3),) and up_to(made, 0) == ()
    members = [revision for revision in range(30) if is_in(made, revision)]
    assert members == [1, 2, 3, *range(7, 13), 20]
    assert [n + 2 for n, inside in enumerate(are_in(made, 2, 20)) if inside] == members[1:]
    assert not is_in((), 5) and not are_in((), 3, 4).any()


@pytest.mark.parametrize("snapshots", ["none", "before", "after", "both"])
def test_an_earlier_state_comes_back(rig: Rig, tmp_path: Path, snapshots: str) -> None:
    push(rig, range(1, 5))
    if snapshots in ("before", "both"):
        snapshot(rig)
    push(rig, range(5, 7))
    back_to, there = rig.engine.revision, tables(rig.engine.state)
    push(rig, range(7, 12))
    if snapshots in ("after", "both"):
        snapshot(rig)
    spoiled = tables(rig.engine.state)
    last = rig.engine.revision
    revision = roll_back(rig, to_moment(rig.log, Moment(back_to)))
    assert revision == last + 1 == rig.engine.revision
    assert tables(rig.engine.state) == there != spoiled
    push(rig, range(12, 15))
    root = rig.root()
    assert state_root(restarted(rig)) == root
    report = replay_model(rig.folder)
    assert report.good and report.root_hash == root
    assert len(report.snapshots) == {"none": 0, "before": 1, "after": 1, "both": 2}[snapshots]


@pytest.mark.parametrize("rows", [1, 20])
def test_chosen_batches_leave_no_trace(rig: Rig, tmp_path: Path, rows: int) -> None:
    """With one row the records are read as columns, many at a time."""
    count = 300 if rows == 1 else 30
    revisions = dict(zip(push(rig, range(1, count + 1), rows), range(1, count + 1), strict=True))
    poisoned = [Batches(PRODUCER, 3, 3), Batches(PRODUCER, count // 3, count // 2)]
    rollback = without(rig.log, poisoned, lambda: None)
    assert sum(last - first + 1 for first, last in rollback.skipped) == count // 2 - count // 3 + 2
    before = tables(rig.engine.state)
    roll_back(rig, rollback)
    assert before != tables(rig.engine.state)
    assert tables(rig.engine.state) == never_saw(tmp_path / "other", rollback.skipped, revisions, rows)
    events = count * rows - rows * (count // 2 - count // 3 + 2)
    assert rig.engine.state.events == events
    root = rig.root()
    assert state_root(restarted(rig)) == root == replay_model(rig.folder).root_hash


def test_features_and_their_drop_are_taken_back(tmp_path: Path) -> None:
    (tmp_path / "m" / "snapshots").mkdir(parents=True)
    spec = preset("clicks", k=8, features=Features(8, 2))
    rig = Rig(tmp_path / "m", spec)
    sent = {
        wire.FEATURES: [bags(1, "a"), bags(2, "b")],
        wire.DROPPED_FEATURES: [wire.encode_dropped_features(updates_pb2.SIDE_ITEM, ["a"])],
    }
    epoch, seen = rig.open(PRODUCER).epoch, []
    rig.push(batch(1), PRODUCER, epoch, 1)
    numbers = iter(range(2, 5))
    for field, bodies in sent.items():
        for body in bodies:
            seen.append((rig.engine.revision, tables(rig.engine.state)))
            number = next(numbers)
            request = decode.UpdateRequest("", PRODUCER, epoch, number, field, body)
            change, _ = decode.change_from_wire(request, spec, 65_536)
            assert rig.send(change, body, PRODUCER, epoch, number).get(timeout=20).result.accepted
    assert len({str(each) for _, each in seen}) == 3
    # Without the drop, then without the second bag, then without both bags.
    roll_back(rig, without(rig.log, [Batches(PRODUCER, 4, 4)], lambda: None))
    roll_back(rig, without(rig.log, [Batches(PRODUCER, 3, 3)], lambda: None))
    assert tables(rig.engine.state) == seen[1][1]
    roll_back(rig, to_moment(rig.log, Moment(seen[0][0])))
    assert tables(rig.engine.state) == seen[0][1]
    root = rig.root()
    assert state_root(restarted(rig)) == root == replay_model(rig.folder).root_hash
    rig.close()


def bags(item: int, name: str) -> bytes:
    """A message of one item with one feature."""
    return wire.encode_features(
        updates_pb2.SIDE_ITEM, [item], np.array([1]), [name], np.array([0]), np.array([1.0])
    )


def test_producers_go_on_and_retries_get_their_first_answer(rig: Rig) -> None:
    epoch = rig.open(PRODUCER).epoch
    acks = [rig.push(batch(each), PRODUCER, epoch, each) for each in range(1, 6)]
    roll_back(rig, to_moment(rig.log, Moment(acks[1].revision)))
    events = rig.engine.state.events
    again = rig.push(batch(4), PRODUCER, epoch, 4)
    assert again.duplicate and (again.revision, again.accepted) == (acks[3].revision, acks[3].accepted)
    assert rig.engine.state.events == events == 200
    with pytest.raises(Refused, match="expected 6"):
        rig.push(batch(4), PRODUCER, epoch, 7)
    assert rig.push(batch(6), PRODUCER, epoch, 6).revision == acks[-1].revision + 2


def test_rollbacks_add_up_and_are_taken_back(rig: Rig, tmp_path: Path) -> None:
    revisions = dict(zip(push(rig, range(1, 11)), range(1, 11), strict=True))
    numbers = {sequence: revision for revision, sequence in revisions.items()}
    whole = tables(rig.engine.state)
    first = roll_back(rig, without(rig.log, [Batches(PRODUCER, 2, 2)], lambda: None))
    snapshot(rig)
    roll_back(rig, without(rig.log, [Batches(PRODUCER, 5, 6)], lambda: None))
    both = ranges_of([(numbers[2], numbers[2]), (numbers[5], numbers[6])])
    assert rig.engine.state.skipped == both
    assert tables(rig.engine.state) == never_saw(tmp_path / "both", both, revisions, 20)
    # Back to the revision after the first rollback, where batch 2 was skipped.
    roll_back(rig, to_moment(rig.log, Moment(first)))
    assert up_to(rig.engine.state.skipped, first) == ((numbers[2], numbers[2]),)
    assert tables(rig.engine.state) == never_saw(tmp_path / "one", both[:1], revisions, 20)
    # Back to before any rollback: the batches are there again.
    roll_back(rig, to_moment(rig.log, Moment(numbers[10])))
    assert tables(rig.engine.state) == whole
    root = rig.root()
    assert state_root(restarted(rig)) == root == replay_model(rig.folder).root_hash


def test_a_switch_of_the_spec_keeps_what_was_rolled_back(rig: Rig) -> None:
    push(rig, range(1, 9))
    roll_back(rig, without(rig.log, [Batches(PRODUCER, 3, 5)], lambda: None))
    skipped = rig.engine.state.skipped
    rig.engine.promote(replace(SPEC, k=4))
    assert rig.engine.state.skipped == skipped and rig.engine.state.events == 5 * 20
    root = rig.root()
    assert state_root(restarted(rig)) == root == replay_model(rig.folder).root_hash


def test_earlier_states_skip_what_they_skipped(rig: Rig) -> None:
    roots = {}
    for sequence in range(1, 9):
        push(rig, range(sequence, sequence + 1))
        roots[rig.engine.revision] = rig.root()
    revision = roll_back(rig, without(rig.log, [Batches(PRODUCER, 2, 3)], lambda: None))
    roots[revision] = rig.root()
    push(rig, range(9, 11))
    roots[rig.engine.revision] = rig.root()
    for revision, root in roots.items():
        with state_at(rig.folder, rig.engine, revision) as state:
            assert state_root(state) == root


def test_what_cannot_be_rolled_back_is_refused(rig: Rig) -> None:
    push(rig, range(1, 4))
    root, last = rig.root(), rig.log.last_revision
    for revision in (last, last + 5):
        with pytest.raises(Refused, match=f"below {last}"):
            to_moment(rig.log, Moment(revision))
    with pytest.raises(Refused, match="no batch shop:9, and 1 are missing"):
        without(rig.log, [Batches(PRODUCER, 2, 2), Batches(PRODUCER, 9, 9)], lambda: None)
    assert rig.root() == root and rig.log.last_revision == last
    chosen = [Batches(PRODUCER, 2, 2)]
    roll_back(rig, without(rig.log, chosen, lambda: None))
    with pytest.raises(Refused, match="skipped already"):
        without(rig.log, chosen, lambda: None)


def test_the_log_shows_a_rollback(rig: Rig) -> None:
    push(rig, range(1, 4))
    revision = roll_back(rig, to_moment(rig.log, Moment(2)))
    shown = {row["revision"]: row for row in show.rows(rig.folder / "log")}[revision]
    assert shown["kind"] == "ROLLBACK" and "back to revision 2; 2 revisions are skipped" in shown["change"]
    assert json.loads(rig.log.rollbacks[revision])["before"] == []
