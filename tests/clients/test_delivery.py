"""Exactly-once delivery against a model of a server, and of a network that breaks, delays and
forgets in any order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor.errors import InvalidArgument, LivefactorError, NotFound, ProducerFenced
from livefactor.pushing.batching import Batch
from livefactor.pushing.delivery import WINDOW_BATCHES, Delivery
from livefactor.v1 import updates_pb2
from livefactor.wire.columns import AVAILABILITY, decode_apply

OK, FULL, GAP = 0, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION
Status = grpc.StatusCode | int


@dataclass
class Server:
    """The contract's rules for one producer. It refuses the payloads whose numbers are in `bad`."""

    bad: frozenset[int] = frozenset()
    judge_first: bool = False
    epoch: int = 1
    last: int = 0
    used: dict[int, int] = field(default_factory=dict)
    applied: list[int] = field(default_factory=list)

    def judge(self, message: bytes) -> Status:
        request = decode_apply(message)
        payload, (_, epoch, sequence) = int(request.body), request.stamp
        if epoch != self.epoch:
            return grpc.StatusCode.FAILED_PRECONDITION
        if self.judge_first and payload in self.bad:
            return grpc.StatusCode.INVALID_ARGUMENT
        if sequence <= self.last:
            return OK if self.used[sequence] == payload else grpc.StatusCode.ALREADY_EXISTS
        if sequence != self.last + 1:
            return grpc.StatusCode.FAILED_PRECONDITION
        if payload in self.bad:
            return grpc.StatusCode.INVALID_ARGUMENT
        self.last = sequence
        self.used[sequence] = payload
        self.applied.append(payload)
        return OK


def answer(index: int, sequence: int, status: Status) -> updates_pb2.BatchAnswer:
    message = updates_pb2.BatchAnswer(index=index, sequence=sequence)
    if isinstance(status, grpc.StatusCode):
        message.status.code, message.status.message = status.value[0], status.name
    else:
        message.response.accepted = 1
    return message


class World:
    """One Delivery and its server, the two directions of the live stream, and the late requests of
    dead streams.
    """

    def __init__(self, server: Server, make: Callable[..., Delivery] = Delivery) -> None:
        self.server = server
        self.delivery = make("m", "p", server.epoch, server.last)
        self.batches: list[Batch] = []
        self.finished: list[Batch] = []
        self.requests: deque[tuple[int, bytes]] = deque()
        self.answers: deque[updates_pb2.BatchAnswer] = deque()
        self.stale: list[bytes] = []
        self.index = 0

    def add(self) -> None:
        batch = Batch(AVAILABILITY)
        batch.rows = 1
        self.delivery.add(batch, [str(len(self.batches)).encode()])
        self.batches.append(batch)

    def send(self) -> bool:
        message = self.delivery.take()
        if message is None:
            return False
        assert len(self.requests) + len(self.answers) < WINDOW_BATCHES
        self.requests.append((self.index, message))
        self.index += 1
        return True

    def serve(self, fault: str = "") -> None:
        if not self.requests:
            return
        index, message = self.requests.popleft()
        sequence = decode_apply(message).stamp.sequence
        if fault == "full":
            status: Status = FULL
        else:
            # The answer leaves the outcome open. The request takes effect later.
            if fault == "late":
                self.stale.append(message)
            else:
                status = self.server.judge(message)
            if fault in ("late", "unknown"):
                status = grpc.StatusCode.UNAVAILABLE
        self.answers.append(answer(index, sequence, status))

    def serve_stale(self, place: int) -> None:
        if self.stale:
            self.server.judge(self.stale.pop(place % len(self.stale)))

    def hear(self, place: int = 0) -> None:
        """Hear one answer. Answers may overtake each other."""
        if self.answers:
            self.answers.rotate(-(place % len(self.answers)))
            heard = self.answers.popleft()
            self.finished += self.delivery.take_answer(heard).finished
            # The second copy of an answer must have no effect.
            if place % 3 == 0:
                assert self.delivery.take_answer(heard).finished == []
        if self.delivery.needs_new_epoch:
            self.break_stream()

    def break_stream(self) -> None:
        self.stale += [message for _, message in self.requests]
        self.requests.clear()
        self.answers.clear()
        self.index = 0
        self.finished += self.delivery.end_stream().finished
        if self.delivery.needs_new_epoch:
            self.server.epoch += 1
            self.delivery.reopen(self.server.epoch, self.server.last)

    def settle(self) -> None:
        """Stop the faults, so that every batch gets its outcome."""
        for _ in range(20 * (len(self.batches) + 1)):
            while self.send():
                pass
            while self.requests:
                self.serve()
            while self.answers:
                self.hear()
        for _ in range(len(self.stale)):
            self.serve_stale(0)

    def check(self) -> None:
        good = [number for number in range(len(self.batches)) if number not in self.server.bad]
        assert self.server.applied == good, "applied"
        assert self.delivery.fatal is None
        assert len(self.delivery) == 0
        for number, batch in enumerate(self.batches):
            assert batch.done
            assert isinstance(batch.error, InvalidArgument) == (number in self.server.bad)
        assert sorted(map(id, self.finished)) == sorted(map(id, self.batches))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            (
                "add",
                "send",
                "serve",
                "hear",
                "add",
                "send",
                "serve",
                "hear",
                "full",
                "unknown",
                "late",
                "break",
                "stale",
            )
        ),
        st.integers(0, 5),
    ),
    max_size=120,
)


def play(world: World, steps: list[tuple[str, int]]) -> None:
    for step, number in steps:
        if step == "add":
            world.add()
        elif step == "send":
            world.send()
        elif step == "hear":
            world.hear(number)
        elif step == "break":
            world.break_stream()
        elif step == "stale":
            world.serve_stale(number)
        else:
            world.serve("" if step == "serve" else step)
    world.settle()
    world.check()


@settings(max_examples=400, deadline=None)
@given(STEPS, st.frozensets(st.integers(0, 12)), st.booleans())
def test_every_good_batch_is_applied_once_and_in_order(
    steps: list[tuple[str, int]], bad: frozenset[int], judge_first: bool
) -> None:
    play(World(Server(bad=bad, judge_first=judge_first)), steps)


OLD_COPY = [
    # Three batches travel under the numbers 1, 2, 3.
    *[("add", 0)] * 3, *[("send", 0)] * 3, ("break", 0),
    # On the next stream, only the first is refused.
    ("send", 0), ("serve", 0), ("hear", 1),
    # The second now has number 1. An old copy of it has number 2.
    ("send", 0), ("serve", 0), ("stale", 2), ("stale", 1), ("stale", 0),
]  # fmt: skip


class Careless(Delivery):
    """A delivery that closes gaps although old copies may still arrive."""

    needs_new_epoch = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


def test_an_old_copy_of_a_renumbered_batch_is_fenced() -> None:
    world = World(Server(bad=frozenset({0})))
    play(world, OLD_COPY)
    assert world.server.epoch == 2


def test_these_tests_catch_a_delivery_that_does_not_fence() -> None:
    with pytest.raises(AssertionError, match="applied"):
        play(World(Server(bad=frozenset({0})), Careless), OLD_COPY)


def test_at_most_the_window_is_unacknowledged() -> None:
    world = World(Server())
    for _ in range(WINDOW_BATCHES + 5):
        world.add()
    while world.send():
        pass
    assert len(world.requests) == WINDOW_BATCHES
    world.serve()
    world.hear()
    assert world.send()
    assert not world.send()
    world.settle()
    world.check()


def test_refused_batches_of_one_window_close_their_gaps_at_once() -> None:
    world = World(Server(bad=frozenset({1, 3, 4}), judge_first=True))
    for _ in range(7):
        world.add()
    while world.send():
        pass
    while world.requests:
        world.serve()
    while world.answers:
        world.hear()
    assert [batch.sequence for batch in world.batches if batch.error is None] == [1, 2, 3, 4]
    assert world.server.epoch == 1, "all copies were answered: no need to fence"
    world.settle()
    world.check()


def test_a_full_server_is_asked_again_with_the_same_numbers() -> None:
    world = World(Server())
    for _ in range(3):
        world.add()
    while world.send():
        pass
    world.serve("full")
    while world.requests:
        world.serve()
    pauses = []
    while world.answers:
        pauses.append(world.delivery.take_answer(world.answers.popleft()).pause)
        assert (world.delivery.take() is None) == bool(world.answers), (
            "nothing is sent before all is answered"
        )
    assert pauses == ["", "", "RESOURCE_EXHAUSTED: RESOURCE_EXHAUSTED"]
    assert [batch.sequence for batch in world.batches] == [1, 2, 3]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, ProducerFenced),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, LivefactorError),
        (grpc.StatusCode.DATA_LOSS, LivefactorError),
    ],
)
def test_a_permanent_error_ends_the_producer_and_fails_all_batches(
    status: grpc.StatusCode, kind: type[LivefactorError]
) -> None:
    world = World(Server())
    for _ in range(3):
        world.add()
    world.send()
    world.send()
    world.delivery.take_answer(answer(0, 1, status))
    finished = world.delivery.take_answer(answer(1, 2, grpc.StatusCode.FAILED_PRECONDITION)).finished
    assert isinstance(world.delivery.fatal, kind)
    assert finished == world.batches
    assert all(batch.error is world.delivery.fatal for batch in world.batches)
    assert world.delivery.take() is None


def test_a_gap_behind_an_unanswered_batch_is_not_a_fence() -> None:
    world = World(Server())
    for _ in range(2):
        world.add()
        world.send()
    world.delivery.take_answer(answer(1, 2, GAP))
    world.break_stream()
    world.settle()
    world.check()


@pytest.mark.parametrize("last", [0, 3])
def test_reopening_finds_foreign_writes_and_lost_batches(last: int) -> None:
    world = World(Server(bad=frozenset({1})))
    for _ in range(3):
        world.add()
        world.send()
    world.serve()
    world.hear(1)
    world.break_stream()
    world.send()
    world.delivery.take_answer(answer(0, 2, grpc.StatusCode.INVALID_ARGUMENT))
    assert world.delivery.needs_new_epoch
    world.delivery.reopen(2, last)
    assert isinstance(world.delivery.fatal, ProducerFenced)
    assert world.batches[2].error is world.delivery.fatal
