"""The two stages of the engine.

The tests cover delivery exactly once, limits, a full disk, a failing disk and draining. A replay of
the log must give the live state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from engine_rig import SPEC, Rig, batch, replayed_root
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.scoring import ScoreQuery
from livefactor_server.changes import NO_REJECTS, OpenProducerChange
from livefactor_server.engine.readers import Reader
from livefactor_server.engine.submission import Ack, Submission, Wake
from livefactor_server.model.producers import RING
from livefactor_server.statuses import Refused


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def code_of(call: object) -> grpc.StatusCode:
    with pytest.raises(Refused) as caught:
        call()  # type: ignore[operator]
    return caught.value.code


def test_a_retry_gets_the_first_answer_and_changes_nothing(rig: Rig) -> None:
    epoch = rig.open(b"p").epoch
    first = rig.push(batch(1), b"p", epoch, 1)
    root = rig.root()
    again = rig.push(batch(1), b"p", epoch, 1)
    assert again == first._replace(duplicate=True, epoch=0)
    assert rig.root() == root


def test_a_retry_in_flight_waits_for_the_same_result(rig: Rig) -> None:
    epoch = rig.open(b"p").epoch
    replies = [rig.push_async(batch(1), b"p", epoch, 1) for _ in range(5)]
    results = [reply.get(timeout=20).result for reply in replies]
    assert len({result.revision for result in results}) == 1
    assert sum(result.duplicate for result in results) == 4


def test_sequences_have_no_gaps_and_epochs_fence(rig: Rig) -> None:
    assert code_of(lambda: rig.push(batch(1), b"p", 1, 1)) == grpc.StatusCode.FAILED_PRECONDITION
    old = rig.open(b"p").epoch
    rig.push(batch(1), b"p", old, 1)
    assert code_of(lambda: rig.push(batch(2), b"p", old, 3)) == grpc.StatusCode.FAILED_PRECONDITION
    assert code_of(lambda: rig.push(batch(2), b"p", old, 1)) == grpc.StatusCode.ALREADY_EXISTS
    reopened = rig.open(b"p")
    assert (reopened.epoch, reopened.last_sequence) == (old + 1, 1)
    assert code_of(lambda: rig.push(batch(2), b"p", old, 2)) == grpc.StatusCode.FAILED_PRECONDITION
    assert rig.push(batch(2), b"p", reopened.epoch, 2).accepted == 100


def test_older_than_the_ring_is_a_marked_duplicate(rig: Rig) -> None:
    epoch = rig.open(b"p").epoch
    for sequence in range(1, 70):
        rig.push(batch(sequence, 1), b"p", epoch, sequence)
    root = rig.root()
    old = rig.push(batch(1, 1), b"p", epoch, 1)
    assert old.duplicate and rig.root() == root
    in_ring = rig.push(batch(6, 1), b"p", epoch, 6)
    assert in_ring.duplicate and in_ring.revision == 7


def test_more_than_a_ring_in_flight_is_refused_not_lost(rig: Rig) -> None:
    epoch = rig.open(b"p").epoch
    # The engine applies nothing while a sync hangs.
    rig.io.syncing.clear()
    replies = [rig.push_async(batch(s, 5), b"p", epoch, s) for s in range(1, 201)]
    rig.io.syncing.set()
    results = [reply.get(timeout=30).result for reply in replies]
    applied = [result for result in results if isinstance(result, Ack)]
    assert RING <= len(applied) < 200
    assert [ack.revision for ack in applied] == list(range(2, len(applied) + 2))
    refused = [result.code for result in results if isinstance(result, Refused)]
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in refused
    assert set(refused) <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION}
    rest = range(len(applied) + 1, 201)
    # The producer sends all refused batches again.
    acks = [rig.push(batch(s, 5), b"p", epoch, s) for s in rest]
    assert [ack.revision for ack in acks] == [s + 1 for s in rest]


def test_restart_gives_the_same_state_and_still_knows_retries(rig: Rig, tmp_path: Path) -> None:
    epoch = rig.open(b"p").epoch
    acks = [rig.push(batch(s), b"p", epoch, s) for s in range(1, 20)]
    root = rig.root()
    rig.close()
    again = Rig(tmp_path)
    assert again.root() == root == replayed_root(tmp_path) == replayed_root(tmp_path, "reference")
    assert again.push(batch(19), b"p", epoch, 19) == acks[-1]._replace(duplicate=True, epoch=0)
    assert code_of(lambda: again.push(batch(3), b"p", epoch, 19)) == grpc.StatusCode.ALREADY_EXISTS
    # The fixture closes the rig that is open at the end.
    rig.engine = again.engine


def test_a_full_disk_refuses_loses_nothing_and_recovers(rig: Rig, tmp_path: Path) -> None:
    epoch = rig.open(b"p").epoch
    rig.push(batch(1), b"p", epoch, 1)
    rig.io.full = True
    sequence, codes = 2, []
    while not codes:
        replies = [rig.push_async(batch(s), b"p", epoch, s) for s in range(sequence, sequence + 3)]
        results = [reply.get(timeout=20).result for reply in replies]
        sequence += sum(isinstance(result, Ack) for result in results)
        codes = [result.code for result in results if isinstance(result, Refused)]
        assert sequence < 100, "the disk was never full"
    assert codes[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION}
    root = rig.root()
    assert rig.engine.failure is None and rig.engine.revision == sequence
    rig.io.full = False
    assert rig.root() == root
    assert rig.push(batch(sequence), b"p", epoch, sequence).accepted == 100
    assert rig.root() == replayed_root(tmp_path)


def test_a_failed_sync_stops_writes_for_good_but_not_reads(rig: Rig, tmp_path: Path) -> None:
    rig.push(batch(1))
    root = rig.root()
    rig.io.sync_error = True
    assert code_of(lambda: rig.push(batch(2))) == grpc.StatusCode.UNAVAILABLE
    rig.io.sync_error = False
    assert code_of(lambda: rig.push(batch(2))) == grpc.StatusCode.UNAVAILABLE
    assert rig.engine.failure is not None and rig.root() == root
    rig.close()
    again = Rig(tmp_path)
    assert again.engine.revision >= 1
    again.push(batch(3))
    assert again.root() == replayed_root(tmp_path)
    rig.engine = again.engine


def test_draining_finishes_what_was_accepted(rig: Rig, tmp_path: Path) -> None:
    replies = [rig.push_async(batch(s, 1000)) for s in range(30)]
    rig.engine.drain()
    assert all(isinstance(reply.get(timeout=1).result, Ack) for reply in replies)
    assert code_of(lambda: rig.push(batch(1))) == grpc.StatusCode.UNAVAILABLE
    again = Rig(tmp_path)
    assert again.engine.revision == 30
    rig.engine = again.engine


def test_a_batch_that_is_queued_after_the_drain_is_refused_and_gives_its_room_back(rig: Rig) -> None:
    answered: list[Submission] = []
    late = Submission(OpenProducerChange(), b"", b"p", 0, 0, NO_REJECTS, rig.log.seal, answered.append)
    assert rig.engine.reserve(late)
    rig.engine.drain()
    rig.engine.enqueue([late])
    assert [item.result.code for item in answered] == [grpc.StatusCode.UNAVAILABLE]
    assert rig.engine.queued_bytes == 0


def test_rows_over_the_backend_memory_are_rejected(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    asked: list[tuple[int, int]] = []

    def reserve(users: int, items: int) -> bool:
        asked.append((users, items))
        return max(users, items) <= 400

    rig.engine.state.backend.reserve = reserve  # type: ignore[method-assign]
    epoch = rig.open(b"p").epoch

    def push(sequence: int, first: int, stop: int) -> Ack:
        keys = np.arange(first, stop, dtype=np.uint64)
        return rig.push(wire.encode_interactions(keys, keys), b"p", epoch, sequence)

    push(1, 0, 300)
    for sequence in range(2, 6):
        # At this stage the engine must assume that all rows are new.
        push(sequence, 0, 50)
    push(6, 0, 100)
    # The engine does not reserve again what it has already reserved.
    assert asked == [(300, 300), (350, 350), (400, 400)]
    # The backend has no room for 101 new rows, but all these ids already have rows.
    assert push(7, 0, 101).accepted == 101
    assert rig.log.last_revision == 8
    ack = push(8, 300, 401)
    assert (ack.accepted, ack.rejects.listed) == (100, ((100, updates_pb2.REJECT_REASON_MEMORY_FULL),))
    assert set(asked[3:]) == {(401, 401)} and rig.engine.state.backend.published == (400, 400)
    rig.close()


def test_producers_are_limited(tmp_path: Path) -> None:
    rig = Rig(tmp_path, replace(SPEC, limits=replace(SPEC.limits, producers_max=2)))
    rig.open(b"a")
    rig.open(b"b")
    replies = rig.send(OpenProducerChange(), b"", b"c", 0, 0)
    assert replies.get(timeout=20).result.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rig.open(b"a").epoch == 2
    rig.close()


def test_grouping_changes_nothing(tmp_path: Path) -> None:
    roots = []
    for name in ("one by one", "all at once"):
        folder = tmp_path / name
        folder.mkdir()
        rig = Rig(folder)
        waiting = []
        for seed in range(40):
            reply = rig.push_async(batch(seed))
            waiting.append(reply)
            if name == "one by one":
                reply.get(timeout=20)
                waiting.clear()
        for reply in waiting:
            reply.get(timeout=20)
        roots.append(rig.root())
        rig.close()
    assert roots[0] == roots[1]


def test_a_bug_while_applying_stops_reads_and_writes_until_a_restart(rig: Rig, tmp_path: Path) -> None:
    rig.push(batch(1))

    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    rig.engine.state.backend.apply_all = broken  # type: ignore[method-assign]
    # The engine may refuse the later ones before they are queued.
    assert [code_of(lambda seed=seed: rig.push(batch(seed))) for seed in (2, 3, 4)] == [
        grpc.StatusCode.UNAVAILABLE
    ] * 3
    query = ScoreQuery(
        "", None, 0, np.array([1], np.uint64), "top_k", np.empty(0, np.uint64), None, 1, False, False
    )
    assert code_of(lambda: Reader(rig.engine).score(query)) == grpc.StatusCode.UNAVAILABLE
    rig.close()
    again = Rig(tmp_path)
    assert again.engine.revision >= 2 and again.root() == replayed_root(tmp_path)
    rig.engine = again.engine


def test_answers_that_are_given_together_wake_their_receiver_once(rig: Rig) -> None:
    answered: list[Submission] = []
    wakes: list[int] = []

    def wake() -> None:
        wakes.append(len(answered))

    def reply(item: Submission) -> Wake:
        answered.append(item)
        return wake

    rig.io.syncing.clear()
    # The first batch is in the disk's hands while the others queue, so that these form one group.
    rig.push_async(batch(0))
    change = OpenProducerChange()
    for number in range(20):
        name = b"p%d" % number
        rig.engine.submit(Submission(change, b"", name, 0, 0, NO_REJECTS, rig.log.seal, reply))
    rig.io.syncing.set()
    rig.push(batch(1))
    rig.engine.drain()
    assert len(answered) == wakes[-1] == 20
    assert len(wakes) <= 3
