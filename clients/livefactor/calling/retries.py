"""Whether and when a call is made again: the one place for waits, random parts and hints.

gRPC can retry by itself (a service config), but it must not here: with its own retries a stream
that fails while it connects is sometimes lost (`channel.OPTIONS`). It also knows neither of several
targets nor of `connect_s`.
"""

from __future__ import annotations

import random
from time import monotonic
from typing import Protocol

from livefactor.errors import DeadlineExceeded, LivefactorError, Unavailable

BACKOFF_S = 0.05
BACKOFF_MAX_S = 1.0

HINT_SPREAD = 0.5
"""The wait that a server asks for is made longer by a random part of up to this fraction, so that
the clients that it refused at once do not come back at once.
"""


class Targets(Protocol):
    """What decides about a retry needs to know of a route."""

    connect_s: float

    @property
    def target(self) -> str:
        """The targets as text."""

    def __len__(self) -> int:
        """The number of targets."""

    def leave(self, at: int) -> bool:
        """Use another target than number `at` from now on. False if there is no other one."""


class Patience:
    """How long one call is tried again while there is no server, or while the server is full.

    timeout: the deadline of the call, seconds; None for none. retry_s: how long it is tried again
    after an answer that says that the server is full or unavailable, seconds; 0 for a write, which
    may have been applied. A call that did not reach a server is tried for `connect_s` seconds,
    reads and writes alike. first_s, most_s: the first and the longest wait.
    """

    def __init__(
        self,
        route: Targets,
        timeout: float | None,
        retry_s: float,
        first_s: float | None = None,
        most_s: float | None = None,
    ) -> None:
        began = monotonic()
        self._route = route
        self._deadline = float("inf") if timeout is None else began + timeout
        self._connect_until, self._retry_until = began + route.connect_s, began + retry_s
        self._connect_s = min(route.connect_s, self._deadline - began)
        self._first_s = BACKOFF_S if first_s is None else first_s
        self._most_s = BACKOFF_MAX_S if most_s is None else most_s
        self._attempt = 0

    def left(self) -> float | None:
        """Seconds until the deadline; None if there is none."""
        return None if self._deadline == float("inf") else max(0.0, self._deadline - monotonic())

    def after(self, failure: LivefactorError, at: int) -> float:
        """Seconds to wait before the next try, after target number `at` failed.

        The other targets are tried without a wait. Raises the error that ends the tries: `failure`,
        or one that says that nothing listens.
        """
        now, unreachable = monotonic(), is_unreachable(failure)
        moved = isinstance(failure, Unavailable | DeadlineExceeded) and self._route.leave(at)
        self._attempt += 1
        rounds, others = divmod(self._attempt, len(self._route))
        wait = 0.0
        if not (moved and others):
            wait = wait_s(failure, max(1, rounds), self._first_s, self._most_s)
        until = self._connect_until if unreachable else self._retry_until
        if now + wait >= min(self._deadline, until):
            raise no_server(failure, self._route.target, self._connect_s) if unreachable else failure
        return wait


# What gRPC itself says when it has no connection; a server's own texts begin with what they are
# about.
_UNREACHABLE = ("failed to connect", "dns resolution failed", "errors resolving", "empty address list")


def is_unreachable(failure: LivefactorError) -> bool:
    """Whether the call never reached a server, so that it is safe to try it again."""
    return isinstance(failure, Unavailable) and failure.details.lower().startswith(_UNREACHABLE)


def no_server(failure: LivefactorError, target: str, connect_s: float) -> Unavailable:
    """The error for a server that could not be reached in `connect_s` seconds."""
    reason = failure.details.rsplit(": ", 1)[-1]
    text = f"no server at {target} after {connect_s:g} s ({reason}); start one with `livefactor serve`"
    return Unavailable(text, code=failure.code, details=failure.details)


def wait_s(failure: LivefactorError, attempt: int, first_s: float, most_s: float) -> float:
    """Seconds to wait after a failure: what the server asked for, or else `backoff_s`."""
    if failure.retry_after_s is None:
        return backoff_s(attempt, first_s, most_s)
    return failure.retry_after_s * random.uniform(1.0, 1.0 + HINT_SPREAD)


def backoff_s(attempt: int, first_s: float, most_s: float) -> float:
    """Seconds to wait after try number `attempt` (1, 2, ...).

    The wait doubles with each try and is drawn at random, so that many clients do not come back at
    once.
    """
    return min(most_s, first_s * 2.0 ** min(attempt - 1, 16)) * random.uniform(0.5, 1.0)
