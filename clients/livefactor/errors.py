"""Every error that this package raises, and the mapping from gRPC statuses to exceptions.

    LivefactorError              code (a gRPC status name, or ""), details (the server's text)
    ├── InvalidArgument          (ValueError) the request is malformed or outside a limit
    ├── NotFound                 the model or snapshot does not exist
    ├── AlreadyExists            the name is taken, or the sequence was used for another payload
    ├── FailedPrecondition       the server's state does not allow the call
    │   └── ProducerFenced       another process opened this id, or the server does not know it
    ├── Unauthenticated          the call has no valid token and no certificate with a grant
    ├── PermissionDenied         the grant of the caller does not allow the call
    ├── ResourceExhausted        queue, memory, score slots or disk are full
    ├── Unavailable              (ConnectionError) the server is away, starting or draining
    │   └── Cancelled            the server ended the call, for example because it stops
    ├── DeadlineExceeded         (TimeoutError) no answer came in time
    ├── Unimplemented            the server does not have this method
    ├── UnexpectedStatus         the status is not in the contract
    ├── BufferFull               (TimeoutError) the buffer had no room in time
    ├── FlushTimeout             (TimeoutError) some rows were not acknowledged in time
    ├── ProducerClosed           the producer was closed before the call
    ├── ForkError                another process made the producer
    ├── ColumnError              (ValueError) columns do not match, or a message does not parse
    ├── NotFitted                (ValueError, AttributeError) a Recommender has learned nothing yet
    ├── SnapshotInvalid          (ValueError) the snapshot does not verify
    ├── UnknownSpec              (ValueError) the spec has a part that this version does not know
    ├── ServerMissing            (ImportError) the server extra is not installed
    └── MissingPackage           (ImportError) a package that a method needs is not installed

The errors down to UnexpectedStatus stand for statuses of a server. The set of statuses is closed
(protos/livefactor/v1/updates.proto).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc


class LivefactorError(Exception):
    """The base class of all errors.

    code: gRPC status name, or "". details: the server's text, or "". retry_after_s: after how many
    seconds the server wants the call again, infinite for never; None if it does not say.
    """

    def __init__(
        self, message: str = "", *, code: str = "", details: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message or details)
        self.code = code
        self.details = details
        self.retry_after_s = retry_after_s


class InvalidArgument(LivefactorError, ValueError):
    """The request is malformed or outside a limit. It fails again if it is sent again."""


class NotFound(LivefactorError):
    """The model or snapshot does not exist."""


class AlreadyExists(LivefactorError):
    """The name is taken, or the sequence was used for another payload."""


class FailedPrecondition(LivefactorError):
    """The server's state does not allow the call, as with a position of another lineage."""


class ProducerFenced(FailedPrecondition):
    """Another process opened this producer id, or the server does not know the id."""


class Unauthenticated(LivefactorError):
    """The call has no valid token and no client certificate with a grant."""


class PermissionDenied(LivefactorError):
    """The grant of the caller does not allow the call, or it does not cover the model."""


class ResourceExhausted(LivefactorError):
    """The queue, the memory, the score slots or the disk of the server are full.

    Try again later.
    """


class Unavailable(LivefactorError, ConnectionError):
    """The server is away, starting or draining. A call that changes something may have done so."""


class Cancelled(Unavailable):
    """The server ended the call, for example because it stops. A call that changes something may
    have done so.
    """


class DeadlineExceeded(LivefactorError, TimeoutError):
    """No answer came in time. A call that changes something may have done so or do so later."""


class Unimplemented(LivefactorError):
    """The server does not have this method."""


class UnexpectedStatus(LivefactorError):
    """The status is not in the contract: the peer is not a livefactor server, or it has a bug."""


class BufferFull(LivefactorError, TimeoutError):
    """The producer's buffer had no room in time. It took no row of the push."""


class FlushTimeout(LivefactorError, TimeoutError):
    """Some rows were not acknowledged in time. They stay in the buffer, and delivery goes on."""


class ProducerClosed(LivefactorError):
    """The producer was closed before the call."""


class ForkError(LivefactorError):
    """Another process made the producer: its threads do not live on in a forked child.

    Make another producer there, with a producer id of its own.
    """


class ColumnError(LivefactorError, ValueError):
    """A column has the wrong length, type or value, or a message does not parse.

    column, row: the column and the row (from 0) of a value that was refused; "" and None where the
    fault has no row. reason: the text without both.
    """

    column: str = ""
    row: int | None = None
    reason: str = ""

    @classmethod
    def at(cls, column: str, row: int, reason: str) -> ColumnError:
        """The error for the value in one row of a column."""
        error = cls(f"{column}[{row}]: {reason}")
        error.column, error.row, error.reason = column, row, reason
        return error


class NotFitted(LivefactorError, ValueError, AttributeError):
    """The recommender has learned nothing yet: call `fit` or `partial_fit` first."""


class SnapshotInvalid(LivefactorError, ValueError):
    """The folder is not a valid snapshot: it is damaged, was changed, or is something else.

    file: name of the file; "" for the folder itself. tensor: name of the section, or "". block:
    number of the 1 MiB block, or None.
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


class UnknownSpec(LivefactorError, ValueError):
    """The model's spec has a part that this version of the package does not know.

    The text names the part. A newer version can compute what was asked for.
    """


class ServerMissing(LivefactorError, ImportError):
    """The server extra is not installed."""


class MissingPackage(LivefactorError, ImportError):
    """A package that a method needs is not installed. The text names the pip command."""


_BY_CODE: dict[str, type[LivefactorError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": FailedPrecondition,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "UNIMPLEMENTED": Unimplemented,
}


_UNKNOWN = 2


@cache
def _by_number() -> dict[int, grpc.StatusCode]:
    # The command reads this module before it needs gRPC, whose import takes long.
    import grpc

    return {code.value[0]: code for code in grpc.StatusCode}


def status_code(number: int) -> grpc.StatusCode:
    """The gRPC status for a google.rpc.Code number. UNKNOWN for a number without a status."""
    statuses = _by_number()
    return statuses.get(number, statuses[_UNKNOWN])


def from_status(code: grpc.StatusCode, details: str, doing: str = "") -> LivefactorError:
    """The error for a status.

    code: any status other than OK. details: the server's text. doing: what was tried; the message
    begins with it.
    """
    kind = _BY_CODE.get(code.name, UnexpectedStatus)
    text = details or code.name
    # A text that names the same thing, such as "model: 'shop' does not exist", says it all.
    if doing and not text.startswith(doing.replace(" ", ": ", 1)):
        text = f"{doing}: {text}"
    return kind(text, code=code.name, details=details)


def from_rpc(error: grpc.RpcError, doing: str = "") -> LivefactorError:
    """The error for a failed gRPC call. doing: what was tried; the message begins with it."""
    failure = from_status(error.code(), error.details() or "", doing)
    failure.retry_after_s = _retry_after_s(error)
    return failure


_PUSHBACK = "grpc-retry-pushback-ms"


def _retry_after_s(error: Any) -> float | None:
    """What the server says about another try, as gRPC defines it: a number of milliseconds, and
    anything else means never.
    """
    for name, value in error.trailing_metadata() or ():
        if name == _PUSHBACK:
            text = value if isinstance(value, str) else ""
            return int(text) / 1e3 if text.isascii() and text.isdigit() else float("inf")
    return None
