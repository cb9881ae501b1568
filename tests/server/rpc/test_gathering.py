"""The batches of unary calls reach an engine together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from livefactor.v1 import updates_pb2
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.submission import Submission
from livefactor_server.rpc import loop as loops
from livefactor_server.rpc.loop import Loop, shared_loop
from stubs import Stubs

PATIENCE_S = 60.0


@pytest.fixture
def loop() -> Loop:
    return shared_loop()


def test_a_call_waits_until_the_loop_has_nothing_else_to_do(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "GATHER_S", PATIENCE_S)
    seen: list[object] = []
    made = threading.Event()

    def call() -> None:
        seen.append("call")
        made.set()

    async def work() -> None:
        for step in range(3):
            loop.when_idle(call)
            seen.append(step)
            await asyncio.sleep(0)

    loop.run(work())
    assert made.wait(PATIENCE_S)
    assert seen == [0, 1, 2, "call"]


def test_a_busy_loop_makes_the_call_nevertheless(loop: Loop) -> None:
    made = threading.Event()

    async def busy() -> bool:
        loop.when_idle(made.set)
        stop = asyncio.get_running_loop().time() + PATIENCE_S
        while not made.is_set() and asyncio.get_running_loop().time() < stop:
            await asyncio.sleep(0)
        return made.is_set()

    assert loop.run(busy())


def test_an_error_in_a_call_stops_neither_the_loop_nor_the_other_calls(loop: Loop) -> None:
    made = threading.Event()

    def fail() -> None:
        raise ValueError("a bug")

    async def work() -> None:
        loop.when_idle(fail)
        loop.when_idle(made.set)

    loop.run(work())
    assert made.wait(PATIENCE_S)
    loop.run(asyncio.sleep(0))


def test_batches_that_arrive_while_the_loop_is_busy_become_one_group(
    stubs: Stubs, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "GATHER_S", 10 * PATIENCE_S)
    sizes: list[int] = []
    enqueue = Engine.enqueue

    def counted(engine: Engine, items: Sequence[Submission]) -> None:
        sizes.append(len(items))
        enqueue(engine, items)

    monkeypatch.setattr(Engine, "enqueue", counted)
    model, over, arrived = stubs.model(), threading.Event(), threading.Semaphore(0)
    reserve = Engine.reserve

    def noted(engine: Engine, item: Submission) -> bool:
        arrived.release()
        return reserve(engine, item)

    monkeypatch.setattr(Engine, "reserve", noted)

    async def busy() -> None:
        while not over.is_set():
            await asyncio.sleep(0)

    spinning = loop.start(busy())
    try:
        calls = [
            stubs.updates.ApplyUpdates.future(
                updates_pb2.ApplyUpdatesRequest(
                    model=model, interactions=updates_pb2.Interactions(user_ids=[user], item_ids=[7])
                ),
                timeout=PATIENCE_S,
            )
            for user in range(5)
        ]
        for _ in calls:
            assert arrived.acquire(timeout=PATIENCE_S)
    finally:
        over.set()
        spinning.result(PATIENCE_S)
    assert sorted(call.result().position.revision for call in calls) == [1, 2, 3, 4, 5]
    assert sizes == [5]
