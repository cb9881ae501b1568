"""The steps of a plan: what a connection does for it, and what the plan gets back.

A plan is a generator. It yields one step after another and gets each step's result, or the error
that the step raised. It returns the result of the call. When a plan ends, by whatever way, its
connection cancels the streams that it began.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol, TypeVar

Result = TypeVar("Result")


class Signal(Protocol):
    """What an `Until` step waits for: a change of a state that threads share."""

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        """Wait up to `timeout` seconds until the predicate is true, and return its value."""

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` at each change, in any thread. It must be short."""

    def ignore(self, listener: Callable[[], None]) -> None:
        """Call `listener` no longer."""


class Hedge(NamedTuple):
    """The call goes to target number `at`, too, if there is no answer after so many seconds."""

    at: int
    after_s: float


class Send(NamedTuple):
    """One unary call. The result is the answer, as bytes.

    at: number of the target. timeout: seconds, None for no deadline. doing: what is tried; the text
    of an error begins with it. hedge: the second target of a read. The first answer of both counts,
    and the other call is cancelled. If both fail, the error is that of the first target.
    """

    at: int
    path: str
    request: bytes
    timeout: float | None
    doing: str
    hedge: Hedge | None = None


class Begin(NamedTuple):
    """Begin a call with a stream of answers. The result is the stream, for `Next`."""

    at: int
    path: str
    request: bytes
    timeout: float | None
    doing: str


class Next(NamedTuple):
    """Read a stream. The result is the next answer as bytes, or None after the last one."""

    stream: Any
    doing: str


class Wait(NamedTuple):
    """Do nothing for some seconds."""

    seconds: float


class Work(NamedTuple):
    """Run a function that may block, such as one that writes files. The result is its result."""

    function: Callable[[], Any]


class Until(NamedTuple):
    """Wait until the predicate is true, at most `timeout` seconds. The result is its value."""

    signal: Signal
    predicate: Callable[[], bool]
    timeout: float | None


Step = Send | Begin | Next | Wait | Work | Until
Plan = Generator[Step, Any, Result]
