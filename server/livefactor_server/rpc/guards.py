"""The wrapper of every handler: slots, parsing, and the mapping of exceptions to statuses."""

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
from livefactor.wire.limits import PRODUCER_ID_BYTES_MAX, over
from livefactor_server import metrics
from livefactor_server.statuses import Refused, exhausted, invalid, unavailable

logger = logging.getLogger(__name__)


class Slots:
    """At most `count` concurrent calls of a kind. Further calls are refused without a wait."""

    def __init__(self, count: int, what: str) -> None:
        self._free = threading.Semaphore(count)
        self._what = what

    def __enter__(self) -> None:
        if not self._free.acquire(blocking=False):
            raise exhausted(f"{self._what}: all slots are in use; try again later")

    def __exit__(self, *_: object) -> None:
        self._free.release()


class Window:
    """Limits the batches of a stream whose answers the peer has not read yet."""

    def __init__(self, size: int) -> None:
        self._room = threading.Semaphore(size)
        self._closed = False

    def take(self) -> None:
        """Waits for room for one batch. It never waits after `close`."""
        self._room.acquire()
        if self._closed:
            self._room.release()

    def give(self, answers: int) -> None:
        """Frees the room of answers that the peer has read."""
        self._room.release(answers)

    def close(self) -> None:
        """Ends all waits, because the call is over and nobody reads answers any more."""
        self._closed = True
        self._room.release()


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


def producer_id(producer: bytes) -> bytes:
    """Checks the length of a producer's id, and returns the id.

    Raises:
        Refused: INVALID_ARGUMENT if the id is too long.
    """
    if len(producer) > PRODUCER_ID_BYTES_MAX:
        raise invalid(over("producer", PRODUCER_ID_BYTES_MAX, len(producer), "bytes"))
    return producer


def remaining(context: grpc.ServicerContext) -> float | None:
    """Seconds until the deadline of the call. None if it has no deadline."""
    seconds = context.time_remaining()
    # Without a deadline gRPC reports centuries, which exceed the maximum timeout of a lock.
    return None if seconds is None or seconds > threading.TIMEOUT_MAX else max(0.0, seconds)


def refusal(error: Exception) -> Refused:
    """The status for a fault of the client."""
    return error if isinstance(error, Refused) else invalid(str(error))


def is_cancel(error: Exception) -> bool:
    """Whether a stream of requests ended because its call was cancelled."""
    # If a stream is cancelled, grpcio ends its request iterator with a bare Exception or with its
    # private RpcError.
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
    """Which directions of a call are streams."""

    UNARY = auto()
    STREAM_OUT = auto()
    STREAM_BOTH = auto()


def guarded(
    kind: CallKind, handle: Callable[[Any, grpc.ServicerContext], Any], slots: Slots | None
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """Wraps a handler. It holds one of `slots` while it runs, and maps every exception to a
    status.
    """
    slot = nullcontext() if slots is None else slots

    def answer(raw: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            with slot:
                reply: bytes = handle(raw, context)
                return reply
        except Exception as error:
            failure = error
        _end_with(context, failure)
        raise AssertionError("abort raises")

    def stream(requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            with slot:
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
