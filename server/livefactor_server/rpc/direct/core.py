"""What the direct calls use of grpcio's own layer over its core.

grpcio's servers are made of this layer, and it is no public interface. So only this file names it.
If a version of grpcio has another one, `found` says so, and asyncio serves all calls.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]

ACCEPTED_MAX = 16
"""Number of calls of a method that the core may hand over before the server asks for more."""

FOREVER_S = 1e15
"""A later deadline than this one, in seconds since the epoch, is none."""

Metadata = tuple[tuple[str, str | bytes], ...]
Event = Any
Tag = Callable[[Event], None]

_NONE = 0
"""No flags of an operation."""

_USED = {
    "Server": ("register_completion_queue", "register_method", "request_registered_call"),
    "CompletionQueue": ("poll", "shutdown"),
    "Call": ("start_server_batch",),
}

logger = logging.getLogger(__name__)


def found(server: grpc.aio.Server) -> Any | None:
    """The core's server of a server that has not started. None if grpcio lacks what is used."""
    try:
        for kind, names in _USED.items():
            for name in names:
                getattr(getattr(cygrpc, kind), name)
        within = gc.get_referents(server._server)  # type: ignore[attr-defined]
        return next(each for each in within if isinstance(each, cygrpc.Server))
    except (AttributeError, StopIteration):
        logger.warning("grpcio %s serves all calls with asyncio, which is slower", grpc.__version__)
        return None


class Core:
    """Calls of some methods of a server, as events of a queue of their own.

    One thread calls `next`. Any thread may call the rest.
    """

    def __init__(self, server: Any) -> None:
        """Takes the core's server, as `found` gives it, before it starts."""
        self._server = server
        self._queue = cygrpc.CompletionQueue()
        server.register_completion_queue(self._queue)

    def register(self, method: str) -> None:
        """Takes the calls of a method ("/package.Service/Method") away from other handlers."""
        self._server.register_method(method)

    def accept(self, method: str, arrived: Tag) -> None:
        """Asks for one call. `arrived` gets its event."""
        # It is an error once the server shuts down.
        with contextlib.suppress(ValueError):
            self._server.request_registered_call(self._queue, self._queue, method, arrived)

    def next(self, until: float | None) -> Event:
        """The next event. `until` is in seconds since the epoch, None waits without a limit."""
        return self._queue.poll(until)

    @staticmethod
    def is_end(event: Event) -> bool:
        """Whether no event follows."""
        return bool(event.completion_type == cygrpc.CompletionType.queue_shutdown)

    @staticmethod
    def is_timeout(event: Event) -> bool:
        """Whether no event came in time."""
        return bool(event.completion_type == cygrpc.CompletionType.queue_timeout)

    def close(self) -> None:
        """Ends the events. No call is open."""
        self._queue.shutdown()


class Arrival:
    """A call that has arrived. For grants and reports it is the context of the call."""

    __slots__ = ("_call", "_deadline", "_metadata")

    def __init__(self, event: Event) -> None:
        self._call, self._metadata = event.call, event.invocation_metadata
        self._deadline: float = event.call_details.deadline

    def invocation_metadata(self) -> Metadata:
        """The metadata that the client sent."""
        metadata: Metadata = self._metadata
        return metadata

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, None without one."""
        return None if self._deadline > FOREVER_S else max(0.0, self._deadline - time.time())

    def auth_context(self) -> dict[str, list[bytes]]:
        """What TLS knows of the client."""
        return {key.decode(): values for key, values in (cygrpc.auth_context(self._call) or {}).items()}

    def receive(self, received: Tag) -> None:
        """Reads the message. `received` gets its event."""
        self._call.start_server_batch((cygrpc.ReceiveMessageOperation(_NONE),), received)

    def watch(self, ended: Tag) -> None:
        """`ended` gets an event when the call has ended."""
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NONE),), ended)

    def answer(self, reply: bytes, metadata: Metadata) -> None:
        """Sends the answer, and ends the call with OK."""
        operations = (
            cygrpc.SendInitialMetadataOperation((), _NONE),
            cygrpc.SendMessageOperation(reply, _NONE),
            cygrpc.SendStatusFromServerOperation(metadata, _OK, b"", _NONE),
        )
        self._call.start_server_batch(operations, None)

    def refuse(self, code: grpc.StatusCode, text: str, metadata: Metadata) -> None:
        """Ends the call with another status."""
        operations = (
            cygrpc.SendInitialMetadataOperation((), _NONE),
            cygrpc.SendStatusFromServerOperation(metadata, code.value[0], text.encode(), _NONE),
        )
        self._call.start_server_batch(operations, None)

    def wake(self, woken: Tag) -> None:
        """Has the queue give an event to `woken`. A batch without operations is complete at once.

        Any thread may call it while the queue is not closed. It keeps the GIL.
        """
        self._call.start_server_batch((), woken)


_OK = grpc.StatusCode.OK.value[0]


def message_of(event: Event) -> bytes | None:
    """The message that a call has received. None if it has none."""
    message: bytes | None = event.batch_operations[0].message()
    return message


def is_cancelled(event: Event) -> bool:
    """Whether a call that has ended got no answer."""
    return bool(event.batch_operations[0].cancelled())
