"""Everything this package raises, and the one mapping from gRPC status to exception.

    LivefactorError              code (a gRPC status name, or ""), details (what the server said)
    ├── InvalidArgument          (ValueError) malformed or outside a limit; sending it again cannot help
    ├── NotFound                 no such model or snapshot
    ├── AlreadyExists            the name is taken, or the sequence was used for another payload
    ├── FailedPrecondition       the server's state does not allow it (position of another lineage)
    │   └── ProducerFenced       another process opened this id, or the server does not know it
    ├── ResourceExhausted        queue, memory, score slots or disk are full: try again later
    ├── Unavailable              (ConnectionError) the server is away, starting or draining
    ├── DeadlineExceeded         (TimeoutError) no answer in time
    ├── Cancelled                the call was cancelled
    ├── Unimplemented            the server does not have this method
    ├── UnexpectedStatus         any other status: not a livefactor server, or a bug
    ├── BufferFull               (TimeoutError) the buffer had no room in time; nothing was taken
    ├── FlushTimeout             (TimeoutError) not all was acknowledged in time; it stays in the buffer
    ├── ProducerClosed           push or flush after close
    ├── ColumnError              (ValueError) columns of unequal length or wrong type, malformed messages
    ├── SnapshotInvalid          (ValueError) a snapshot that does not verify
    └── ServerMissing            (ImportError) the server extra is not installed

Errors of the first group come from a server's status; the statuses are a closed set
(protos/livefactor/v1/updates.proto).
"""

from __future__ import annotations

import grpc


class LivefactorError(Exception):
    """Base of all. `code`: gRPC status name or "". `details`: the server's text or ""."""

    def __init__(self, message: str = "", *, code: str = "", details: str = "") -> None:
        super().__init__(message or details)
        self.code = code
        self.details = details


class InvalidArgument(LivefactorError, ValueError):
    """The request is malformed or outside a limit; sending it again cannot help."""


class NotFound(LivefactorError):
    """No such model or snapshot."""


class AlreadyExists(LivefactorError):
    """The name is taken, or the sequence was used for another payload."""


class FailedPrecondition(LivefactorError):
    """The server's state does not allow it."""


class ProducerFenced(FailedPrecondition):
    """Another process opened this producer id, or the server does not know it (any more)."""


class ResourceExhausted(LivefactorError):
    """Queue, memory, score slots or disk are full: try again later."""


class Unavailable(LivefactorError, ConnectionError):
    """The server is away, starting or draining."""


class DeadlineExceeded(LivefactorError, TimeoutError):
    """No answer in time."""


class Cancelled(LivefactorError):
    """The call was cancelled."""


class Unimplemented(LivefactorError):
    """The server does not have this method."""


class UnexpectedStatus(LivefactorError):
    """A status outside the contract: not a livefactor server, or a bug."""


class BufferFull(LivefactorError, TimeoutError):
    """The producer's buffer had no room in time; nothing of the push was taken."""


class FlushTimeout(LivefactorError, TimeoutError):
    """Not everything was acknowledged in time; it stays in the buffer."""


class ProducerClosed(LivefactorError):
    """The producer was closed."""


class ColumnError(LivefactorError, ValueError):
    """Columns of unequal length or of a wrong type, or a message that does not parse."""


class SnapshotInvalid(LivefactorError, ValueError):
    """A snapshot that is damaged, was tampered with, or is none.

    file: name in the folder ("" for the folder itself). tensor: section name, or "". block: number of the 1
    MiB block, or None.
    """

    def __init__(self, file: str, reason: str, tensor: str = "", block: int | None = None) -> None:
        where = file or "folder"
        if tensor:
            where += f", tensor {tensor}"
        if block is not None:
            where += f", block {block}"
        super().__init__(f"{where}: {reason}")
        self.file = file
        self.tensor = tensor
        self.block = block
        self.reason = reason


class ServerMissing(LivefactorError, ImportError):
    """The server extra is not installed."""


_BY_CODE: dict[grpc.StatusCode, type[LivefactorError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def status_code(number: int) -> grpc.StatusCode:
    """The gRPC status of a google.rpc.Code number (UNKNOWN for numbers that are none)."""
    return _BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN)


def from_status(code: grpc.StatusCode, details: str, doing: str = "") -> LivefactorError:
    """The error for a status. code: anything but OK. details: the server's text. doing: what was tried, for
    the message.
    """
    kind = _BY_CODE.get(code, UnexpectedStatus)
    text = details or code.name
    return kind(f"{doing}: {text}" if doing else text, code=code.name, details=details)


def from_rpc(error: grpc.RpcError, doing: str = "") -> LivefactorError:
    """The error for what a gRPC call raised. doing: what was tried, for the message."""
    return from_status(error.code(), error.details() or "", doing)
