"""Batches of small calls reach an engine together, in the order in which they came."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from livefactor.v1 import updates_pb2
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


def test_small_and_large_batches_of_a_stream_keep_their_order(
    stubs: Stubs, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones are gathered, and a large one goes through a thread after them.

    The loop is busy all the time, so that nothing else hands the small ones over.
    """
    model = stubs.model()
    opened = stubs.updates.OpenProducer(
        updates_pb2.OpenProducerRequest(model=model, producer_id="mixed"), timeout=PATIENCE_S
    )
    ids = np.arange(30_000, dtype=np.uint64) % 50
    sizes = [2, 2, 3, len(ids)] * 3

    def batches() -> Iterator[updates_pb2.StreamUpdatesRequest]:
        for sequence, size in enumerate(sizes, 1):
            yield updates_pb2.StreamUpdatesRequest(
                model=model,
                producer=updates_pb2.ProducerStamp(id="mixed", epoch=opened.epoch, sequence=sequence),
                interactions=updates_pb2.Interactions(user_ids=ids[:size], item_ids=ids[:size]),
            )

    over = threading.Event()

    async def busy() -> None:
        while not over.is_set():
            await asyncio.sleep(0)

    monkeypatch.setattr(loops, "GATHER_S", 10 * PATIENCE_S)
    spinning = loop.start(busy())
    try:
        answers = [
            answer
            for message in stubs.updates.StreamUpdates(batches(), timeout=PATIENCE_S)
            for answer in message.answers
        ]
    finally:
        over.set()
        spinning.result(PATIENCE_S)
    assert [answer.response.accepted for answer in answers] == sizes
