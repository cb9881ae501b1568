"""The event loop of the gRPC servers, in a thread of its own.

grpcio has one queue of events for all asyncio servers of a process, and that queue serves one loop
best. So all servers of a process share one loop, which lives as long as the process.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

import grpc

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message of grpcio is more than the traceback for a peer that has disconnected."""
    return record.exc_info is None or not isinstance(record.exc_info[1], grpc.aio.InternalError)


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)


def _make(call: Callable[..., object], *arguments: Any) -> None:
    try:
        call(*arguments)
    except Exception:
        logger.exception("event loop")


class _Bell:
    """An event file of Linux that wakes a loop, by calls that keep the GIL.

    A thread that gives the GIL up to wake the loop, as `call_soon_threadsafe` does, gets it back
    only after the loop has run.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        libc = ctypes.PyDLL(None)
        self._write, self._read = libc.eventfd_write, libc.eventfd_read
        self._write.argtypes = ctypes.c_int, ctypes.c_uint64
        self._read.argtypes = ctypes.c_int, ctypes.POINTER(ctypes.c_uint64)
        self._rings = ctypes.c_uint64()

    def ring(self) -> None:
        self._write(self.descriptor, 1)

    def silence(self) -> None:
        self._read(self.descriptor, self._rings)


class Loop:
    """A running event loop. Any thread may call its methods."""

    def __init__(self) -> None:
        self._loop = asyncio.SelectorEventLoop()
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_woken = False
        self._bell = _Bell()
        self._loop.add_reader(self._bell.descriptor, self._empty_inbox)
        threading.Thread(target=self._loop.run_forever, name="rpc-loop", daemon=True).start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine in the loop, and waits for its result. The loop's thread must not call
        it.
        """
        return self.start(coroutine).result()

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Runs a coroutine in the loop without waiting."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def post(self, function: Callable[..., object], *arguments: Any) -> None:
        """Has the loop call a function soon."""
        self.prepare(function, *arguments)
        self.wake()

    def prepare(self, function: Callable[..., object], *arguments: Any) -> None:
        """Has the loop call a function after the next `wake`."""
        self._inbox.append((function, arguments))

    def wake(self) -> None:
        """Has the loop make the prepared calls soon."""
        if not self._is_woken:
            self._is_woken = True
            self._bell.ring()

    def _empty_inbox(self) -> None:
        self._bell.silence()
        # The flag falls first: whoever appends from now on wakes the loop again.
        self._is_woken = False
        for _ in range(len(self._inbox)):
            function, arguments = self._inbox.popleft()
            _make(function, *arguments)


class TimeLimit:
    """A limit on the time for which tasks wait. It costs less than `asyncio.timeout`, because one
    timer serves all tasks. A wait may take a quarter longer than the limit.

    Only one loop may use it, and a task may be in one wait at a time.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._is_armed = False

    async def wait(self, awaitable: Awaitable[Result]) -> Result:
        """The result of `awaitable`, which is cancelled when the limit has passed.

        Raises:
            TimeoutError: the limit has passed.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._since[task] = loop.time()
        if not self._is_armed:
            self._arm(loop)
        try:
            return await awaitable
        except asyncio.CancelledError:
            if task in self._late and not task.uncancel():
                raise TimeoutError from None
            raise
        finally:
            self._late.discard(task)
            del self._since[task]

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_armed = True
        loop.call_later(self.seconds / 4, self._cancel_late, loop)

    def _cancel_late(self, loop: asyncio.AbstractEventLoop) -> None:
        until = loop.time() - self.seconds
        for task, since in self._since.items():
            if since <= until and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._is_armed = False
        if self._since:
            self._arm(loop)


@cache
def shared_loop() -> Loop:
    """The loop of this process."""
    return Loop()
