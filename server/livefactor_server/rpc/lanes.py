"""Lanes: how many calls of a kind run at a time, and how many wait for their turn.

A call takes a slot of its lane only after its message has arrived. Calls without a free slot wait
until their deadlines. Models take turns, so that the calls of one do not wait for all those of
another. The calls of one model wait in the order of their arrival. The queue is bounded in calls
and in bytes.

A lane of calls that compute is under *overload* for a model if in WINDOWS in a row more calls of
the model arrived than ended. Callers who wait for their answers before they call again never cause
this, however many they are, and neither does a burst. Under overload fewer calls of the model run
at a time and none waits, because a queue then helps nobody: as many calls succeed, and each takes
longer. The calls of other models are not concerned.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
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
    """Whether a model's calls in a lane are an overload.

    `running` is the number of its calls that have a slot.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._arrived = self._ended = self._exceeded = 0
        self.running = 0

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
        self.running -= 1
        self._ended += 1

    @property
    def is_overload(self) -> bool:
        """Whether calls should be refused instead of waiting."""
        return self._exceeded >= WINDOWS


class Slot:
    """A slot of a lane, as `Lane.slot` gives it."""

    __slots__ = ("_lane", "_model", "_size")

    def __init__(self, lane: Lane, size: int, model: str) -> None:
        self._lane, self._size, self._model = lane, size, model

    async def __aenter__(self) -> None:
        await self._lane.take(self._size, self._model)

    async def __aexit__(self, *_: object) -> None:
        self._lane.release(self._model)


class Lane:
    """The slots of a kind of call, the queue before them, and the threads behind them.

    Only the loop's thread may call its methods, but for `take_at_once` and `give_back`.
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
        self._free = slots
        # It guards `_free` and `_queues`, which calls outside the loop use, too.
        self._lock = threading.Lock()
        # The calls that wait, by model. The next turn is that of the first model.
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._waiting = self._waiting_bytes = 0
        self._overload_slots = overload_slots
        self._pressures: dict[str, Pressure] = {}
        self._threads = ThreadPoolExecutor(max(1, slots), thread_name_prefix=f"rpc-{name}")

    async def take(self, size: int, model: str = "") -> None:
        """Takes a slot, as `slot` does. The caller then calls `release` with the model."""
        pressure = self._arrived(model)
        if not self.take_at_once():
            await self._turn(size, model)
            try:
                self._check(pressure)
            except Refused:
                self._pass_on()
                raise
        pressure.running += 1

    def take_at_once(self) -> bool:
        """Takes a slot if one is free, however many calls arrive. Any thread may call it."""
        with self._lock:
            if not self._free:
                return False
            self._free -= 1
            return True

    def give_back(self) -> None:
        """Gives back a slot of `take_at_once`. Any thread may call it."""
        with self._lock:
            if not self._queues:
                self._free += 1
                return
        self._loop.post(self._pass_on)

    def knock(self, size: int, model: str) -> None:
        """Refuses a call that `take` would refuse now, so that its message need not be decoded.

        A call that is not refused has not arrived yet: it calls `take`.

        Raises:
            Refused: RESOURCE_EXHAUSTED, as `take`.
        """
        pressure = self._pressures.get(model)
        is_shed = pressure is not None and self._sheds(pressure)
        if is_shed or (not self._free and self._is_full(size)):
            self._arrived(model)
            self._check_waiting(size)

    def _arrived(self, model: str) -> Pressure:
        """Counts an arrival, and refuses it under overload."""
        pressure = self._pressures.get(model)
        if pressure is None:
            pressure = self._pressures[model] = Pressure()
        pressure.arrive()
        self._check(pressure)
        return pressure

    def _sheds(self, pressure: Pressure) -> bool:
        most = self._overload_slots
        return most is not None and pressure.running >= most and pressure.is_overload

    def _check(self, pressure: Pressure) -> None:
        if self._sheds(pressure):
            raise busy(f"{self._name}: more calls arrive than the server can do; try again later")

    def _is_full(self, size: int) -> bool:
        return self._waiting >= self._waiting_max or self._waiting_bytes + size > self._waiting_bytes_max

    def _check_waiting(self, size: int) -> None:
        if not self._free and self._is_full(size):
            raise busy(
                f"{self._name}: {self._slots} calls run and {self._waiting} wait, which is the limit; "
                "try again later"
            )

    async def _turn(self, size: int, model: str) -> None:
        self._check_waiting(size)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._queues.setdefault(model, deque()).append(turn)
            if self._free:
                # A slot was given back meanwhile.
                self._free -= 1
                self._hand_on()
        self._waiting += 1
        self._waiting_bytes += size
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(model, turn)
            else:
                # The slot came at the same time.
                self._pass_on()
            raise
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size

    def _leave(self, model: str, turn: asyncio.Future[None]) -> None:
        with self._lock:
            queue = self._queues.get(model)
            if queue is not None and turn in queue:
                queue.remove(turn)
                if not queue:
                    del self._queues[model]

    def release(self, model: str = "") -> None:
        """Gives back the slot of a call of this model. The next model in turn gets it."""
        self._pressures[model].end()
        self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            self._hand_on()

    def _hand_on(self) -> None:
        """Gives a slot to the next call that waits. The caller holds the lock."""
        while self._queues:
            model = next(iter(self._queues))
            queue = self._queues.pop(model)
            turn = queue.popleft()
            if queue:
                # The model's next turn comes after those of the others.
                self._queues[model] = queue
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def slot(self, size: int, model: str) -> Slot:
        """Holds a slot in an `async with` block. `size` is the size of the call's message in bytes.
        `model` is the model whose turn the call takes.

        Entering it raises `Refused` with RESOURCE_EXHAUSTED if the queue is full.
        """
        return Slot(self, size, model)

    async def run(self, size: int, work: Callable[..., Result], *arguments: Any, model: str = "") -> Result:
        """Runs blocking work in a thread. It holds a slot until the work has ended, also if the
        caller has left before. `model` is the model whose turn the call takes.

        Raises:
            Refused: RESOURCE_EXHAUSTED if the queue is full.
        """
        await self.take(size, model)
        return await self._thread(work, arguments, lambda: self.release(model))

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
