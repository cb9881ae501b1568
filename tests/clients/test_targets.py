"""Several targets: which server a client calls, and when it goes on to the next one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

import grpc
import pytest

from fake_scoring import SCORE, Scoring
from fake_server import FakeServer
from livefactor.aio import AsyncScorer
from livefactor.errors import InvalidArgument, ProducerFenced, ResourceExhausted, Unavailable
from livefactor.models import Models
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer

FAILOVER_S = 1.0

_SERVER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from fake_scoring import Scoring
from fake_server import FakeServer
fake = FakeServer(Path(sys.argv[1])).start()
Scoring(fake)
print(fake.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def second() -> Iterator[FakeServer]:
    with TemporaryDirectory(prefix="lf") as folder:
        server = FakeServer(Path(folder)).start()
        yield server
        server.stop()


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The target of a server in a process of its own, and what kills it."""
    command = [sys.executable, "-c", _SERVER, str(tmp_path), str(Path(__file__).parent), *sys.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}", process.kill
        process.kill()


def test_reads_go_on_at_the_second_server_when_the_first_is_killed(
    killable: tuple[str, Callable[[], None]], second: FakeServer
) -> None:
    target, kill = killable
    scoring = Scoring(second)
    with Scorer(f"{target}, {second.target}") as scorer:
        assert scorer.score(3, [1])[0].scores.tolist() == [2.0]
        assert scoring.queries == [], "the first target is the first choice"
        kill()
        began = monotonic()
        assert scorer.score(4, [1])[0].scores.tolist() == [3.0]
        assert monotonic() - began < FAILOVER_S
        scorer.score(5, [1])
    assert [query.user_ids.tolist() for query in scoring.queries] == [[4], [5]]


def test_reads_of_an_event_loop_go_on_too(
    killable: tuple[str, Callable[[], None]], second: FakeServer
) -> None:
    target, kill = killable
    Scoring(second)

    async def ask() -> float:
        async with AsyncScorer([target, second.target]) as scorer:
            await scorer.score(3, [1])
            kill()
            began = monotonic()
            answers = await asyncio.gather(*(scorer.score(user, [1]) for user in range(50)))
            assert [answer[0].scores[0] for answer in answers] == [user - 1.0 for user in range(50)]
            return monotonic() - began

    assert asyncio.run(ask()) < FAILOVER_S


def test_a_producer_goes_on_at_a_server_that_took_over_and_each_row_counts_once(
    fake: FakeServer, second: FakeServer
) -> None:
    second.producers, second.applied, second.lock = fake.producers, fake.applied, fake.lock
    with Producer([fake.target, second.target], "p") as producer:
        producer.push(range(100), range(100)).result(10)
        fake.gate.clear()
        receipt = producer.push(range(100, 200), range(100))
        fake.await_requests(2)
        fake.stop()
        began = monotonic()
        assert receipt.result(10).accepted == 100
        assert monotonic() - began < FAILOVER_S
    assert [user for user, _ in fake.applied] == list(range(200))


def test_a_producer_refuses_a_second_server_with_another_history(
    fake: FakeServer, second: FakeServer
) -> None:
    producer = Producer([fake.target, second.target], "p")
    producer.push(1, 1).result(10)
    fake.stop()
    receipt = producer.push(2, 2)
    with pytest.raises(ProducerFenced):
        receipt.result(10)
    with pytest.raises(ProducerFenced):
        producer.close()
    assert second.applied == []


def test_a_write_that_may_have_been_applied_is_not_made_again(fake: FakeServer, second: FakeServer) -> None:
    asked: list[str] = []

    def answers(name: str) -> Callable[[bytes, Any], bytes]:
        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            asked.append(name)
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

        return handle

    delete = "/livefactor.v1.ModelService/DeleteModel"
    fake.serve(delete, answers("first"))
    second.serve(delete, answers("second"))
    with Models([fake.target, second.target]) as models:
        for expected in ("first", "second", "first"):
            with pytest.raises(Unavailable, match="draining"):
                models.delete("shop")
            assert asked.pop() == expected and not asked


def test_targets_come_from_the_environment(second: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    Scoring(second)
    monkeypatch.setenv("LIVEFACTOR_TARGET", f"unix:/nowhere,{second.target}")
    with Scorer() as scorer:
        assert scorer.score(3, [1])[0].scores.tolist() == [2.0]


def test_the_error_names_all_targets_when_none_answers() -> None:
    with (
        Scorer("unix:/nowhere,unix:/nothing", connect_s=0.2) as scorer,
        pytest.raises(Unavailable, match=r"no server at unix:/nowhere, unix:/nothing after 0\.2 s"),
    ):
        scorer.score(1, [1])


@pytest.mark.parametrize("targets", [[], "", "a:1,", "a:1,a:1", ["a:1", "b:x"]])
def test_malformed_targets_are_refused(targets: Any) -> None:
    with pytest.raises(InvalidArgument, match="target: expected"):
        Scorer(targets)


def test_a_client_waits_as_long_as_the_server_asks(fake: FakeServer) -> None:
    scoring, tries, hint = Scoring(fake), count(), ["400"]

    def full(data: bytes, context: grpc.ServicerContext) -> bytes:
        if next(tries) == 0:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", hint[0]),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return scoring(data, context)

    fake.serve(SCORE, full)
    with Scorer(fake.target) as scorer:
        began = monotonic()
        scorer.score(3, [1])
        assert monotonic() - began >= 0.4
        for hint[0] in ("-1", "soon"):
            tries = count()
            with pytest.raises(ResourceExhausted) as caught:
                scorer.score(3, [1])
            assert next(tries) == 1, "the server asked for no other try"
            assert caught.value.retry_after_s == float("inf")


def test_a_producer_waits_for_a_stream_as_long_as_the_server_asks(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []
    stream = fake.stream_updates

    def full_once(requests: Any, context: grpc.ServicerContext) -> Any:
        begun.append(monotonic())
        if len(begun) == 1:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "400"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "streams")
        yield from stream(requests, context)

    monkeypatch.setattr(fake, "stream_updates", full_once)
    with Producer(fake.target, "p") as producer:
        producer.push(1, 1).result(10)
        while len(begun) < 2:
            sleep(0.01)
    assert begun[1] - begun[0] >= 0.4
