"""Carrying out plans in the caller's thread: `Connection`, and what blocking clients share."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import wraps
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

import grpc

from livefactor.calling import tracing
from livefactor.calling.failures import translated
from livefactor.calling.plans import Begin, Hedge, Next, Plan, Send, Step, Until, Wait, Work
from livefactor.calling.routes import Route
from livefactor.channel import open_channel
from livefactor.errors import LivefactorError

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class Connection(Route):
    """A route whose plans run in the caller's thread. Several threads may use it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lock = threading.Lock()
        self._channels: dict[int, grpc.Channel] = {}
        self._calls: dict[tuple[int, str], Any] = {}
        self._is_closed = False

    def channel_at(self, at: int) -> grpc.Channel:
        """The channel to target number `at`, which opens at its first use.

        Raises LivefactorError if the connection is closed.
        """
        if self.given_channel is not None:
            channel: grpc.Channel = self.given_channel
            return channel
        with self._lock:
            if self._is_closed:
                raise LivefactorError(f"the connection to {self.target} is closed")
            if at not in self._channels:
                self._channels[at] = open_channel(
                    self.targets[at], credentials=self.credentials, options=self.options
                )
            return self._channels[at]

    def close(self) -> None:
        """Close the channels that were opened here. Later calls raise LivefactorError."""
        with self._lock:
            self._is_closed = True
            for channel in self._channels.values():
                channel.close()

    def run(self, plan: Plan[Result]) -> Result:
        """Carry out a plan and return its result, or raise its error."""
        streams: list[Any] = []
        result: Result
        try:
            step = next(plan)
            while True:
                try:
                    reply = self.perform(step, streams)
                except BaseException as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(reply)
        except StopIteration as done:
            result = done.value
            return result
        finally:
            for stream in streams:
                stream.cancel()

    def perform(self, step: Step, streams: list[Any]) -> Any:
        """Carry out one step. A stream that it begins is added to `streams`."""
        if type(step) is Send:
            return self._send(step)
        if type(step) is Wait:
            return sleep(step.seconds)
        if type(step) is Next:
            return self._next(step)
        if type(step) is Begin:
            streams.append(self._begin(step))
            return streams[-1]
        if type(step) is Until:
            return step.signal.wait_for(step.predicate, step.timeout)
        assert type(step) is Work
        return step.function()

    def _call_at(self, at: int, path: str) -> Any:
        call = self._calls.get((at, path))
        if call is None:
            call = self._calls[at, path] = self.channel_at(at).unary_unary(path)
        return call

    def _send(self, step: Send) -> bytes:
        try:
            with tracing.call(step.path, self.metadata) as metadata:
                if step.hedge is not None:
                    return self._send_to_both(step, step.hedge, metadata)
                call = self._call_at(step.at, step.path)
                answer: bytes = call(step.request, timeout=step.timeout, metadata=metadata)
                return answer
        except (grpc.RpcError, ValueError) as error:
            raise translated(error, step.doing) from None

    def _send_to_both(self, step: Send, hedge: Hedge, metadata: tracing.Metadata) -> bytes:
        began, ended, calls = monotonic(), SimpleQueue[Any](), list[Any]()

        def begin(at: int, timeout: float | None) -> None:
            call = self._call_at(at, step.path)
            calls.append(call.future(step.request, timeout=timeout, metadata=metadata))
            calls[-1].add_done_callback(ended.put)

        try:
            begin(step.at, step.timeout)
            try:
                ended.put(ended.get(timeout=hedge.after_s))
            except Empty:
                begin(hedge.at, None if step.timeout is None else step.timeout - (monotonic() - began))
            for _ in range(len(calls)):
                call = ended.get()
                if call.exception() is None:
                    answer: bytes = call.result()
                    return answer
            # Both failed, or the first one alone before the second began.
            answer = calls[0].result()
            return answer
        finally:
            for call in calls:
                call.cancel()

    def _begin(self, step: Begin) -> Any:
        begin: Any = self.channel_at(step.at).unary_stream(step.path)
        try:
            metadata = self.metadata + tracing.present()
            return begin(step.request, timeout=step.timeout, metadata=metadata)
        except ValueError as error:
            raise translated(error, step.doing) from None

    def _next(self, step: Next) -> bytes | None:
        try:
            return next(step.stream, None)
        except grpc.RpcError as error:
            raise translated(error, step.doing) from None


class _Client(Protocol):
    _connection: Connection


Client = TypeVar("Client", bound=_Client)


def blocking(
    plan: Callable[Concatenate[Client, Arguments], Plan[Result]],
) -> Callable[Concatenate[Client, Arguments], Result]:
    """Make a method that makes a plan into one that carries the plan out and returns its result.

    `aio.connection.awaited` makes a coroutine of the same method.
    """

    @wraps(plan)
    def call(self: Client, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return self._connection.run(plan(self, *args, **kwargs))

    _show_result(call, plan)
    return call


def _show_result(call: Any, plan: Callable[..., Any]) -> None:
    """Let `help` show what the call returns, and not the type of its plan."""
    signature = inspect.signature(plan)
    result = str(signature.return_annotation).removeprefix("Plan[").removesuffix("]")
    call.__signature__ = signature.replace(return_annotation=result)


class BlockingClient:
    """A client of a connection that blocks. Leaving a `with` block closes it."""

    _connects: type[Route] = Connection
    _connection: Connection

    def close(self) -> None:
        """Close the channels that were opened here."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
