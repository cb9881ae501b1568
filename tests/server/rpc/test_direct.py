"""Direct calls: what they leave to the loop, how they end, and a grpcio without them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from livefactor.v1 import scoring_pb2, updates_pb2
from livefactor_kernels.spec.presets import preset
from livefactor_server.engine.engine import Engine
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.log.store import Log
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.direct import core
from livefactor_server.rpc.direct.server import DirectServer, Later
from livefactor_server.rpc.guards import Call, Guard
from livefactor_server.rpc.lanes import Lane
from livefactor_server.rpc.loop import shared_loop
from livefactor_server.rpc.server import RpcServer
from livefactor_server.rpc.updates import INLINE_INTERACTIONS_BYTES_MAX
from stubs import Stubs

PATIENCE_S = 30.0
Start = Callable[[], Stubs]


@pytest.fixture
def hosting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosting]:
    made = Hosting(tmp_path_factory.mktemp("data"), HostingSettings(default_preset=""))
    made.open_all()
    made.create("m", preset("clicks_sgd"))
    yield made
    made.drain()


@pytest.fixture
def servers() -> list[RpcServer]:
    return []


@pytest.fixture
def start(hosting: Hosting, servers: list[RpcServer]) -> Iterator[Start]:
    """Provide a function that starts a server for the model "m", and returns stubs."""
    channels: list[grpc.Channel] = []

    def started() -> Stubs:
        servers.append(RpcServer(hosting, ServiceSettings(), "127.0.0.1:0"))
        servers[-1].start()
        channels.append(grpc.insecure_channel(f"127.0.0.1:{servers[-1].port}"))
        return Stubs(channels[-1])

    yield started
    for channel in channels:
        channel.close()
    for server in servers:
        server.stop()


def score(stubs: Stubs, **fields: Any) -> Any:
    return stubs.scoring.Score(scoring_pb2.ScoreRequest(model="m", **fields), timeout=PATIENCE_S)


def candidates(stubs: Stubs) -> Any:
    return score(stubs, user_ids=[1], candidates=scoring_pb2.Candidates(item_ids=[1, 2]))


def test_a_small_call_needs_no_task_and_a_large_one_gets_one(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs, tasks = start(), []
    begin = Later._begin_task

    def noted(later: Later, raw: bytes) -> None:
        tasks.append(len(raw))
        begin(later, raw)

    monkeypatch.setattr(Later, "_begin_task", noted)
    assert stubs.push("m", [1, 2], [1, 2]).position.revision == 1
    assert len(candidates(stubs).scores) == 2
    assert tasks == []
    ids = np.arange(INLINE_INTERACTIONS_BYTES_MAX // 16 + 1) % 50
    assert stubs.push("m", ids.tolist(), ids.tolist()).accepted == len(ids)
    assert len(score(stubs, user_ids=[1], top_k=scoring_pb2.TopK(k=3)).scores) == 3
    assert len(tasks) == 2


def test_a_grpcio_without_this_layer_serves_the_same_calls(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    direct = start()
    direct.push("m", [1, 2], [1, 2])
    at_once = candidates(direct)
    monkeypatch.setitem(core._USED, "Call", ("start_server_batch", "a_name_of_another_version"))

    def unexpected(*_: object) -> None:
        raise AssertionError("a direct call")

    monkeypatch.setattr(DirectServer, "_accept", unexpected)
    stubs = start()
    assert "serves all calls with asyncio" in caplog.text
    assert candidates(stubs) == at_once
    assert stubs.push("m", [3], [3]).position.revision == 2
    with pytest.raises(grpc.RpcError) as caught:
        score(stubs, user_ids=[1])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unexpected_error_of_a_handler_has_a_fixed_text_and_ends_only_its_call(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs = start()

    def fail(*_: object) -> bool:
        raise RuntimeError("a secret")

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "reserve", fail)
        with pytest.raises(grpc.RpcError) as caught:
            stubs.push("m", [1], [1])
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "server: unexpected error"
    # The slot is free again.
    for _ in range(ServiceSettings().update_slots + 1):
        stubs.push("m", [1], [1])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold the appends of all logs. Provide what is set when one waits, and what ends the wait."""
    waits, may_go = threading.Event(), threading.Event()
    append = Log.append

    def held_append(log: Log, entries: Any) -> Any:
        waits.set()
        assert may_go.wait(PATIENCE_S)
        return append(log, entries)

    monkeypatch.setattr(Log, "append", held_append)
    yield waits, may_go
    may_go.set()


def update(stubs: Stubs, user: int) -> Any:
    rows = updates_pb2.Interactions(user_ids=[user], item_ids=[user])
    request = updates_pb2.ApplyUpdatesRequest(model="m", interactions=rows)
    return stubs.updates.ApplyUpdates.future(request, timeout=PATIENCE_S)


def test_a_batch_whose_caller_left_before_the_log_took_it_is_not_logged(
    start: Start,
    held: tuple[threading.Event, threading.Event],
    hosting: Hosting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cancelled, leave = threading.Event(), Guard.leave

    def noted(guard: Guard, call: Call, code: str, text: str = "") -> None:
        leave(guard, call, code, text)
        if code == "CANCELLED":
            cancelled.set()

    monkeypatch.setattr(Guard, "leave", noted)
    stubs, (waits, may_go) = start(), held
    first = update(stubs, 1)
    assert waits.wait(PATIENCE_S)
    left = update(stubs, 2)
    # It is in the queue behind the first one.
    until = time.monotonic() + PATIENCE_S
    while hosting.get("m").engine.queued_bytes == 0 and time.monotonic() < until:
        time.sleep(0.001)
    left.cancel()
    assert cancelled.wait(PATIENCE_S)
    may_go.set()
    assert first.result().position.revision == 1
    assert update(stubs, 3).result().position.revision == 2


def test_a_large_batch_whose_caller_left_while_it_was_decoded_gives_its_room_back(
    start: Start, monkeypatch: pytest.MonkeyPatch, hosting: Hosting
) -> None:
    decodes, may_go, queued = threading.Event(), threading.Event(), threading.Event()
    reserve, enqueue, left = Engine.reserve, Engine.enqueue, threading.Event()

    def slow(engine: Engine, item: Any) -> bool:
        decodes.set()
        assert may_go.wait(PATIENCE_S)
        return reserve(engine, item)

    def noted(engine: Engine, items: Any) -> None:
        enqueue(engine, items)
        queued.set()

    cancel = Later._cancel_task

    def cancelled(later: Later) -> None:
        cancel(later)
        left.set()

    monkeypatch.setattr(Engine, "reserve", slow)
    monkeypatch.setattr(Engine, "enqueue", noted)
    monkeypatch.setattr(Later, "_cancel_task", cancelled)
    stubs = start()
    ids = (np.arange(INLINE_INTERACTIONS_BYTES_MAX // 16 + 1) % 50).tolist()
    rows = updates_pb2.Interactions(user_ids=ids, item_ids=ids)
    request = updates_pb2.ApplyUpdatesRequest(model="m", interactions=rows)
    call = stubs.updates.ApplyUpdates.future(request, timeout=PATIENCE_S)
    assert decodes.wait(PATIENCE_S)
    call.cancel()
    assert left.wait(PATIENCE_S)
    may_go.set()
    assert queued.wait(PATIENCE_S)
    # The next batch is behind it.
    assert stubs.push("m", [1], [1]).position.revision == 1
    assert hosting.get("m").engine.queued_bytes == 0


def test_an_answer_that_comes_after_the_server_has_stopped_harms_nobody(
    start: Start,
    held: tuple[threading.Event, threading.Event],
    servers: list[RpcServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stubs, (waits, may_go) = start(), held
    wakes: list[object] = []

    def late_reply(later: Later, result: Any) -> Any:
        # As if the call had ended between the look and the wake.
        later._server.prepare(later, result)
        wakes.append(result)
        return later._server.wake

    monkeypatch.setattr(Later, "reply", late_reply)
    pending = update(stubs, 1)
    assert waits.wait(PATIENCE_S)
    servers.pop().stop()
    assert pending.exception(PATIENCE_S).code() is not grpc.StatusCode.OK
    may_go.set()
    again = start()
    assert again.push("m", [2], [2]).position.revision == 2
    assert len(wakes) == 2


def test_a_call_in_the_loop_is_cancelled_when_its_caller_leaves(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from livefactor_server.rpc import scoring

    began, cancelled = threading.Event(), threading.Event()

    async def endless(*_: object) -> bytes:
        began.set()
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            cancelled.set()
        return b""

    monkeypatch.setattr(scoring, "_answered", endless)
    stubs = start()
    request = scoring_pb2.ScoreRequest(model="m", user_ids=[1], top_k=scoring_pb2.TopK(k=1))
    call = stubs.scoring.Score.future(request, timeout=PATIENCE_S)
    assert began.wait(PATIENCE_S)
    call.cancel()
    assert cancelled.wait(PATIENCE_S)


def test_a_slot_that_a_direct_call_gives_back_goes_to_a_call_that_waits_in_the_loop() -> None:
    loop = shared_loop()
    lane = Lane(loop, "updates", 1, 10, 1000)
    assert lane.take_at_once() and not lane.take_at_once()
    taken = threading.Event()

    async def wait() -> None:
        async with lane.slot(1, "m"):
            taken.set()

    waiting = loop.start(wait())
    loop.run(asyncio.sleep(0))
    assert not taken.is_set()
    lane.give_back()
    waiting.result(PATIENCE_S)
    assert taken.is_set()
    assert lane.take_at_once()
    lane.give_back()
