"""A receipt is a future for threads, for asyncio and for callbacks."""

from __future__ import annotations

import asyncio
from concurrent import futures
from typing import Any

import pytest

from fake_server import FakeServer
from livefactor.errors import FlushTimeout, ProducerClosed
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer

WAIT_S = 20.0


def test_a_receipt_is_a_future(fake: FakeServer) -> None:
    fake.gate.clear()
    producer = Producer(fake.target, "p", batch=BatchSettings(latency_ms_max=0))
    first, second = producer.push([1], [1]), producer.push(["ann"], ["lamp"])
    called: list[Any] = []
    for receipt in (first, second):
        receipt.add_done_callback(called.append)
    assert not called and first.running() and not first.cancel() and not first.cancelled()
    both = {first, second}
    assert futures.wait(both, 0.01).not_done == both

    async def awaited() -> list[int]:
        waiting = [asyncio.wrap_future(receipt) for receipt in (second, first)]
        fake.gate.set()
        return [ack.accepted for ack in await asyncio.gather(*waiting)]

    assert asyncio.run(asyncio.wait_for(awaited(), WAIT_S)) == [1, 1]
    assert futures.wait(both, WAIT_S).done == both == set(futures.as_completed(both, WAIT_S))
    # A callback that comes late is called at once, and each one once.
    first.add_done_callback(called.append)
    assert called == [first, second, first] and not first.running()
    nothing = producer.push([], [])
    nothing.add_done_callback(called.append)
    assert called[3:] == [nothing]
    producer.close()


def test_a_receipt_that_fails_tells_its_callbacks(fake: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    fake.gate.clear()
    producer = Producer(fake.target, "p", batch=BatchSettings(events_max=100, latency_ms_max=None))
    sent, pending = producer.push([1] * 100, [1] * 100), producer.push([2], [2])
    called: list[Any] = []
    for receipt in (sent, pending):
        receipt.add_done_callback(lambda _: 1 / 0)
        receipt.add_done_callback(called.append)
    with pytest.raises(FlushTimeout):
        producer.close(0.05)
    assert set(called) == {sent, pending} == futures.wait(called, WAIT_S, "FIRST_EXCEPTION").done
    assert isinstance(sent.exception(0), ProducerClosed)
    assert "a callback of a receipt failed" in caplog.text

    async def awaited() -> None:
        await asyncio.wrap_future(pending)

    with pytest.raises(ProducerClosed):
        asyncio.run(awaited())
