"""The refusals of the server, and the exception that carries them.

Handlers raise `Refused`, and `rpc/service.py` converts it to a gRPC status. Any other exception of
a handler is logged with its traceback, and the client gets UNAVAILABLE with a fixed text. The text
of such an exception never leaves the server.
"""

from __future__ import annotations

import math

import grpc

BUSY_RETRY_MS = 100
"""Milliseconds after which a client that was refused for want of a slot should try again."""

LATER_RETRY_MS = 1000
"""The same for want of memory or disk, or because other work must end first."""

TEXT_CHARACTERS_MAX = 512
"""Maximum number of characters of the text of a status. gRPC transfers at most 8 KiB of it, and up
to 12 bytes a character.
"""


class Refused(Exception):
    """A request that the server answers with a status other than OK.

    `code` is a `grpc.StatusCode`, and `text` is meant for the client. A longer text than
    TEXT_CHARACTERS_MAX is cut. What a peer sent stands in it as `text.quoted` writes it. `retry_ms`
    is the time after which the client should try again, in milliseconds. 0 gives no hint.
    """

    def __init__(self, code: grpc.StatusCode, text: str, retry_ms: int = 0) -> None:
        cut = f"{text[: TEXT_CHARACTERS_MAX - 3]}..." if len(text) > TEXT_CHARACTERS_MAX else text
        super().__init__(cut)
        self.code = code
        self.text = cut
        self.retry_ms = retry_ms


def invalid(text: str) -> Refused:
    """The request is invalid. A retry fails again."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def not_found(text: str) -> Refused:
    """The model or the snapshot does not exist."""
    return Refused(grpc.StatusCode.NOT_FOUND, text)


def precondition(text: str) -> Refused:
    """The request does not fit the state: a sequence gap, a fenced producer, another lineage."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, text)


def exists(text: str) -> Refused:
    """The name or the sequence is in use with other contents."""
    return Refused(grpc.StatusCode.ALREADY_EXISTS, text)


def exhausted(text: str) -> Refused:
    """A limit of the server is reached, and waiting alone does not help.

    Nothing was logged. A retry can succeed after something was deleted or a setting was changed.
    """
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)


def later(text: str) -> Refused:
    """The server has no room now: for want of memory or disk, or because other work must end first.

    Nothing was logged. The status tells the client after how long to try again.
    """
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{text}; try again later", LATER_RETRY_MS)


def busy(text: str) -> Refused:
    """All slots and all waiting places of a kind of call are taken.

    The status tells the client to try again soon.
    """
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text, BUSY_RETRY_MS)


def paced(text: str, wait_s: float) -> Refused:
    """The caller sends too fast. The status tells it when it may send again."""
    return Refused(
        grpc.StatusCode.RESOURCE_EXHAUSTED, f"{text}; try again in {wait_s:.1f} s", math.ceil(wait_s * 1000)
    )


def no_memory(what: str) -> Refused:
    """The host or the device has too little memory for a read."""
    return later(f"memory: not enough for {what} now")


def unauthenticated(text: str) -> Refused:
    """The call has no valid token and no certificate with a grant."""
    return Refused(grpc.StatusCode.UNAUTHENTICATED, text)


def denied(text: str) -> Refused:
    """The caller is known, and its grant does not allow the call."""
    return Refused(grpc.StatusCode.PERMISSION_DENIED, text)


def unavailable(text: str) -> Refused:
    """The server is starting or draining, or it cannot write.

    The outcome of pending requests is unknown.
    """
    return Refused(grpc.StatusCode.UNAVAILABLE, text)


class NotLeader(Refused):
    """Another server takes the updates. It ends an update stream, so that a
    client with several targets goes on to the next one.
    """

    def __init__(self, leader: str) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, f"model: this server takes no updates; {leader} does")


def late(text: str) -> Refused:
    """The deadline has passed. The outcome of an update is unknown."""
    return Refused(grpc.StatusCode.DEADLINE_EXCEEDED, text)
