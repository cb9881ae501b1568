"""Promise 2: an acknowledged batch is visible.

A Score after an ack of revision r is computed at r or later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from livefactor.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
)
from livefactor.position import Position
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from livefactor.results.answers import Answers
from livefactor.scorer import Scorer
from load import MODEL, create_model
from server_process import Server, wait_until

Serve = Callable[..., Server]

CLIENTS = 4
WRITES = 150
RESTARTS = 3


class Client:
    """Pushes a row and asks for it right after the ack.

    It asks again if the server restarts meanwhile.
    """

    def __init__(self, server: Server, number: int) -> None:
        self.number = number
        self.channel = server.channel()
        self.producer = Producer(
            self.channel, f"client-{number}", model=MODEL, batch=BatchSettings(latency_ms_max=0)
        )
        self.scorer = Scorer(self.channel, model=MODEL)
        self.asked = self.stale = self.retried = 0
        self.revision = 0

    def run(self, writes: int, wanted: threading.Event) -> None:
        """Write at least `writes` times, and until `wanted` is set."""
        count = 0
        while count < writes or not wanted.is_set():
            self.write_and_ask(count)
            count += 1
        self.producer.close()
        self.channel.close()

    def write_and_ask(self, count: int) -> None:
        user, item = self.number << 32 | count % 300, self.number << 32 | count % 250
        ack = self.producer.push(user, item).result(60)
        assert ack.accepted == 1 and ack.position.revision > self.revision
        self.revision = ack.position.revision
        for min_position in (None, ack.position):
            answer = self.ask(user, item, min_position, count % 8 == 0)
            self.asked += 1
            seen = (
                answer.position.revision >= self.revision
                and answer[0].known
                and item in answer[0].item_ids.tolist()
            )
            self.stale += not (seen and answer[0].item_known.all())

    def ask(self, user: int, item: int, min_position: Position | None, best: bool) -> Answers:
        while True:
            try:
                if best:
                    return self.scorer.recommend(user, 10_000, min_position=min_position, timeout=30)
                return self.scorer.score(user, [item], min_position=min_position, timeout=30)
            except (Unavailable, Cancelled):
                # The test kills the server at this moment.
                self.retried += 1
                time.sleep(0.01)


def run_clients(server: Server, meanwhile: Callable[[list[Client]], None]) -> list[Client]:
    clients = [Client(server, number) for number in range(CLIENTS)]
    enough = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        runs = [pool.submit(client.run, WRITES, enough) for client in clients]
        try:
            meanwhile(clients)
        finally:
            enough.set()
        for run in runs:
            run.result(120)
    asked = sum(client.asked for client in clients)
    stale, retried = sum(client.stale for client in clients), sum(client.retried for client in clients)
    print(f"{asked} scores after {asked // 2} acks, {stale} stale, {retried} asked again over restarts")
    assert asked >= 2 * CLIENTS * WRITES
    assert stale == 0
    return clients


def test_a_score_after_an_ack_is_at_its_revision_or_later_also_over_restarts(serve: Serve) -> None:
    server = serve()
    create_model(server)

    def restart(clients: list[Client]) -> None:
        for _ in range(RESTARTS):
            before = [client.asked for client in clients]
            wait_until(
                lambda before=before: all(c.asked > b + 100 for c, b in zip(clients, before, strict=True)),
                "work",
                60,
            )
            server.kill()
            server.start()

    run_clients(server, restart)


@pytest.fixture
def few_slots(serve: Serve) -> Server:
    server = serve("--score-slots", "4")
    create_model(server)
    return server


def test_a_position_in_the_future_waits_until_the_deadline_and_is_never_answered_stale(
    few_slots: Server,
) -> None:
    with few_slots.channel() as channel, Producer(channel, "p", model=MODEL) as producer:
        here = producer.push(1, 1).result(30).position
        scorer = Scorer(channel, model=MODEL)
        for deadline_s in (0.05, 0.3, 0.6):
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                scorer.score(
                    1, [1], min_position=Position(here.lineage, here.revision + 1), timeout=deadline_s
                )
            assert time.monotonic() - began >= deadline_s * 0.99
        with pytest.raises(FailedPrecondition):
            scorer.score(1, [1], min_position=Position(bytes(16), 1))


def test_a_position_that_comes_is_answered_at_once_at_that_revision(few_slots: Server) -> None:
    with (
        few_slots.channel() as channel,
        Producer(channel, "p", model=MODEL) as producer,
        ThreadPoolExecutor(2) as pool,
    ):
        here = producer.push(1, 1).result(30).position
        scorer = Scorer(channel, model=MODEL)
        wanted = Position(here.lineage, here.revision + 2)
        waiting = pool.submit(scorer.score, 1, [2], min_position=wanted, timeout=30)
        assert producer.push(1, 2).result(30).position.revision < wanted.revision
        assert not waiting.done()
        producer.push(1, 3).result(30)
        assert waiting.result(10).position.revision == wanted.revision


def test_calls_that_wait_for_a_position_leave_half_of_the_slots(few_slots: Server) -> None:
    with (
        few_slots.channel() as channel,
        Producer(channel, "p", model=MODEL) as producer,
        ThreadPoolExecutor(8) as pool,
    ):
        here = producer.push(1, 1).result(30).position
        scorer = Scorer(channel, model=MODEL)
        future = Position(here.lineage, here.revision + 1)
        calls = [pool.submit(scorer.score, 1, [1], min_position=future, timeout=30) for _ in range(6)]
        # Calls above the limit are refused, and the client asks again until its deadline.
        with pytest.raises((ResourceExhausted, DeadlineExceeded)):
            scorer.score(1, [1], min_position=future, timeout=0.3)
        # A call that need not wait still gets an answer.
        assert scorer.score(1, [1]).position == here
        producer.push(1, 2).result(30)
        assert [call.result(10).position for call in calls] == [future] * 6


def test_waiting_calls_of_clients_that_go_away_give_their_slots_back(few_slots: Server) -> None:
    with few_slots.channel() as channel, Producer(channel, "p", model=MODEL) as producer:
        here = producer.push(1, 1).result(30).position
        ahead = Position(here.lineage, here.revision + 1)
        # These are more calls than the server has slots.
        for _ in range(10):
            with few_slots.channel() as mine, pytest.raises(DeadlineExceeded):
                Scorer(mine, model=MODEL).score(1, [1], min_position=ahead, timeout=0.05)
        wait_until(lambda: _answers(channel), "a free slot")


def _answers(channel: grpc.Channel) -> bool:
    try:
        Scorer(channel, model=MODEL).score(1, [1])
    except ResourceExhausted:
        return False
    return True
