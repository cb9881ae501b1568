"""`AsyncProducer` pushes from an event loop. A thread of its own sends, as that of a `Producer`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

from livefactor.aio.connection import ThreadRunner, awaited
from livefactor.errors import LivefactorError, ProducerClosed
from livefactor.pushing.base import ProducerBase
from livefactor.pushing.producer import CLOSE_AFTER_ERROR_S, Producer

log = logging.getLogger("livefactor")


class AsyncProducer(ProducerBase):
    """Sends rows to one model, none of them twice. It takes the arguments of `livefactor.Producer`.

    `async with` opens it, or `await producer.open()`. `await producer.push(...)` returns when the
    rows are taken, which waits only while the buffer is full. It returns a `Receipt`, and awaiting
    that gives the Ack. Pushes that tasks make at the same time share a batch. on_reject and on_wait
    are called in the event loop. channel: a `grpc.Channel` of the caller, as of a `Producer`.
    """

    def _begin(self) -> None:
        self._connection = ThreadRunner(self._opens_with)

    async def open(self) -> Self:
        """Open the producer and return it. Raises the errors of the constructor of `Producer`."""
        if "_sender" not in self.__dict__:
            loop = asyncio.get_running_loop()
            self._on_reject, self._on_wait = (
                call and partial(_in_loop, loop, call) for call in (self._on_reject, self._on_wait)
            )
            opening = asyncio.ensure_future(asyncio.to_thread(self._open))
            try:
                await asyncio.shield(opening)
            except asyncio.CancelledError:
                # The thread waits for the server a little longer. What it opens is closed.
                opening.add_done_callback(lambda done: done.exception() or self._abandon())
                raise
        return self

    def _abandon(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, self._end)

    def __getattr__(self, name: str) -> Any:
        # Only what is not there yet comes here.
        if name == "_sender":
            raise ProducerClosed(f"producer {self.producer_id!r} is not open: use it in `async with`")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    push = awaited(Producer.push)
    push_labels = awaited(Producer.push_labels)
    set_available = awaited(Producer.set_available)
    push_embeddings = awaited(Producer.push_embeddings)
    push_features = awaited(Producer.push_features)
    drop_features = awaited(Producer.drop_features)
    push_factors = awaited(Producer.push_factors)
    push_deltas = awaited(Producer.push_deltas)
    push_map_sums = awaited(Producer.push_map_sums)
    flush = awaited(Producer.flush)
    keep = awaited(Producer.keep)
    has_applied = awaited(Producer.has_applied)
    close = awaited(Producer.close)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
            return
        # As `Producer.__exit__`: a second error must not hide the caller's.
        try:
            await self.close(timeout=CLOSE_AFTER_ERROR_S)
        except LivefactorError as second:
            log.warning("producer %s: closed after an error: %s", self.producer_id, second)


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[Any], None], argument: Any) -> None:
    loop.call_soon_threadsafe(call, argument)
