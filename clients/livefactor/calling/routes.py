"""`Route`: the servers that a client may call, which of them it calls now, and the plans of calls.

With several targets a client stays with one of them until that one is away. Then it goes on to the
next. The targets must be servers of the same models, such as a server and the one that takes over
its data folder: a position or a producer of another lineage is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from livefactor.access import Access
from livefactor.calling.plans import Begin, Hedge, Next, Plan, Send, Wait
from livefactor.calling.retries import Patience
from livefactor.channel import CONNECT_S, DEFAULT_TARGET, may_be_remote, parse_targets
from livefactor.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from livefactor.wire.limits import MESSAGE_BYTES_MAX, check_most

FAILOVER_CONNECT_MS = 900
"""How long a client with several targets tries to connect to one of them, milliseconds. A target
that refuses connections is left at once; this is for a machine that answers nothing.
"""

# What gRPC says when a call ended at its own deadline, and the server said nothing.
_SILENT = "Deadline Exceeded"


class Route:
    """The targets of a client. The classes that carry out its plans inherit from it.

    target: an address, addresses with commas between them, or a list of addresses; or the caller's
    channel; None takes the environment variable LIVEFACTOR_TARGET, or else the default address.
    connect_s: how long a call waits for a server that cannot be reached, seconds. access: TLS and
    token; None takes them from the environment. The channel of a caller has its own TLS, and the
    token goes with every call on it. Raises InvalidArgument for a malformed target, and for a token
    that could be read on the way.
    """

    def __init__(
        self,
        target: str | Sequence[str] | Any | None,
        channel: Any | None,
        connect_s: float = CONNECT_S,
        access: Access | None = None,
    ) -> None:
        given = target if channel is None else channel
        if given is None:
            given = os.environ.get("LIVEFACTOR_TARGET") or DEFAULT_TARGET
        self.owned = isinstance(given, str | list | tuple)
        """Whether the channels are opened here, and closed by `close`."""
        self.given_channel: Any = None if self.owned else given
        self.targets = parse_targets(given) if self.owned else ()
        self.at = 0
        """Number of the target that calls go to."""
        self.connect_s = connect_s
        self.keep_alive: object = None
        """What must live as long as this connection does."""
        access = access or Access.from_environment()
        self.credentials = access.credentials() if self.owned else None
        is_private = self.credentials is not None or not any(map(may_be_remote, self.targets))
        self.metadata = access.metadata(is_private)
        """The metadata that every call needs."""
        self.options = (
            (("grpc.min_reconnect_backoff_ms", FAILOVER_CONNECT_MS),) if len(self.targets) > 1 else ()
        )
        """Options of the channels, beside the defaults."""

    @property
    def target(self) -> str:
        """The targets as text."""
        return ", ".join(self.targets) if self.owned else "a channel of the caller"

    def __len__(self) -> int:
        return max(1, len(self.targets))

    def leave(self, at: int) -> bool:
        """Go on to the target behind number `at`, unless another call has done so.

        Returns False if there is no other target.
        """
        if len(self.targets) < 2:
            return False
        if self.at == at:
            self.at = (at + 1) % len(self.targets)
        return True

    def unary(
        self,
        path: str,
        request: bytes,
        timeout: float | None,
        doing: str,
        retry_s: float = 0.0,
        hedge_s: float | None = None,
    ) -> Plan[bytes]:
        """The plan of one unary call with bytes in and out. Raises a LivefactorError.

        timeout, retry_s: as in `Patience`. doing: what is tried, for the error's text. hedge_s: a
        read without an answer after so many seconds goes to the next target, too; None for never.
        """
        check_most("request", MESSAGE_BYTES_MAX, len(request), "bytes")
        patience = Patience(self, timeout, retry_s)
        while True:
            at = self.at
            try:
                hedge = None if hedge_s is None else Hedge((at + 1) % len(self), hedge_s)
                answer: bytes = yield Send(at, path, request, patience.left(), doing, hedge)
                return answer
            except (Unavailable, ResourceExhausted) as failure:
                wait = patience.after(failure, at)
            except DeadlineExceeded as failure:
                if failure.details == _SILENT:
                    # Nothing was heard of this target. The next call asks another one.
                    self.leave(at)
                raise
            if wait:
                yield Wait(wait)

    def stream(
        self, path: str, request: bytes, timeout: float | None, doing: str
    ) -> Plan[tuple[Any, bytes | None]]:
        """The plan of the beginning of one call with a stream of answers, as bytes.

        It returns the stream and the first answer; `Next` reads the others. timeout: seconds for
        the whole call; None for no deadline. Raises a LivefactorError.
        """
        patience = Patience(self, timeout, 0.0)
        while True:
            at = self.at
            try:
                stream = yield Begin(at, path, request, patience.left(), doing)
                return stream, (yield Next(stream, doing))
            except Unavailable as failure:
                wait = patience.after(failure, at)
            if wait:
                yield Wait(wait)
