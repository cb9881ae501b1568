"""Carrying out plans in an event loop: `AsyncConnection`, and what asyncio clients share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import wraps
from time import monotonic
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from livefactor.access import Access
from livefactor.calling import tracing
from livefactor.calling.blocking import Connection
from livefactor.calling.failures import translated
from livefactor.calling.plans import Begin, Hedge, Next, Plan, Send, Step, Until, Wait, Work
from livefactor.calling.routes import Route
from livefactor.channel import CONNECT_S, channel_options
from livefactor.errors import LivefactorError

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class Runner:
    """Carries out plans. `_call` and `_begin` say how calls are made."""

    async def run(self, plan: Plan[Result]) -> Result:
        """Carry out a plan and return its result, or raise its error.

        A cancellation ends the plan's step, and then the plan.
        """
        streams: list[Any] = []
        try:
            step = next(plan)
            while True:
                try:
                    reply = await self._perform(step, streams)
                except BaseException as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(reply)
        except StopIteration as done:
            result: Result = done.value
            return result
        finally:
            for stream in streams:
                stream.cancel()

    async def _perform(self, step: Step, streams: list[Any]) -> Any:
        if type(step) is Send:
            return await self._call(step)
        if type(step) is Wait:
            return await asyncio.sleep(step.seconds)
        if type(step) is Next:
            return await self._next(step)
        if type(step) is Begin:
            streams.append(self._begin(step))
            return streams[-1]
        if type(step) is Until:
            return await _until(step)
        assert type(step) is Work
        return await _in_thread(step.function)

    async def _call(self, step: Send) -> bytes:
        raise AssertionError(step)

    def _begin(self, step: Begin) -> Any:
        raise AssertionError(step)

    async def _next(self, step: Next) -> bytes | None:
        try:
            answer = await step.stream.read()
        except grpc.RpcError as error:
            raise translated(error, step.doing) from None
        return None if answer is grpc.aio.EOF else answer


class AsyncConnection(Route, Runner):
    """A route whose plans run in an event loop, over the channels of `grpc.aio`."""

    def __init__(
        self,
        target: Any,
        channel: Any | None,
        connect_s: float = CONNECT_S,
        access: Access | None = None,
    ) -> None:
        super().__init__(target, channel, connect_s, access)
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._calls: dict[tuple[int, str], Any] = {}
        self._is_closed = False

    def _channel_at(self, at: int) -> Any:
        """The channel to target number `at`, which opens at its first use, in the running loop."""
        if self.given_channel is not None:
            return self.given_channel
        if self._is_closed:
            raise LivefactorError(f"the connection to {self.target} is closed")
        if at not in self._channels:
            address = self.targets[at]
            options = channel_options(address, self.options)
            self._channels[at] = (
                grpc.aio.insecure_channel(address, options)
                if self.credentials is None
                else grpc.aio.secure_channel(address, self.credentials, options)
            )
        return self._channels[at]

    async def close(self) -> None:
        """Close the channels that were opened here. Later calls raise LivefactorError."""
        self._is_closed = True
        for channel in self._channels.values():
            await channel.close()

    async def _call(self, step: Send) -> bytes:
        try:
            with tracing.call(step.path, self.metadata) as metadata:
                if step.hedge is not None:
                    return await self._call_both(step, step.hedge, metadata)
                return await self._call_at(step.at, step, metadata)
        except (grpc.RpcError, grpc.aio.UsageError) as error:
            raise translated(error, step.doing) from None

    async def _call_at(self, at: int, step: Send, metadata: tracing.Metadata) -> bytes:
        call = self._calls.get((at, step.path))
        if call is None:
            call = self._calls[at, step.path] = self._channel_at(at).unary_unary(step.path)
        answer: bytes = await call(step.request, timeout=step.timeout, metadata=metadata)
        return answer

    async def _call_both(self, step: Send, hedge: Hedge, metadata: tracing.Metadata) -> bytes:
        began = monotonic()
        calls = [asyncio.create_task(self._call_at(step.at, step, metadata))]
        try:
            await asyncio.wait(calls, timeout=hedge.after_s)
            if not calls[0].done():
                left = None if step.timeout is None else step.timeout - (monotonic() - began)
                calls.append(
                    asyncio.create_task(self._call_at(hedge.at, step._replace(timeout=left), metadata))
                )
            waiting = set(calls)
            while waiting:
                ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for call in ended:
                    if call.exception() is None:
                        return call.result()
            # Both failed, or the first one alone before the second began.
            return calls[0].result()
        finally:
            for call in calls:
                call.cancel()

    def _begin(self, step: Begin) -> Any:
        begin = self._channel_at(step.at).unary_stream(step.path)
        return begin(step.request, timeout=step.timeout, metadata=self.metadata + tracing.present())


class ThreadRunner(Runner):
    """Carries out plans whose unary calls go over a connection that blocks, in a thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.unary = connection.unary

    async def _call(self, step: Send) -> bytes:
        answer: bytes = await asyncio.to_thread(self._connection.perform, step, [])
        return answer


async def _until(step: Until) -> bool:
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def listener() -> None:
        # The loop may have ended while its task still waited.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(changed.set)

    step.signal.listen(listener)
    try:
        async with asyncio.timeout(step.timeout):
            while not step.predicate():
                await changed.wait()
                changed.clear()
        return True
    except TimeoutError:
        return step.predicate()
    finally:
        step.signal.ignore(listener)


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Run a function in a thread. A cancellation waits until it has ended."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def awaited(
    method: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Coroutine[Any, Any, Result]]:
    """Make the coroutine twin of a method that `calling.blocking.blocking` made."""
    plan = method.__wrapped__  # type: ignore[attr-defined]

    @wraps(method)
    async def call(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        result: Result = await self._connection.run(plan(self, *args, **kwargs))
        return result

    return call


class AsyncClient:
    """A client of an `AsyncConnection`. Leaving an `async with` block closes it."""

    _connects: type[Route] = AsyncConnection
    _connection: AsyncConnection

    async def close(self) -> None:
        """Close the channels that were opened here."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
