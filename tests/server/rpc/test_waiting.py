"""Calls that wait: for their message, for a slot, for a peer that reads. None stops the others.

The server has small limits, so that each test takes a moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from livefactor.v1 import models_pb2, scoring_pb2, snapshots_pb2, updates_pb2
from livefactor_server.engine.answering.answers import Answers
from livefactor_server.engine.readers import Reader
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer
from stubs import Stubs

SCORE = "/livefactor.v1.ScoringService/Score"
FETCH = "/livefactor.v1.SnapshotService/FetchSnapshot"
STREAM = "/livefactor.v1.UpdateService/StreamUpdates"
WAIT_S = 0.6
SETTINGS = ServiceSettings(
    streams_max=2,
    score_slots=1,
    snapshot_slots=1,
    fetch_slots=2,
    waiting_max=250,
    open_calls_max=300,
    message_wait_s=WAIT_S,
    write_wait_s=WAIT_S,
)
NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535))


@pytest.fixture(scope="module")
def hosting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosting]:
    made = Hosting(tmp_path_factory.mktemp("data"), HostingSettings(default_preset=""))
    made.open_all()
    yield made
    made.drain()


@pytest.fixture
def serve(hosting: Hosting) -> Iterator[Callable[[ServiceSettings], str]]:
    """Provide a function that starts a server for the models, and returns its address."""
    servers: list[RpcServer] = []

    def start(settings: ServiceSettings) -> str:
        servers.append(RpcServer(hosting, settings, "127.0.0.1:0"))
        servers[-1].start()
        return f"127.0.0.1:{servers[-1].port}"

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def target(serve: Callable[[ServiceSettings], str]) -> str:
    return serve(SETTINGS)


@pytest.fixture
def stubs(target: str) -> Iterator[Stubs]:
    with grpc.insecure_channel(target) as channel:
        yield Stubs(channel)


@pytest.fixture(scope="module")
def model(hosting: Hosting) -> str:
    from livefactor_kernels.spec.presets import preset

    return hosting.create("m", preset("clicks_sgd")).name


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def open_idle(stack: ExitStack, target: str, path: str, count: int) -> list[Any]:
    """Open calls that never send their message, on a connection of their own."""
    channel = stack.enter_context(grpc.insecure_channel(target, (("grpc.use_local_subchannel_pool", 1),)))
    ended = threading.Event()
    stack.callback(ended.set)

    def nothing() -> Iterator[bytes]:
        ended.wait(30)
        yield from ()

    # A future's thread waits for the messages, so they all end with the test.
    calls = [channel.stream_stream(path)(nothing(), timeout=30) for _ in range(count)]
    for call in calls:
        stack.callback(call.cancel)
    return calls


def check_control(stubs: Stubs) -> None:
    """Health, administration and reflection answer at once."""
    health = health_pb2_grpc.HealthStub(stubs.channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=2).status == 1
    assert stubs.models.ListModels(models_pb2.ListModelsRequest(), timeout=2).models
    stubs.models.DescribeModel(models_pb2.DescribeModelRequest(model="m"), timeout=2)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    (found,) = reflection.ServerReflectionInfo(asked, timeout=2)
    assert len(found.list_services_response.service) == 6


# ------------------------------------------------------------------------------------------------
# for a message


def test_calls_without_a_message_stop_nobody_and_end_in_time(target: str, stubs: Stubs, model: str) -> None:
    with ExitStack() as stack:
        idle = open_idle(stack, target, SCORE, 62) + open_idle(stack, target, SCORE, 62)
        check_control(stubs)
        stubs.push(model, [1], [1])
        stubs.scoring.Score(top_k(model, 1), timeout=2)
        for call in idle:
            assert code_of(lambda call=call: list(call)) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no message within" in idle[0].details()


def test_too_many_open_calls_are_refused_and_control_calls_still_answer(
    serve: Callable[[ServiceSettings], str], model: str
) -> None:
    target = serve(ServiceSettings(open_calls_max=30, message_wait_s=20))
    with ExitStack() as stack:
        stubs = Stubs(stack.enter_context(grpc.insecure_channel(target)))
        idle = open_idle(stack, target, SCORE, 35)
        wait_until(lambda: sum(not call.is_active() for call in idle) == 5)
        refused = [call for call in idle if not call.is_active()]
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "30 open ones" in refused[0].details()
        check_control(stubs)
        assert code_of(lambda: stubs.scoring.Score(top_k(model, 1), timeout=5)) is (
            grpc.StatusCode.RESOURCE_EXHAUSTED
        )
        for call in idle:
            call.cancel()
        wait_until(
            lambda: code_of(lambda: stubs.scoring.Score(top_k(model, 1), timeout=5)) is (grpc.StatusCode.OK)
        )


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_idle_update_stream_gives_its_place_to_another_one(
    serve: Callable[[ServiceSettings], str], model: str
) -> None:
    idle_s = 2.0
    target = serve(ServiceSettings(streams_max=2, stream_idle_s=idle_s))
    rows = updates_pb2.Interactions(user_ids=[1], item_ids=[1])
    request = updates_pb2.StreamUpdatesRequest(model=model, interactions=rows)
    with ExitStack() as stack:
        stubs = Stubs(stack.enter_context(grpc.insecure_channel(target)))
        first, second = open_idle(stack, target, STREAM, 2)

        def push() -> grpc.StatusCode:
            return code_of(lambda: list(stubs.updates.StreamUpdates(iter([request]), timeout=5)))

        # The server may see the idle streams a moment later.
        wait_until(lambda: push() is grpc.StatusCode.RESOURCE_EXHAUSTED)
        wait_until(lambda: push() is grpc.StatusCode.OK)
        wait_until(lambda: not (first.is_active() and second.is_active()))
        (ended,) = (call for call in (first, second) if not call.is_active())
        assert ended.code() is grpc.StatusCode.UNAVAILABLE
        assert "another one needs its place" in ended.details()


# ------------------------------------------------------------------------------------------------
# for a slot


def top_k(model: str, users: int, k: int = 3) -> scoring_pb2.ScoreRequest:
    return scoring_pb2.ScoreRequest(model=model, user_ids=range(users), top_k=scoring_pb2.TopK(k=k))


def test_200_calls_at_once_wait_for_the_only_slot(target: str, stubs: Stubs, model: str) -> None:
    stubs.push(model, [1, 2, 3], [1, 2, 3])
    with grpc.insecure_channel(target) as channel, ThreadPoolExecutor(200) as pool:
        call = channel.unary_unary(SCORE)
        raw = top_k(model, 3).SerializeToString()
        answers = list(pool.map(lambda _: call(raw, timeout=30), range(200)))
    assert len(set(answers)) == 1


def test_a_full_queue_refuses_with_a_hint_and_calls_leave_it_at_their_deadlines(
    serve: Callable[[ServiceSettings], str], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = threading.Event()
    score = Reader.score
    monkeypatch.setattr(Reader, "score", lambda *arguments: hold.wait(20) and score(*arguments))
    target = serve(ServiceSettings(score_slots=1, waiting_max=2))
    with grpc.insecure_channel(target) as channel:
        call, raw = channel.unary_unary(SCORE), top_k(model, 1).SerializeToString()
        running = call.future(raw, timeout=20)
        time.sleep(0.2)
        waiting = [call.future(raw, timeout=2) for _ in range(2)]
        time.sleep(0.2)
        refused = call.future(raw, timeout=20)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "1 calls run and 2 wait" in refused.details()
        assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "100"
        assert {one.code() for one in waiting} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        # The two have left the queue, so that others find a place.
        time.sleep(0.2)
        later = call.future(raw, timeout=20)
        hold.set()
        assert running.result() == later.result()


def test_work_ends_when_its_caller_has_left_and_gives_its_slot_back(
    stubs: Stubs, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[None] = []
    best = Answers._best

    def slow(*arguments: Any) -> Any:
        blocks.append(None)
        time.sleep(0.05)
        return best(*arguments)

    monkeypatch.setattr(Answers, "_best", slow)
    # 16 blocks of 64 users would take 0.8 s.
    assert code_of(lambda: stubs.scoring.Score(top_k(model, 1024), timeout=0.2)) is (
        grpc.StatusCode.DEADLINE_EXCEEDED
    )
    # The only slot is free again when this call is answered.
    stubs.scoring.Score(top_k(model, 1), timeout=20)
    assert len(blocks) < 16
    blocks.clear()
    future = stubs.scoring.Score.future(top_k(model, 1024), timeout=20)
    wait_until(lambda: len(blocks) > 0)
    future.cancel()
    stubs.scoring.Score(top_k(model, 1), timeout=20)
    assert len(blocks) < 16


# ------------------------------------------------------------------------------------------------
# for a reader


@pytest.fixture
def snapshot(stubs: Stubs, model: str) -> snapshots_pb2.FetchSnapshotRequest:
    """A snapshot that is larger than what the transport buffers."""
    stubs.push(model, list(range(9000)), list(range(9000)))
    list(stubs.snapshots.Snapshot(snapshots_pb2.SnapshotRequest(model=model), timeout=20))
    return snapshots_pb2.FetchSnapshotRequest(model=model)


def test_fetches_that_nobody_reads_end_and_block_no_snapshot(
    target: str, stubs: Stubs, model: str, snapshot: snapshots_pb2.FetchSnapshotRequest
) -> None:
    raw = snapshot.SerializeToString()
    channels = [
        grpc.insecure_channel(target, (*NARROW, ("grpc.use_local_subchannel_pool", 1))) for _ in range(4)
    ]
    unread = [channel.unary_stream(FETCH)(raw, timeout=30) for channel in channels]
    try:
        stubs.push(model, [1], [1])
        list(stubs.snapshots.Snapshot(snapshots_pb2.SnapshotRequest(model=model), timeout=5))
        # All slots are taken by what nobody reads, so this one waits until two of them end.
        began = time.monotonic()
        pieces = list(stubs.snapshots.FetchSnapshot(snapshot, timeout=20))
        assert pieces[-1].offset + len(pieces[-1].data) == pieces[-1].file_size
        assert time.monotonic() - began < 15
        time.sleep(WAIT_S)
        again = channels[0].unary_stream(FETCH)(raw, timeout=5)
        assert code_of(lambda: list(again)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Who reads on learns how the call ended.
        assert code_of(lambda: list(unread[0])) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "has read nothing" in unread[0].details()
        assert len(list(channels[0].unary_stream(FETCH)(raw, timeout=20))) == len(pieces)
    finally:
        for channel in channels:
            channel.close()


def test_a_watcher_of_the_health_learns_of_changes(stubs: Stubs) -> None:
    watch = health_pb2_grpc.HealthStub(stubs.channel).Watch(health_pb2.HealthCheckRequest(), timeout=5)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
