"""The wrapper of every handler: it waits for the message, and maps exceptions to statuses.

An RPC with one request message is registered as one with a stream of requests, which looks the same
on the wire. So the wrapper runs before the message has arrived. A call that waits for its message
is a coroutine: it has neither a thread nor a slot, and it waits for a limited time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError, Message

from livefactor.wire.columns import ColumnError
from livefactor.wire.limits import MESSAGE_BYTES_MAX, PRODUCER_ID_BYTES_MAX, over
from livefactor_server import metrics
from livefactor_server.access.callers import (
    Context as Caller,
)
from livefactor_server.access.callers import (
    certificate_names,
    check_model,
    check_role,
    grant_of,
    relayed_names,
)
from livefactor_server.access.grants import EVERYTHING, Grant, Grants, Role
from livefactor_server.rpc.loop import TimeLimit
from livefactor_server.statuses import Refused, busy, invalid, late, unavailable
from livefactor_server.telemetry import traces
from livefactor_server.telemetry.calls import TEXT_CHARACTERS_MAX, CallLog
from livefactor_server.telemetry.lines import FIELDS
from livefactor_server.telemetry.requests import KEY as REQUEST_ID
from livefactor_server.telemetry.requests import request_id

PUSHBACK = "grpc-retry-pushback-ms"
"""The metadata that tells a client after how many milliseconds to try again."""

GRANT_S = 10.0
"""Seconds after which the grant of an open stream is looked up again."""

Context = grpc.aio.ServicerContext[Any, Any]

logger = logging.getLogger(__name__)


class Need(NamedTuple):
    """The roles that may call an RPC, beside admin. None needs no grant at all.

    `is_change` says whether the RPC creates, changes or deletes models. `is_batches` says that each
    message of its stream counts as a call.
    """

    rpc: str
    roles: frozenset[Role] | None
    is_change: bool = False
    is_batches: bool = False


class Call:
    """A call: its deadline, its grant, whether its caller still waits, and what is reported of it
    (`telemetry.calls.Report`). Thread-safe.
    """

    __slots__ = (
        "_again_at",
        "_deadline",
        "_found",
        "began",
        "context",
        "grant",
        "has_model",
        "is_change",
        "is_over",
        "is_relayed",
        "metadata",
        "model",
        "producer",
        "request_id",
        "revision",
        "rpc",
        "trace",
    )

    def __init__(self, context: Caller, need: Need) -> None:
        self.context = context
        self.rpc, self.is_change = need.rpc, need.is_change
        self.is_relayed = False
        """Whether another process answers the call. That process counts it."""
        self.metadata = context.invocation_metadata()
        self.request_id = request_id(self.metadata)
        is_traced = need.roles is not None and not need.is_batches
        self.trace = traces.begin(need.rpc, self.metadata) if is_traced else None
        self.model, self.has_model, self.producer, self.revision = "", False, b"", 0
        self.began = time.perf_counter()
        """When the call, or later its message, arrived, in seconds of `time.perf_counter`."""
        self.grant = EVERYTHING
        """What the caller may do."""
        self._found: Callable[[], Grant] | None = None
        self._again_at = math.inf
        remaining = context.time_remaining()
        self._deadline = math.inf if remaining is None else time.monotonic() + remaining
        self.is_over = False

    @property
    def caller(self) -> str:
        """Name of the caller's grant. Empty if the server asks for none."""
        return "" if self._found is None else self.grant.name

    def admit(self, found: Callable[[], Grant]) -> None:
        """Takes the grant that `found` returns, and asks again while a stream goes on.

        Raises:
            Refused: what `found` raises.
        """
        self.grant, self._found = found(), found
        self._again_at = time.monotonic() + GRANT_S

    def allow(self, *models: str) -> None:
        """Checks that the caller may use these models.

        Raises:
            Refused: PERMISSION_DENIED, or UNAUTHENTICATED if the grant has ended meanwhile.
        """
        if self._found is not None and time.monotonic() > self._again_at:
            self.admit(self._found)
        for model in models:
            self.model = model
            check_model(self.grant, model)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline, None without one."""
        return None if self._deadline == math.inf else max(0.0, self._deadline - time.monotonic())

    def is_late(self) -> bool:
        """Whether the caller has left, or the deadline has passed."""
        return self.is_over or time.monotonic() > self._deadline

    def check(self) -> None:
        """Ends work for which nobody waits.

        Raises:
            Refused: DEADLINE_EXCEEDED if the caller has left, or if the deadline has passed.
        """
        if self.is_late():
            raise late("call: its deadline passed, or its caller left, before the answer was ready")


class Guard:
    """Wraps the handlers of a server, and counts its open calls."""

    def __init__(
        self,
        message_wait_s: float,
        write_wait_s: float,
        open_calls_max: int,
        grants: Grants | None = None,
        is_behind_workers: bool = False,
    ) -> None:
        """The first arguments are those of `ServiceSettings`. None serves everybody.

        `is_behind_workers` says that all calls come from score workers, which name the certificates
        of their clients.
        """
        self._grants, self._names_of = grants, relayed_names if is_behind_workers else certificate_names
        self._message_wait, self._write_wait = TimeLimit(message_wait_s), TimeLimit(write_wait_s)
        self._open_calls_max = open_calls_max
        self._open = Counter[bool]()
        # Calls of the loop and direct ones are counted together.
        self._counting = threading.Lock()
        self.log = CallLog()
        # Calls whose peer reads nothing, by peer. Their last status waits in the transport.
        self._unread: Counter[str] = Counter()
        self._goodbyes: set[asyncio.Task[None]] = set()

    def unary(
        self,
        handle: Callable[[bytes, Call], Awaitable[bytes]],
        is_control: bool,
        need: Need,
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Wraps a handler that takes one message and returns one."""

        async def answer(_: object, context: Context) -> bytes:
            call = Call(context, need)
            self._count(is_control, 1)
            try:
                self._check_open(is_control)
                self._admit(call, context, need)
                raw = await Requests(context, self._message_wait).only()
                call.began = time.perf_counter()
                reply = await handle(raw, call)
                if len(reply) > MESSAGE_BYTES_MAX:
                    raise invalid(over("answer", MESSAGE_BYTES_MAX, len(reply), "bytes"))
                self._succeed(context, call)
                return reply
            except asyncio.CancelledError:
                self._ended(call, "CANCELLED")
                raise
            except Exception as error:
                failure = error
            finally:
                call.is_over = True
                self._count(is_control, -1)
            await self._end(context, call, failure)
            raise AssertionError("abort raises")

        return grpc.stream_unary_rpc_method_handler(answer)

    def stream(
        self,
        handle: Callable[[Requests, Send, Call], Awaitable[None]],
        is_control: bool,
        need: Need,
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Wraps a handler that takes messages from `Requests` and sends any number."""

        async def answer(_: object, context: Context) -> None:
            call, peer = Call(context, need), context.peer()
            self._count(is_control, 1)
            try:
                self._check_open(is_control)
                self._admit(call, context, need)
                # Connections of a Unix-domain socket have one name.
                if self._unread[peer] and not peer.startswith("unix:"):
                    raise busy("stream: this connection has a stream that it does not read")
                await context.send_initial_metadata(())
                requests = Requests(context, self._message_wait)
                await handle(requests, lambda data: self._send(context, data), call)
                self._succeed(context, call)
                return
            except asyncio.CancelledError:
                self._ended(call, "CANCELLED")
                raise
            except _Unread as error:
                await self._leave(context, call, peer, error)
                return
            except Exception as error:
                failure = error
            finally:
                call.is_over = True
                self._count(is_control, -1)
            await self._end(context, call, failure)

        return grpc.stream_stream_rpc_method_handler(answer)

    def library(
        self, kind: type[Any], handle_stream: Callable[..., Any], need: Need
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Wraps a handler of a library. It takes a stream of messages of type `kind`, and gives
        answers.
        """

        async def handle(requests: Requests, send: Send, call: Call) -> None:
            async def messages() -> AsyncIterator[Any]:
                while (raw := await requests.next()) is not None:
                    yield parse(kind, raw)

            async for reply in handle_stream(messages(), None):
                await send(reply.SerializeToString())

        return self.stream(handle, True, need)

    def enter(self, call: Call, need: Need) -> None:
        """A direct call begins, which then ends with `leave`. Only the thread of direct calls may
        call it.

        Raises:
            Refused: there are too many calls, or the caller may not make this one.
        """
        self._count(False, 1)
        self._check_open(False)
        self._admit(call, call.context, need)

    def leave(self, call: Call, code: str, text: str = "") -> None:
        """A direct call has ended with this status."""
        self._count(False, -1)
        self._ended(call, code, text)

    def _count(self, is_control: bool, calls: int) -> None:
        with self._counting:
            self._open[is_control] += calls

    def _admit(self, call: Call, context: Caller, need: Need) -> None:
        """Finds the grant of a call, and refuses it before its message is read."""
        if need.roles is not None and self._grants is not None:
            call.admit(partial(_grant, context, self._grants, need.rpc, need.roles, self._names_of))

    def _check_open(self, is_control: bool) -> None:
        if self._open[is_control] > self._open_calls_max:
            raise busy(f"calls: the server has {self._open_calls_max} open ones, which is the limit")

    async def _send(self, context: Context, data: bytes) -> None:
        try:
            await self._write_wait.wait(context.write(data))
        except TimeoutError:
            raise _Unread(f"stream: its peer has read nothing for {self._write_wait.seconds:.0f} s") from None

    def _succeed(self, context: Context, call: Call) -> None:
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        self._ended(call, "OK")

    def _ended(self, call: Call, code: str, text: str = "") -> None:
        if call.is_relayed:
            return
        self.log.ended(call, code, time.perf_counter() - call.began, text)
        if call.trace is not None:
            call.trace.end(
                code,
                text,
                request_id=call.request_id,
                caller=call.caller,
                model=call.model[:TEXT_CHARACTERS_MAX],
                producer=call.producer[:TEXT_CHARACTERS_MAX].decode(errors="replace"),
                revision=call.revision,
            )

    async def _end(self, context: Context, call: Call, error: Exception) -> None:
        if isinstance(error, grpc.aio.BaseError):
            # The connection is gone.
            self._ended(call, "CANCELLED")
            raise error
        answer, metadata = self.refused(call, error)
        self._ended(call, answer.code.name, answer.text)
        await context.abort(answer.code, answer.text, metadata)

    @staticmethod
    def refused(call: Call, error: Exception) -> tuple[Refused, tuple[tuple[str, str], ...]]:
        """The status of a call with an error, and its metadata. It is counted."""
        if isinstance(error, Refused | ColumnError):
            answer = refusal(error)
        else:
            logger.error("handler failed", exc_info=error, extra={FIELDS: {"request_id": call.request_id}})
            answer = unavailable("server: unexpected error")
        if not call.is_relayed:
            metrics.REFUSED.labels(answer.code.name).inc()
        hint = ((PUSHBACK, str(answer.retry_ms)),) if answer.retry_ms else ()
        return answer, ((REQUEST_ID, call.request_id), *hint)

    async def _leave(self, context: Context, call: Call, peer: str, error: Refused) -> None:
        """Ends a call without waiting until its peer reads the status."""

        async def end() -> None:
            try:
                await self._end(context, call, error)
            except Exception:
                # The abort itself, or the end of the connection.
                pass
            finally:
                self._unread[peer] -= 1
                if not self._unread[peer]:
                    del self._unread[peer]

        self._unread[peer] += 1
        task = asyncio.create_task(end())
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)
        # The status must be on its way before the handler returns, which would mean OK.
        await asyncio.sleep(0)


def _grant(
    context: Caller,
    grants: Grants,
    rpc: str,
    roles: frozenset[Role],
    names_of: Callable[[Caller], list[str]],
) -> Grant:
    found = grant_of(context, grants, names_of)
    check_role(found, roles, rpc)
    return found


class _Unread(Refused):
    """The peer does not read."""

    def __init__(self, text: str) -> None:
        super().__init__(grpc.StatusCode.DEADLINE_EXCEEDED, text)


class Requests:
    """The request messages of a call."""

    def __init__(self, context: Context, limit: TimeLimit) -> None:
        self._context, self._limit = context, limit

    async def next(self) -> bytes | None:
        """The next message, or None after the last one.

        Raises:
            Refused: DEADLINE_EXCEEDED if there is none in time, INVALID_ARGUMENT if it is too
                large.
        """
        try:
            raw = await self._limit.wait(self._context.read())
        except TimeoutError:
            raise late(f"request: the call sent no message within {self._limit.seconds:.0f} s") from None
        message = _unless_ended(raw)
        if message is not None:
            check_size(message)
        return message

    async def only(self) -> bytes:
        """The message of a call that has one.

        Raises:
            Refused: as `next`. INVALID_ARGUMENT if there is none.
        """
        raw = await self.next()
        if raw is None:
            raise invalid("request: the call has no message")
        return raw

    async def next_of_many(self) -> bytes | None:
        """The next message of a stream that may be idle, of any size. It waits without a limit."""
        return _unless_ended(await self._context.read())


def _unless_ended(raw: Any) -> bytes | None:
    """What `read` of a call gave, None after the last message."""
    return None if raw is grpc.aio.EOF else raw


Send = Callable[[bytes], Awaitable[None]]
"""Sends one message.

It raises `Refused`, which ends the call, if the peer does not read for too long.
"""


def parse(kind: type[Any], raw: bytes) -> Any:
    """Parses `raw` as a message of type `kind`.

    Raises:
        Refused: INVALID_ARGUMENT, without the text of the parser.
    """
    try:
        return kind.FromString(raw)
    except DecodeError:
        message: type[Message] = kind
        raise invalid(f"the {message.DESCRIPTOR.name} is malformed") from None


def check_size(raw: bytes) -> None:
    """Checks the size of a request message.

    Raises:
        Refused: INVALID_ARGUMENT if it is too large.
    """
    if len(raw) > MESSAGE_BYTES_MAX:
        raise invalid(over("request", MESSAGE_BYTES_MAX, len(raw), "bytes"))


def producer_id(producer: bytes) -> bytes:
    """Checks the length of a producer's id, and returns the id.

    Raises:
        Refused: INVALID_ARGUMENT if the id is too long.
    """
    if len(producer) > PRODUCER_ID_BYTES_MAX:
        raise invalid(over("producer", PRODUCER_ID_BYTES_MAX, len(producer), "bytes"))
    return producer


def refusal(error: Exception) -> Refused:
    """The status for a fault of the client."""
    return error if isinstance(error, Refused) else invalid(str(error))
