"""Promise 4: each (producer, epoch, sequence) is applied once.

A retry gets the first ack, also after a restart.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import pytest

from livefactor.v1 import updates_pb2, updates_pb2_grpc
from livefactor_server.log.store import Kind, Log
from livefactor_server.snapshots.replay import log_folder
from load import MODEL, Follower, create_model, described
from server_process import Server, wait_until

Serve = Callable[..., Server]
Call = Callable[[], updates_pb2.ApplyUpdatesResponse]

PRODUCERS = 4
BATCHES = 100
KILLS = 4
RESENT = 0.3
RING = 64
SEED = 20_261_126
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass
class Sender:
    """A producer without the client library.

    It sends many batches several times, at once and later.
    """

    server: Server
    number: int
    replies: dict[int, list[updates_pb2.ApplyUpdatesResponse]] = field(default_factory=dict)
    sent: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{SEED}/{self.number}")
        self.channel = self.server.channel()
        self.stub = updates_pb2_grpc.UpdateServiceStub(self.channel)
        self.epoch = opened(self.stub, self.id).epoch

    @property
    def id(self) -> str:
        return f"sender-{self.number}"

    def request(self, sequence: int) -> updates_pb2.ApplyUpdatesRequest:
        """The batch with this sequence number.

        Each call gives the same bytes. The server rejects some rows.
        """
        chance = random.Random(f"{SEED}/{self.number}/{sequence}")
        users = [chance.randrange(300) for _ in range(chance.randint(1, 60))]
        values = [0.5 if chance.random() < 0.05 else 1.0 for _ in users]
        rows = updates_pb2.Interactions(
            user_ids=users, item_ids=[chance.randrange(100) for _ in users], values=values
        )
        stamp = updates_pb2.ProducerStamp(id=self.id, epoch=self.epoch, sequence=sequence)
        return updates_pb2.ApplyUpdatesRequest(model=MODEL, producer=stamp, interactions=rows)

    def run(self, batches: int, wanted: threading.Event) -> None:
        """Send at least `batches` batches, and until `wanted` is set.

        Each is sent until it is answered.
        """
        sequence = 0
        while sequence < batches or not wanted.is_set():
            sequence += 1
            copies = 1 + (self.chance.randint(1, 3) if self.chance.random() < RESENT else 0)
            again = [max(1, sequence - self.chance.randrange(1, RING)) for _ in range(copies // 2)]
            for number in [sequence] * copies + again:
                self.replies.setdefault(number, [])
            calls = [(number, self.send(number)) for number in [sequence] * copies + again]
            for number, call in calls:
                self.replies[number].append(self.answer(number, call))

    def send(self, sequence: int) -> grpc.Future:
        self.sent += 1
        return self.stub.ApplyUpdates.future(self.request(sequence), timeout=20)

    def answer(self, sequence: int, call: grpc.Future) -> updates_pb2.ApplyUpdatesResponse:
        while True:
            try:
                return call.result()
            except grpc.RpcError as error:
                assert error.code() in AWAY, error
            call = self.stub.ApplyUpdates.future(self.request(sequence), timeout=20, wait_for_ready=True)
            self.sent += 1

    def check(self, logged: dict[int, list[tuple[int, int]]]) -> None:
        """Check that the log holds each batch once, and that all replies name its record and the
        same rejects.
        """
        assert sorted(logged) == sorted(self.replies)
        for sequence, replies in self.replies.items():
            ((revision, accepted),) = logged[sequence]
            outcomes = {
                (
                    r.position.revision,
                    r.accepted,
                    r.rejected_count,
                    tuple((x.row, x.reason) for x in r.rejects),
                )
                for r in replies
            }
            assert len(outcomes) == 1, outcomes
            assert next(iter(outcomes))[:2] == (revision, accepted)
            assert sum(not reply.duplicate for reply in replies) <= 1


def opened(stub: updates_pb2_grpc.UpdateServiceStub, producer_id: str) -> updates_pb2.OpenProducerResponse:
    return stub.OpenProducer(
        updates_pb2.OpenProducerRequest(model=MODEL, producer_id=producer_id), timeout=20
    )


def logged_batches(server: Server) -> dict[str, dict[int, list[tuple[int, int]]]]:
    """The (revision, rows) of each batch in the log, by producer and sequence number."""
    found: dict[str, dict[int, list[tuple[int, int]]]] = {}
    with Log.open(log_folder(server.model_folder(MODEL)), read_only=True) as log:
        for record in log.read():
            if record.kind == Kind.INTERACTIONS:
                mine = found.setdefault(record.producer.decode(), {})
                mine.setdefault(record.sequence, []).append((record.revision, record.count))
    return found


def test_each_batch_is_applied_once_however_often_it_is_sent_and_whatever_dies(serve: Serve) -> None:
    server = serve()
    create_model(server, "clicks_sgd")
    senders = [Sender(server, number) for number in range(PRODUCERS)]
    enough = threading.Event()
    with ThreadPoolExecutor(PRODUCERS) as pool:
        runs = [pool.submit(sender.run, BATCHES, enough) for sender in senders]
        try:
            for _ in range(KILLS):
                before = [len(sender.replies) for sender in senders]
                wait_until(
                    lambda before=before: all(len(s.replies) > b + 20 for s, b in zip(senders, before, strict=True)),
                    "more batches", 60,
                )  # fmt: skip
                server.kill()
                server.start()
        finally:
            enough.set()
        for run in runs:
            run.result(120)
    logged = logged_batches(server)
    for sender in senders:
        sender.check(logged[sender.id])
    live = described(server)
    assert live.events == sum(rows for batches in logged.values() for ((_, rows),) in batches.values())
    assert Follower(server.model_folder(MODEL)).equals(live)
    sent, batches = sum(sender.sent for sender in senders), sum(len(sender.replies) for sender in senders)
    print(f"seed {SEED}: {batches} batches sent {sent} times over {KILLS} kills, each applied once")
    assert sent > 1.3 * batches


@dataclass
class Rig:
    """A server and the stub of one producer."""

    server: Server
    stub: updates_pb2_grpc.UpdateServiceStub

    def push(
        self, epoch: int, sequence: int, item: int = 1, rows: int = 1
    ) -> updates_pb2.ApplyUpdatesResponse:
        stamp = updates_pb2.ProducerStamp(id="p", epoch=epoch, sequence=sequence)
        columns = updates_pb2.Interactions(user_ids=[1] * rows, item_ids=[item] * rows)
        request = updates_pb2.ApplyUpdatesRequest(model=MODEL, producer=stamp, interactions=columns)
        return self.stub.ApplyUpdates(request, timeout=20, wait_for_ready=True)

    def restart(self) -> None:
        self.server.kill()
        self.server.start()


@pytest.fixture
def rig(serve: Serve) -> Iterator[Rig]:
    server = serve()
    create_model(server, "clicks_sgd")
    with server.channel() as channel:
        yield Rig(server, updates_pb2_grpc.UpdateServiceStub(channel))


def refusal(call: Call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def test_a_sequence_with_another_payload_is_refused_now_and_after_a_restart(rig: Rig) -> None:
    epoch = opened(rig.stub, "p").epoch
    first = rig.push(epoch, 1)
    before = described(rig.server)
    for _ in range(2):
        assert refusal(lambda: rig.push(epoch, 1, item=2))[0] == grpc.StatusCode.ALREADY_EXISTS
        again = rig.push(epoch, 1)
        assert (again.position, again.accepted, again.duplicate) == (first.position, 1, True)
        assert described(rig.server).root_hash == before.root_hash
        rig.restart()


def test_a_gap_is_refused_and_names_the_expected_sequence(rig: Rig) -> None:
    epoch = opened(rig.stub, "p").epoch
    rig.push(epoch, 1)
    for sequence in (3, 70, 2**63):
        code, text = refusal(lambda sequence=sequence: rig.push(epoch, sequence))
        assert code == grpc.StatusCode.FAILED_PRECONDITION and "expected 2" in text
    assert refusal(lambda: rig.push(epoch, 0))[0] == grpc.StatusCode.FAILED_PRECONDITION
    # The refused batches consumed neither a sequence number nor a revision.
    assert rig.push(epoch, 2).position.revision == 3


def test_opening_again_fences_the_older_epoch_also_after_a_restart(rig: Rig) -> None:
    assert refusal(lambda: rig.push(1, 1))[0] == grpc.StatusCode.FAILED_PRECONDITION
    old = opened(rig.stub, "p").epoch
    rig.push(old, 1)
    new = opened(rig.stub, "p")
    assert (new.epoch, new.last_sequence) == (old + 1, 1)
    for _ in range(2):
        assert refusal(lambda: rig.push(old, 2))[0] == grpc.StatusCode.FAILED_PRECONDITION
        assert refusal(lambda: rig.push(old, 1))[0] == grpc.StatusCode.FAILED_PRECONDITION
        assert refusal(lambda: rig.push(new.epoch + 1, 2))[0] == grpc.StatusCode.FAILED_PRECONDITION
        rig.restart()
    assert rig.push(new.epoch, 2).accepted == 1
    third = opened(rig.stub, "p")
    assert (third.epoch, third.last_sequence) == (new.epoch + 1, 2)


def test_the_ring_of_outcomes_survives_a_restart_from_a_snapshot(rig: Rig) -> None:
    epoch = opened(rig.stub, "p").epoch
    first = {sequence: rig.push(epoch, sequence, rows=sequence) for sequence in range(1, 101)}
    # The stop takes a snapshot, so the restart reads no record of the log.
    assert rig.server.stop() == 0
    rig.server.start()
    assert "snapshot" in rig.server.log
    for sequence in (37, 60, 100):
        again = rig.push(epoch, sequence, rows=sequence)
        assert again.duplicate and (again.position, again.accepted) == (first[sequence].position, sequence)
    older = rig.push(epoch, 36, rows=36)
    assert older.duplicate and older.position.revision == first[100].position.revision
    assert rig.push(epoch, 101).position.revision == first[100].position.revision + 1
