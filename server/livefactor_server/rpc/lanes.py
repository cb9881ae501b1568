"""Lanes: how many calls of a kind run at a time, and how many wait for their turn.

A call takes a slot of its lane only after its message has arrived. Calls without a free slot wait
in the order of their arrival, until their deadlines. The queue is bounded in calls and in bytes.

A lane of calls that compute is under *overload* if in WINDOWS in a row more calls arrived than
ended. Callers who wait for their answers before they call again never cause this, however many they
are, and neither does a burst. Under overload fewer calls run at a time and none waits, because a
queue then helps nobody: as many calls succeed, and each takes longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from livefactor_server.rpc.loop import Loop
from livefactor_server.statuses import Refused, busy

Result = TypeVar("Result")


WINDOW_S, WINDOW_S_MAX, WINDOW_CALLS = 0.5, 5.0, 20
"""Seconds in which arrivals and ends are compared. A window with fewer arrivals than WINDOW_CALLS
is longer, because chance counts for more in small numbers.
"""

WINDOWS = 3
"""Number of windows in a row that make an overload."""

EXCESS_SHARE, EXCESS_MIN = 0.25, 4
"""More calls arrive than end if the excess is above this share of the ends and above this number.
"""


class Pressure:
    """Whether a lane is under overload."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._arrived = self._ended = self._exceeded = 0

    def arrive(self) -> None:
        """A call has arrived, whether it is refused or not."""
        now = time.monotonic()
        age = now - self._began
        if age >= WINDOW_S_MAX or (age >= WINDOW_S and self._arrived >= WINDOW_CALLS):
            excess = self._arrived - self._ended
            is_above = excess > max(EXCESS_MIN, EXCESS_SHARE * self._ended)
            self._exceeded = self._exceeded + 1 if is_above else 0
            self._began, self._arrived, self._ended = now, 0, 0
        self._arrived += 1

    def end(self) -> None:
        """A call has ended that had a slot."""
        self._ended += 1

    @property
    def is_overload(self) -> bool:
        """Whether calls should be refused instead of waiting."""
        return self._exceeded >= WINDOWS


class Slot:
    """A slot of a lane, as `Lane.slot` gives it."""

    __slots__ = ("_lane", "_size")

    def __init__(self, lane: Lane, size: int) -> None:
        self._lane, self._size = lane, size

    async def __aenter__(self) -> None:
        await self._lane.take(self._size)

    async def __aexit__(self, *_: object) -> None:
        self._lane.release()


class Lane:
    """The slots of a kind of call, the queue before them, and the threads behind them.

    Only the loop's thread may call its methods.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        slots: int,
        waiting_max: int,
        waiting_bytes_max: int,
        overload_slots: int | None = None,
    ) -> None:
        """Starts no thread yet.

        Args:
            loop: the loop that awaits the results.
            name: what the slots are for, as in errors.
            slots: maximum number of calls at a time.
            waiting_max: maximum number of calls that wait for a slot.
            waiting_bytes_max: maximum bytes of the messages of these calls.
            overload_slots: maximum number of calls at a time under overload. None: calls of this
                kind do not compute, so they wait however many arrive.
        """
        self._loop = loop
        self._name, self._slots = name, slots
        self._waiting_max, self._waiting_bytes_max = waiting_max, waiting_bytes_max
        self._free = asyncio.Semaphore(slots)
        self._waiting = self._waiting_bytes = 0
        self._running, self._overload_slots = 0, overload_slots
        self._pressure = Pressure()
        self._threads = ThreadPoolExecutor(max(1, slots), thread_name_prefix=f"rpc-{name}")

    async def take(self, size: int) -> None:
        """Takes a slot, as `slot` does. The caller then calls `release`."""
        self._pressure.arrive()
        self._check_pressure()
        if self._free.locked():
            await self._wait(size)
        else:
            await self._free.acquire()
        self._running += 1

    async def _wait(self, size: int) -> None:
        if self._waiting >= self._waiting_max or self._waiting_bytes + size > self._waiting_bytes_max:
            raise busy(
                f"{self._name}: {self._slots} calls run and {self._waiting} wait, which is the limit; "
                "try again later"
            )
        self._waiting += 1
        self._waiting_bytes += size
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size
        try:
            self._check_pressure()
        except Refused:
            self._free.release()
            raise

    def _check_pressure(self) -> None:
        most = self._overload_slots
        if most is not None and self._running >= most and self._pressure.is_overload:
            raise busy(f"{self._name}: more calls arrive than the server can do; try again later")

    def release(self) -> None:
        """Gives a slot back."""
        self._running -= 1
        self._free.release()
        self._pressure.end()

    def slot(self, size: int) -> Slot:
        """Holds a slot in an `async with` block. `size` is the size of the call's message in bytes.

        Entering it raises `Refused` with RESOURCE_EXHAUSTED if the queue is full.
        """
        return Slot(self, size)

    async def run(self, size: int, work: Callable[..., Result], *arguments: Any) -> Result:
        """Runs blocking work in a thread. It holds a slot until the work has ended, also if the
        caller has left before.

        Raises:
            Refused: RESOURCE_EXHAUSTED if the queue is full.
        """
        await self.take(size)
        return await self._thread(work, arguments, self.release)

    async def in_thread(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Runs blocking work in a thread. The caller holds a slot."""
        return await self._thread(work, arguments, None)

    async def _thread(
        self, work: Callable[..., Result], arguments: tuple[Any, ...], ended: Callable[[], None] | None
    ) -> Result:
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def finish(result: Any, error: BaseException | None) -> None:
            if ended is not None:
                ended()
            # It is done already if the caller has left.
            if done.done():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def in_thread() -> None:
            try:
                result, error = work(*arguments), None
            except BaseException as caught:
                result, error = None, caught
            self._loop.post(finish, result, error)

        self._threads.submit(in_thread)
        return await done
