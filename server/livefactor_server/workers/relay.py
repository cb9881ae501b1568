"""Passes calls on to the head process, as the bytes that came."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast

import grpc

from livefactor_server.access.callers import relayed_identity
from livefactor_server.rpc.guards import PUSHBACK, Call, Requests, Send
from livefactor_server.statuses import Refused
from livefactor_server.telemetry import traces
from livefactor_server.telemetry.requests import KEY as REQUEST_ID

_OPTIONS = (
    # The limits of messages are those of the server.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # The client decides about retries.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class Relay:
    """The way to the head. Only the loop's thread may use it."""

    def __init__(self, head: str) -> None:
        """`head` is the address "unix:/path"."""
        self._channel = grpc.aio.insecure_channel(head, options=_OPTIONS)
        self._callables: dict[str, Callable[..., Any]] = {}

    async def unary(self, method: str, raw: bytes, call: Call) -> bytes:
        """The head's answer to a call with one message. `method` is "/package.Service/Method".

        Raises:
            Refused: the status of the head.
        """
        call.is_relayed = True
        ask = self._callable(method, self._channel.unary_unary)
        try:
            answer: bytes = await ask(raw, timeout=call.remaining_s, metadata=_metadata(call))
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from None
        return answer

    async def stream(self, method: str, requests: Requests, send: Send, call: Call) -> None:
        """Passes messages on in both directions, one at a time, until the head ends the call.

        Raises:
            Refused: the status of the head.
        """
        call.is_relayed = True
        ask = self._callable(method, self._channel.stream_stream)
        head = ask(timeout=call.remaining_s, metadata=_metadata(call))
        pushing = asyncio.create_task(_push(requests, head))
        try:
            while (answer := await head.read()) is not grpc.aio.EOF:
                await send(answer)
            if (code := await head.code()) is not grpc.StatusCode.OK:
                raise Refused(code, await head.details())
        except grpc.aio.AioRpcError as error:
            raise _refusal(error) from None
        finally:
            pushing.cancel()
            head.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await pushing

    def _callable(self, method: str, make: Callable[[str], object]) -> Any:
        """What makes calls of a method. It is made once."""
        if method not in self._callables:
            # The stubs of gRPC do not know calls of plain bytes.
            self._callables[method] = cast("Callable[..., Any]", make(method))
        return self._callables[method]


async def _push(requests: Requests, head: Any) -> None:
    try:
        while (raw := await requests.next_of_many()) is not None:
            await head.write(raw)
        await head.done_writing()
    except (grpc.aio.BaseError, asyncio.InvalidStateError):
        # The head has ended the call, and its status follows; or the client has left.
        if not head.done():
            head.cancel()


def _metadata(call: Call) -> tuple[tuple[str, str | bytes], ...]:
    parent = [(name, value) for name, value in call.metadata or () if name == traces.KEY]
    return (REQUEST_ID, call.request_id), *parent, *relayed_identity(call.context)


def _refusal(error: grpc.aio.AioRpcError) -> Refused:
    retry_ms = 0
    for name, value in error.trailing_metadata() or ():
        if name == PUSHBACK and str(value).isdigit():
            retry_ms = int(value)
    return Refused(error.code(), error.details() or "", retry_ms)
