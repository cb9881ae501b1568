"""The asyncio clients: they have all that the blocking ones have, and they may be cancelled."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest

from fake_scoring import SCORE, Scoring
from fake_server import FakeServer
from livefactor.aio import AsyncAuditor, AsyncModels, AsyncProducer, AsyncScorer
from livefactor.auditor import Auditor
from livefactor.calling.routes import Route
from livefactor.errors import BufferFull, InvalidArgument, LivefactorError, ProducerClosed
from livefactor.models import Models
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer

TWINS = ((Producer, AsyncProducer), (Scorer, AsyncScorer), (Auditor, AsyncAuditor), (Models, AsyncModels))


def public(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "asynchronous"), TWINS, ids=lambda kind: kind.__name__)
def test_a_twin_has_the_methods_and_arguments_of_its_client(blocking: type, asynchronous: type) -> None:
    ours, theirs = public(blocking), public(asynchronous)
    assert set(theirs) - set(ours) == ({"open"} if blocking is Producer else set())
    assert set(ours) - set(theirs) == set()
    calls = {name for name, value in ours.items() if inspect.isfunction(value)}
    assert calls
    for name in calls:
        assert inspect.iscoroutinefunction(theirs[name]), name
        expected, got = inspect.signature(ours[name]), inspect.signature(theirs[name])
        assert list(expected.parameters.values()) == list(got.parameters.values()), name
        assert theirs[name].__doc__ == ours[name].__doc__ or name == "close"
        if name not in ("close", "verify") or blocking is Producer:
            assert "timeout" in expected.parameters, name
    assert inspect.signature(blocking) == inspect.signature(asynchronous)


def finish(task: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(task, 30))


def test_one_loop_has_a_thousand_calls_in_flight(fake: FakeServer) -> None:
    """All calls reach the server before it answers one."""
    arrived = [0]
    scoring = Scoring(fake)

    async def handle(data: bytes, context: Any) -> bytes:
        arrived[0] += 1
        if arrived[0] == 1000:
            released.set()
        await released.wait()
        return scoring(data, context)

    async def ask(port: int) -> None:
        async with AsyncScorer(f"127.0.0.1:{port}") as scorer:
            answers = await asyncio.gather(*(scorer.score(user, [1]) for user in range(1000)))
        assert [answer[0].scores.tolist() for answer in answers] == [[user - 1.0] for user in range(1000)]

    async def both() -> None:
        nonlocal released
        released = asyncio.Event()
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(handle)
        service, method = SCORE[1:].split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await ask(port)
        await server.stop(0)

    released: asyncio.Event
    finish(both())
    assert arrived[0] == 1000


def test_errors_and_retries_are_those_of_the_blocking_client(fake: FakeServer) -> None:
    scoring, tries = Scoring(fake), iter(range(9))

    def second_time(data: bytes, context: grpc.ServicerContext) -> bytes:
        if next(tries) == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return scoring(data, context)

    async def ask() -> None:
        async with AsyncScorer(fake.target, model="shop") as scorer:
            assert (await scorer.score(3, [1]))[0].scores.tolist() == [2.0]
            with pytest.raises(InvalidArgument, match="k: expected at least 1"):
                await scorer.recommend(1, 0)
            fake.serve(SCORE, lambda data, context: context.abort(grpc.StatusCode.NOT_FOUND, "no such"))
            with pytest.raises(LivefactorError, match="model 'shop': no such"):
                await scorer.score(3, [1])
        with pytest.raises(LivefactorError, match="closed"):
            await scorer.similar(3)

    fake.serve(SCORE, second_time)
    finish(ask())


def test_a_cancelled_call_ends_at_once_and_its_client_works_on(fake: FakeServer) -> None:
    cancelled = threading.Event()
    scoring = Scoring(fake)

    def hang(data: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(cancelled.set)
        fake.gate.wait(20)
        return scoring(data, context)

    async def ask() -> None:
        async with AsyncScorer(fake.target) as scorer:
            began = monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(scorer.score(1, [1], timeout=60), 0.2)
            assert monotonic() - began < 5
            assert await asyncio.to_thread(cancelled.wait, 10), "the server hears of it"
            fake.gate.set()
            assert (await scorer.score(3, [1]))[0].scores.tolist() == [2.0]

    fake.gate.clear()
    fake.serve(SCORE, hang)
    finish(ask())


def test_a_cancelled_fetch_leaves_no_file(fake: FakeServer, tmp_path: Path) -> None:
    from livefactor.v1 import snapshots_pb2

    def slow(data: bytes, context: grpc.ServicerContext) -> Any:
        chunk = snapshots_pb2.FetchSnapshotResponse(file_name="users.safetensors", file_size=100, data=b"x")
        yield chunk.SerializeToString()
        fake.gate.wait(20)

    async def fetch() -> None:
        async with AsyncAuditor(fake.target) as auditor:
            task = asyncio.create_task(auditor.fetch(tmp_path / "mine"))
            while not list(tmp_path.glob(".tmp-*/*")):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert list(tmp_path.iterdir()) == []

    fake.gate.clear()
    fake.serve("/livefactor.v1.SnapshotService/FetchSnapshot", slow)
    finish(fetch())
    fake.gate.set()


def test_pushes_of_many_tasks_share_batches_and_are_acknowledged(fake: FakeServer) -> None:
    async def push() -> None:
        async with AsyncProducer(fake.target, "p", batch=BatchSettings(latency_ms_max=None)) as producer:

            async def one(user: int) -> int:
                ack = await (await producer.push(user, user + 1))
                return ack.accepted

            assert sum(await asyncio.gather(*map(one, range(1000)))) == 1000
            assert (await producer.flush()).revision == fake.revision
            assert producer.last_sequence == len(fake.batch_rows)
            await producer.push(5000, 1)
        with pytest.raises(ProducerClosed):
            await producer.push(1, 1)

    finish(push())
    assert sorted(fake.applied) == [*((user, user + 1) for user in range(1000)), (5000, 1)]
    assert len(fake.batch_rows) < 200


def pool_threads() -> int:
    """The threads in which the loop runs what blocks."""
    return sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())


def test_a_full_buffer_waits_without_a_thread_and_ends_at_its_timeout(fake: FakeServer) -> None:
    async def push() -> None:
        settings = BatchSettings(latency_ms_max=0)
        options: dict[str, Any] = {"batch": settings, "buffer_events_max": 10, "timeout": 0.05}
        async with AsyncProducer(fake.target, "p", **options) as producer:
            await producer.push(range(10), range(10))
            threads = pool_threads()
            with pytest.raises(BufferFull):
                await producer.push(range(10), range(10))
            waiting = asyncio.create_task(producer.push(range(20, 30), range(10), timeout=20))
            dropped = asyncio.create_task(producer.push(range(30, 40), range(10), timeout=20))
            await asyncio.sleep(0.05)
            assert pool_threads() == threads
            dropped.cancel()
            fake.gate.set()
            assert (await (await waiting)).accepted == 10
            with pytest.raises(asyncio.CancelledError):
                await dropped

    fake.gate.clear()
    finish(push())
    kept = (*range(10), *range(20, 30))
    assert fake.applied == [(user, user % 10) for user in kept], "the cancelled push left no row"


def test_a_refused_push_raises_where_it_is_awaited(fake: FakeServer) -> None:
    seen: list[Any] = []

    async def push() -> None:
        async with AsyncProducer(fake.target, "p", on_reject=seen.append) as producer:
            with pytest.raises(InvalidArgument):
                await (await producer.push([1, 9], [1, 1]))
            ack = await (await producer.push([2, 3], [1, 1]))
            assert (ack.accepted, ack.rejected_count) == (1, 1)
            await asyncio.sleep(0)
        assert [len(each) for each in seen] == [1]

    fake.refuse_users, fake.reject_users = {9}, {3}
    finish(push())


def test_a_producer_that_is_not_open_says_so(fake: FakeServer) -> None:
    producer = AsyncProducer(fake.target, "p")
    with pytest.raises(ProducerClosed, match="not open"):
        finish(producer.push(1, 1))


def test_all_clients_know_their_targets(fake: FakeServer) -> None:
    for _, kind in TWINS[1:]:
        client = kind("a:1,b:2")
        assert isinstance(client._connection, Route) and "a:1, b:2" in repr(client)
