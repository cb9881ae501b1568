"""A lane sheds calls under overload, and never for a burst or for callers that wait for answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from livefactor_server.rpc import lanes
from livefactor_server.rpc.lanes import Lane, Pressure
from livefactor_server.rpc.loop import Loop, shared_loop
from livefactor_server.statuses import Refused

CALL_S = 0.02


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lanes, "time", made)
    return made


def windows(pressure: Pressure, clock: Clock, counts: list[tuple[int, int]]) -> None:
    """Let windows pass with numbers of arrivals and ends."""
    for arrived, ended in counts:
        for _ in range(arrived):
            pressure.arrive()
        for _ in range(ended):
            pressure.end()
        clock.now += lanes.WINDOW_S
    pressure.arrive()


@pytest.mark.parametrize(
    ("counts", "is_overload"),
    [
        ([(100, 10), (100, 10), (100, 10)], True),
        ([(100, 10), (100, 10)], False),
        # A burst, and callers that wait for their answers.
        ([(1000, 10), (10, 10)], False),
        ([(1000, 20), (20, 20), (20, 20), (20, 20)], False),
        # More than usual by chance.
        ([(23, 20), (28, 20), (24, 20)], False),
        ([(24, 20), (29, 20), (24, 20)], False),
        # Few calls make one long window.
        ([(7, 1), (7, 1), (7, 1)], False),
        ([(7, 1)] * 9, True),
        ([(100, 90), (105, 90), (105, 90)], False),
        # It ends with the load.
        ([(100, 10), (100, 10), (100, 10), (20, 20)], False),
        ([(20, 20), (130, 100), (130, 100), (130, 100)], True),
    ],
)
def test_overload_is_more_arrivals_than_ends(
    clock: Clock, counts: list[tuple[int, int]], is_overload: bool
) -> None:
    pressure = Pressure()
    windows(pressure, clock, counts)
    assert pressure.is_overload is is_overload


@pytest.fixture
def loop() -> Iterator[Loop]:
    yield shared_loop()


async def offer(lane: Lane, calls: int, gap_s: float, model: str = "m") -> list[bool]:
    async def one() -> bool:
        try:
            async with lane.slot(1, model):
                await asyncio.sleep(CALL_S)
        except Refused as refused:
            assert refused.retry_ms > 0
            return False
        return True

    tasks = []
    for _ in range(calls):
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(gap_s)
    return await asyncio.gather(*tasks)


def test_a_flood_is_shed_and_the_rest_succeeds(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "WINDOW_S", 0.05)
    lane = Lane(loop, "flood", 2, 100_000, 1 << 30, 2)
    # Ten times what the slots can do.
    results = loop.run(offer(lane, 1000, CALL_S / 20))
    accepted = sum(results)
    assert 10 < accepted < 700
    # Nobody waits any more, and the next call succeeds at once.
    assert loop.run(offer(lane, 1, 0)) == [True]


def test_the_flood_of_a_model_refuses_no_call_of_another(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "WINDOW_S", 0.05)
    lane = Lane(loop, "flood", 2, 100_000, 1 << 30, 2)

    async def both() -> tuple[list[bool], list[bool]]:
        flood = asyncio.create_task(offer(lane, 1000, CALL_S / 20))
        few = await offer(lane, 20, 2 * CALL_S, "quiet")
        return await flood, few

    flood, few = loop.run(both())
    assert not all(flood)
    assert all(few)


def test_a_burst_waits_for_its_turn(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "WINDOW_S", 0.05)
    lane = Lane(loop, "burst", 2, 1000, 1 << 30, 2)
    assert all(loop.run(offer(lane, 60, 0)))


def test_a_call_that_would_be_refused_is_refused_when_it_knocks(loop: Loop, clock: Clock) -> None:
    async def work() -> None:
        lane = Lane(loop, "door", 1, 2, 100, 1)
        lane.knock(1000, "m")
        await lane.take(1, "m")
        lane.knock(100, "m")
        with pytest.raises(Refused, match="1 calls run and 0 wait"):
            lane.knock(101, "m")
        waiting = [asyncio.create_task(lane.take(1, "m")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="1 calls run and 2 wait"):
            lane.knock(1, "m")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        # Calls that knock count as arrivals, so the overload ends only with the load.
        for _ in range(lanes.WINDOWS + 1):
            for _ in range(lanes.WINDOW_CALLS):
                with contextlib.suppress(Refused):
                    lane.knock(101, "m")
            clock.now += lanes.WINDOW_S
        with pytest.raises(Refused, match="more calls arrive than the server can do"):
            lane.knock(1, "m")
        lane.knock(1, "another")

    loop.run(work())
