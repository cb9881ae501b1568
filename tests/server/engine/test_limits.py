"""Limits of what a peer can make grow.

At a limit the rows without room are rejected, and the other rows are applied. A replay of the log
gives the same state, whatever limits its server has.
"""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SPEC, Rig, batch, replayed_root
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import History
from livefactor_kernels.tables.keymap import compile_kernels
from livefactor_server.changes import AvailabilityChange, LabelsChange
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.engine.submission import Ack
from livefactor_server.model.labels import Labels
from livefactor_server.model.producers import Outcome, ProducerTable

MEMORY_FULL = updates_pb2.REJECT_REASON_MEMORY_FULL
MARKS_FULL = updates_pb2.REJECT_REASON_MARKS_FULL
LABELS_FULL = updates_pb2.REJECT_REASON_LABELS_FULL


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """No reply waits for the compiler."""
    compile_kernels()


def bounded(folder: Path, memory_bytes_max: int, **limits: int) -> Rig:
    spec = replace(SPEC, limits=replace(SPEC.limits, **limits))
    return Rig(folder, spec, EngineSettings(memory_bytes_max=memory_bytes_max))


def events(users: list[int], items: list[int]) -> bytes:
    return wire.encode_interactions(users, items)


def mark(rig: Rig, ids: list[int], available: bool = False) -> Ack:
    body = wire.encode_availability(ids, available)
    result = rig.send(AvailabilityChange.from_log(body), body, b"", 0, 0).get(timeout=20).result
    assert isinstance(result, Ack)
    return result


def label(rig: Rig, ids: list[int], texts: list[str]) -> Ack:
    body = wire.encode_labels(updates_pb2.SIDE_ITEM, ids, texts)
    result = rig.send(LabelsChange.from_log(body), body, b"", 0, 0).get(timeout=20).result
    assert isinstance(result, Ack)
    return result


def test_at_the_memory_bound_new_rows_are_rejected_and_known_ones_applied(tmp_path: Path) -> None:
    rig = bounded(tmp_path, 20_000)
    epoch = rig.open(b"p").epoch
    ack = rig.push(events([*range(500)], [1] * 500), b"p", epoch, 1)
    held = ack.accepted
    assert 10 < held < 490 and {reason for _, reason in ack.rejects.listed} == {MEMORY_FULL}
    assert ack.rejects.listed[0] == (held, MEMORY_FULL)
    # The smallest case: one new user among known events.
    mixed = events([0, 1, 9999, 2], [1, 1, 1, 1])
    ack = rig.push(mixed, b"p", epoch, 2)
    assert (ack.accepted, ack.rejects.listed) == (3, ((2, MEMORY_FULL),))
    assert rig.push(events([0], [1]), b"p", epoch, 3).accepted == 1
    assert sum(rig.engine.memory_bytes[part] for part in ("labels", "marks", "producers")) < 4000
    root = rig.root()
    rig.close()
    assert replayed_root(tmp_path) == root
    # What admission decided is in the log: a server with more memory gives the same first answer.
    again = bounded(tmp_path, 1 << 30)
    retry = again.push(mixed, b"p", epoch, 2)
    assert retry.duplicate and (retry.accepted, retry.rejects) == (3, ack.rejects)
    assert again.root() == root
    again.close()


def test_histories_count_and_those_of_known_rows_grow_beyond_the_memory_bound(tmp_path: Path) -> None:
    spec = replace(SPEC, history=History(512, 512, paged=True))
    rig = Rig(tmp_path, spec, EngineSettings(memory_bytes_max=150_000))
    users, items = [*range(20)] * 25, [*range(50)] * 10
    epoch = rig.open(b"p").epoch
    assert rig.push(events(users, items), b"p", epoch, 1).accepted == 500
    before = rig.engine.memory_bytes["users"]
    for sequence in range(2, 21):
        assert rig.push(events(users, items), b"p", epoch, sequence).accepted == 500
    memory = rig.engine.memory_bytes
    # An event of a user takes 8 bytes if its value and weight are 1.
    assert 19 * 500 * 8 < memory["users"] - before < 19 * 500 * 8 * 1.3
    assert sum(memory.values()) > 150_000
    assert rig.push(events([0, 99, 1], [1, 1, 1]), b"p", epoch, 21).rejects.listed == ((1, MEMORY_FULL),)
    root = rig.root()
    rig.close()
    assert replayed_root(tmp_path) == root


def test_a_start_with_a_bound_below_what_is_held_serves_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = bounded(tmp_path, 1 << 30)
    rig.push(batch(1, 500))
    users = rig.engine.state.backend.users.keys[:3].tolist()
    items = rig.engine.state.backend.items.keys[:3].tolist()
    assert label(rig, items, ["ten", "eleven", "twelve"]).accepted == 3
    rig.close()
    again = bounded(tmp_path, 1000)
    assert "which is more than memory_bytes_max" in caplog.text
    assert again.push(events([*users, 1 << 40], [*items, items[0]])).rejects.listed == ((3, MEMORY_FULL),)
    assert mark(again, [*items, 1 << 40]).rejects.listed == ((3, MARKS_FULL),)
    assert mark(again, [*items, 1 << 40], available=True).accepted == 4
    assert label(again, [*items, 1 << 40], ["TEN", "a longer text", "", "new"]).rejects.listed == (
        (1, LABELS_FULL),
        (3, LABELS_FULL),
    )
    root = again.root()
    again.close()
    assert replayed_root(tmp_path) == root


def test_marks_without_room_are_rejected_by_row(tmp_path: Path) -> None:
    rig = bounded(tmp_path, 1 << 30, items_max=4)
    rig.push(events([1, 1], [100, 101]))
    assert mark(rig, [100, 1, 2, 1, 3, 101, 4, 5, 6]).rejects.listed == ((7, MARKS_FULL), (8, MARKS_FULL))
    assert mark(rig, [1, 100, 7]).rejects.listed == ((2, MARKS_FULL),), "a known mark may be set again"
    assert mark(rig, [2, 8], available=True).accepted == 2
    assert mark(rig, [7, 8]).rejects.listed == ((1, MARKS_FULL),), "what was removed leaves room"
    # The marks of items that become known need no room any more.
    rig.push(events([1, 1], [1, 3]))
    assert mark(rig, [8, 9, 10]).rejects.listed == ((2, MARKS_FULL),)
    assert rig.engine.state.marks.freeze().keys().tolist() == [1, 3, 4, 7, 8, 9, 100, 101]
    root = rig.root()
    rig.close()
    assert replayed_root(tmp_path) == root


def test_a_full_model_takes_many_batches_with_one_sync(tmp_path: Path) -> None:
    """Only new rows decide what fits, so batches without new rows share a group as before."""
    rig = bounded(tmp_path, 1 << 30, users_max=4, items_max=4)
    rig.push(events([1, 2, 3, 4], [1, 2, 3, 4]))
    appended: list[int] = []
    append = rig.log.append

    def counted(entries: list) -> list[bytes]:
        appended.append(len(entries))
        return append(entries)

    rig.log.append = counted  # type: ignore[method-assign]
    rig.io.syncing.clear()
    replies = [rig.push_async(events([1, 2, 70 + n], [1, 2, 3])) for n in range(60)]
    rig.io.syncing.set()
    assert [reply.get(timeout=20).result.accepted for reply in replies] == [2] * 60
    assert len(appended) < 20
    rig.close()


def test_producers_and_labels_tell_their_memory() -> None:
    tracemalloc.start()
    table = ProducerTable()
    for number in range(10):
        table.open(b"producer-%d" % number, 1)
        for sequence in range(1, 100):
            rejects = tuple((70_000 + row, 3) for row in range(100 * (number % 2)))
            outcome = Outcome(sequence, 1 << 40, 8192, 5000, rejects, os.urandom(16), os.urandom(32))
            table.record(b"producer-%d" % number, outcome)
    traced = tracemalloc.get_traced_memory()[0]
    assert 0.7 * traced < table.nbytes < 1.5 * traced
    before = tracemalloc.get_traced_memory()[0]
    labels = Labels()
    for start in range(0, 3000, 100):
        labels.put(
            np.arange(start, start + 100, dtype=np.uint64), [f"{n:032}" for n in range(start, start + 100)]
        )
    traced = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.7 * traced < labels.nbytes < 1.5 * traced
