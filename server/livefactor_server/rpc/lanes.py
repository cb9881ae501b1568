"""Lanes: how many calls of a kind run at a time, and how many wait for their turn.

A call takes a slot of its lane only after its message has arrived. Calls without a free slot wait
until their deadlines. Models take turns, so that the calls of one do not wait for all those of
another. The calls of one model wait in the order of their arrival. The queue is bounded in calls
and in bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from livefactor_server.rpc.loop import Loop
from livefactor_server.statuses import busy

Result = TypeVar("Result")


class Slot:
    """A slot of a lane, as `Lane.slot` gives it."""

    __slots__ = ("_lane", "_model", "_size")

    def __init__(self, lane: Lane, size: int, model: str) -> None:
        self._lane, self._size, self._model = lane, size, model

    async def __aenter__(self) -> None:
        await self._lane.take(self._size, self._model)

    async def __aexit__(self, *_: object) -> None:
        self._lane.release()


class Lane:
    """The slots of a kind of call, the queue before them, and the threads behind them.

    Only the loop's thread may call its methods.
    """

    def __init__(self, loop: Loop, name: str, slots: int, waiting_max: int, waiting_bytes_max: int) -> None:
        """Starts no thread yet.

        Args:
            loop: the loop that awaits the results.
            name: what the slots are for, as in errors.
            slots: maximum number of calls at a time.
            waiting_max: maximum number of calls that wait for a slot.
            waiting_bytes_max: maximum bytes of the messages of these calls.
        """
        self._loop = loop
        self._name, self._slots = name, slots
        self._waiting_max, self._waiting_bytes_max = waiting_max, waiting_bytes_max
        self._free = slots
        # The calls that wait, by model. The next turn is that of the first model.
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._waiting = self._waiting_bytes = 0
        self._threads = ThreadPoolExecutor(max(1, slots), thread_name_prefix=f"rpc-{name}")

    async def take(self, size: int, model: str = "") -> None:
        """Takes a slot, as `slot` does. The caller then calls `release`."""
        if self._free:
            self._free -= 1
            return
        if self._waiting >= self._waiting_max or self._waiting_bytes + size > self._waiting_bytes_max:
            raise busy(
                f"{self._name}: {self._slots} calls run and {self._waiting} wait, which is the limit; "
                "try again later"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(model, deque()).append(turn)
        self._waiting += 1
        self._waiting_bytes += size
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(model, turn)
            else:
                # The slot came at the same time.
                self.release()
            raise
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size

    def _leave(self, model: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(model)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._queues[model]

    def release(self) -> None:
        """Gives a slot back. The next model in turn gets it."""
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
