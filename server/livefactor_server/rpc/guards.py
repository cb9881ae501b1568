"""What stands around every handler: slots, parsing, and the mapping of whatever goes wrong to the closed set of statuses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from enum import Enum, auto
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from livefactor.wire.columns import ColumnError
from livefactor_server import metrics
from livefactor_server.model.producers import ID_BYTES_MAX
from livefactor_server.statuses import Refused, exhausted, invalid, unavailable

logger = logging.getLogger(__name__)


class Slots:
    """At most `count` calls of a kind at once; the next one is refused, not queued."""

    def __init__(self, count: int, what: str) -> None:
        self._free = threading.Semaphore(count)
        self._what = what

    def __enter__(self) -> None:
        if not self._free.acquire(blocking=False):
            raise exhausted(f"{self._what}: all slots are taken, try again later")

    def __exit__(self, *_: object) -> None:
        self._free.release()


class Window:
    """Room for batches on a stream, taken by the pump, given back when the peer has taken an answer."""

    def __init__(self, size: int) -> None:
        self._room = threading.Semaphore(size)
        self._closed = False

    def take(self) -> None:
        """Wait for room; after `close` there always is some."""
        self._room.acquire()
        if self._closed:
            self._room.release()

    def give(self, answers: int) -> None:
        """Answers were taken."""
        self._room.release(answers)

    def close(self) -> None:
        """The call is over: nobody takes answers any more, and nobody shall wait for that."""
        self._closed = True
        self._room.release()


def parse(kind: type[Any], raw: bytes) -> Any:
    """The message in `raw`. Raises Refused (INVALID_ARGUMENT) without the parser's text."""
    try:
        return kind.FromString(raw)
    except DecodeError:
        message: type[Message] = kind
        raise invalid(f"malformed {message.DESCRIPTOR.name}") from None


def producer_id(producer: bytes) -> bytes:
    """The id, if it is not too long. Raises Refused."""
    if len(producer) > ID_BYTES_MAX:
        raise invalid(f"producer: an id has at most {ID_BYTES_MAX} bytes, got {len(producer)}")
    return producer


def remaining(context: grpc.ServicerContext) -> float | None:
    """Seconds until the call's deadline, None without one."""
    seconds = context.time_remaining()
    # Without a deadline gRPC reports centuries, which a lock's timeout cannot hold.
    return None if seconds is None or seconds > threading.TIMEOUT_MAX else max(0.0, seconds)


def refusal(error: Exception) -> Refused:
    """What a peer is told of a fault that is its own."""
    return error if isinstance(error, Refused) else invalid(str(error))


def is_cancel(error: Exception) -> bool:
    """Whether a stream of requests ended because its call was cancelled."""
    # grpcio ends a cancelled stream's request iterator with a bare Exception or its private RpcError.
    return type(error) is Exception and not error.args


def _end_with(context: grpc.ServicerContext, error: BaseException) -> None:
    if isinstance(error, Refused | ColumnError):
        answer = refusal(error)
    else:
        logger.error("handler failed", exc_info=error)
        answer = unavailable("server: unexpected error")
    metrics.REFUSED.labels(answer.code.name).inc()
    context.abort(answer.code, answer.text)


class CallKind(Enum):
    """What of a call is a stream."""

    UNARY = auto()
    STREAM_OUT = auto()
    STREAM_BOTH = auto()


def guarded(
    kind: CallKind, handle: Callable[[Any, grpc.ServicerContext], Any], slots: Slots | None
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler that holds one of `slots` while it runs, and that ends in one of the closed set of statuses."""
    held = nullcontext() if slots is None else slots

    def answer(raw: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            with held:
                reply: bytes = handle(raw, context)
                return reply
        except Exception as error:
            failure = error
        _end_with(context, failure)
        raise AssertionError("abort raises")

    def stream(requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            with held:
                yield from handle(requests, context)
            return
        except Exception as error:
            failure = error
        _end_with(context, failure)

    if kind is CallKind.UNARY:
        return grpc.unary_unary_rpc_method_handler(answer)
    if kind is CallKind.STREAM_OUT:
        return grpc.unary_stream_rpc_method_handler(stream)
    return grpc.stream_stream_rpc_method_handler(stream)
