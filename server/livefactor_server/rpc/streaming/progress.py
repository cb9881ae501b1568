"""The progress of long work in a lane, which its call sends while the work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from livefactor_server.rpc.guards import Call

INTERVAL_S = 0.1
"""Seconds between two looks at the progress."""

Result = TypeVar("Result")


class Progress:
    """The newest progress of one call. The work calls it with its numbers, from any thread."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._latest: list[tuple[int, ...]] = []

    def __call__(self, *numbers: int) -> None:
        """Takes the numbers.

        Raises:
            Refused: the caller has left, so the work ends.
        """
        self._call.check()
        self._latest[:] = [numbers]

    async def until_done(
        self, work: Coroutine[Any, Any, Result], tell: Callable[..., Awaitable[None]]
    ) -> Result:
        """Waits for the work, and calls `tell` with the newest numbers meanwhile."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=INTERVAL_S)
                while self._latest:
                    await tell(*self._latest.pop())
            return task.result()
        finally:
            task.cancel()
