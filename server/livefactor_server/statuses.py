"""The closed set of refusals, and the one exception that carries them.

Handlers raise `Refused`; `service.py` turns it into a gRPC status. Anything else that escapes a handler is logged with
its traceback and reaches the peer as UNAVAILABLE with a fixed text: no exception's own text leaves the server.
"""

from __future__ import annotations

import grpc


class Refused(Exception):
    """A request that is answered with a status other than OK. `code` is a `grpc.StatusCode`, `text` is meant for the peer."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def invalid(text: str) -> Refused:
    """The request itself is wrong; sending it again will not help."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def not_found(text: str) -> Refused:
    """There is no such model or snapshot."""
    return Refused(grpc.StatusCode.NOT_FOUND, text)


def precondition(text: str) -> Refused:
    """The request does not fit the state: sequence gap, fenced producer, other lineage."""
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, text)


def exists(text: str) -> Refused:
    """The name or sequence is taken by something else."""
    return Refused(grpc.StatusCode.ALREADY_EXISTS, text)


def exhausted(text: str) -> Refused:
    """A limit of the server is reached (queue, slots, memory, disk); nothing was logged; try again later."""
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)


def no_memory(what: str) -> Refused:
    """The host or a backend's device has no memory for something that changes nothing."""
    return exhausted(f"memory: there is not enough for {what} now, try again later")


def unavailable(text: str) -> Refused:
    """The server is starting, draining or cannot write; the outcome of what was in flight is unknown."""
    return Refused(grpc.StatusCode.UNAVAILABLE, text)


def late(text: str) -> Refused:
    """The deadline came first; the outcome is unknown for updates."""
    return Refused(grpc.StatusCode.DEADLINE_EXCEEDED, text)
