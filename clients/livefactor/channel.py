"""The transport: targets, channel options, retries of reads, and calls that raise our errors.

Every client class takes a target ("host:port", "[::1]:port", "unix:/path") or a channel that the
caller opened (`channel=`). The caller closes such a channel, and should make it with
`open_channel`, because the options matter. Reads are tried again here, within their deadline. The
Producer makes writes exactly-once.
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic, sleep
from typing import Any, TypeVar

import grpc

from livefactor.access import Access
from livefactor.errors import InvalidArgument, LivefactorError, ResourceExhausted, Unavailable, from_rpc
from livefactor.wire.limits import MESSAGE_BYTES_MAX, check_most, over

DEFAULT_PORT = 50051
DEFAULT_TARGET = f"127.0.0.1:{DEFAULT_PORT}"
DEADLINE_S = 10.0
"""Default deadline of unary calls, seconds."""

CONNECT_S = 3.0
"""Default time that a call waits for a server that cannot be reached, seconds."""

READ_RETRY_S = 10.0
"""How long a read of models or snapshots is tried again while the server is full or away, seconds.
A Scorer's calls are tried until their deadline.
"""

READ_BACKOFF_S = 0.05
READ_BACKOFF_MAX_S = 1.0

OPTIONS: tuple[tuple[str, Any], ...] = (
    # With the transport's own retries, a stream that fails while it connects is sometimes lost: its
    # status arrives, but whoever waits for the next message waits for ever (grpcio 1.85.3: 7 of 119
    # streams on a busy machine; without retries none of 252). So reads are tried again here, and
    # the Producer retries writes.
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # A server ends a connection that pings more often than every 5 minutes.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # By default gRPC waits up to two minutes before it tries a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

Result = TypeVar("Result")


def open_channel(
    target: str = DEFAULT_TARGET,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.Channel:
    """Open a channel to `target`; it connects at the first call.

    credentials: None for plain text. options: gRPC's own options, which override the defaults here.
    A proxy that the environment names (grpc_proxy, https_proxy, http_proxy) is used for other
    machines only, never for loopback addresses and Unix-domain sockets.
    Raises InvalidArgument, which is a ValueError, for a malformed target.
    """
    address = parse_target(target)
    direct = {} if may_be_remote(address) else {"grpc.enable_http_proxy": 0}
    merged = list({**dict(OPTIONS), **direct, **dict(options)}.items())
    if credentials is None:
        return grpc.insecure_channel(address, merged)
    return grpc.secure_channel(address, credentials, merged)


def parse_target(target: str) -> str:
    """The address that gRPC takes: host:port, [ipv6]:port or unix:/path.

    A host alone gets the default port. Raises InvalidArgument that names what was expected. gRPC
    itself would report a malformed address only later, and as UNAVAILABLE.
    """
    text = target.strip()
    if text.startswith("unix:"):
        if len(text) > len("unix:"):
            return text
        raise InvalidArgument("target: expected unix:/path, got 'unix:'")
    if "/" in text or not text:
        raise InvalidArgument(f"target: expected host:port, [ipv6]:port or unix:/path, got {target!r}")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return f"{text}:{DEFAULT_PORT}"
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed) or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InvalidArgument(f"target: expected host:port with a port of 1..65535, got {target!r}")
    return text


def may_be_remote(target: str) -> bool:
    """Whether a target can lie on another machine. Raises InvalidArgument for a malformed one."""
    address = parse_target(target)
    if address.startswith("unix:"):
        return False
    host = address.rpartition(":")[0].strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        number = ipaddress.ip_address(host)
        # A connection to the unspecified address reaches the own machine.
        return not (number.is_loopback or number.is_unspecified)
    except ValueError:
        # It is a name.
        return True


class Connection:
    """A channel and whether this package opened it. `close` closes it only then.

    target: an address, or the caller's channel. connect_s: how long a call waits for a server that
    cannot be reached, seconds. access: TLS and token; None takes them from the environment. The
    channel of a caller has its own TLS, and the token goes with every call on it.
    """

    def __init__(
        self,
        target: str | grpc.Channel,
        channel: grpc.Channel | None,
        connect_s: float = CONNECT_S,
        access: Access | None = None,
    ) -> None:
        given = target if channel is None else channel
        self.owned = isinstance(given, str)
        self.target = given if isinstance(given, str) else "a channel of the caller"
        self.connect_s = connect_s
        self.keep_alive: object = None
        """What must live as long as this connection does."""
        access = access or Access.from_environment()
        credentials = access.credentials() if isinstance(given, str) else None
        is_private = not isinstance(given, str) or credentials is not None or not may_be_remote(given)
        self.metadata = access.metadata(is_private)
        """The metadata that every call needs."""
        self.channel = open_channel(given, credentials=credentials) if isinstance(given, str) else given

    def close(self) -> None:
        """Close the channel if it was opened here."""
        if self.owned:
            self.channel.close()

    def unary(
        self, path: str, request: bytes, deadline_s: float | None, doing: str, retry_s: float = 0.0
    ) -> bytes:
        """One unary call with bytes in and out. Raises a LivefactorError.

        doing: what is tried, for the error's text. retry_s: how long a read is tried again while
        the server says that it is full or unavailable, within the deadline; 0 for a write. A call
        that did not reach a server is tried for `connect_s`, reads and writes alike.
        """
        check_most("request", MESSAGE_BYTES_MAX, len(request), "bytes")
        call: Any = self.channel.unary_unary(path)
        patience = self.patience(deadline_s, retry_s)
        while True:
            try:
                answer: bytes = guarded(
                    partial(call, request, timeout=patience.left(), metadata=self.metadata), doing
                )
                return answer
            except (Unavailable, ResourceExhausted) as failure:
                patience.wait(failure)

    def stream(self, path: str, request: bytes, doing: str) -> Iterator[bytes]:
        """One call with a stream of answers as bytes; leaving the iteration early cancels it.

        Raises a LivefactorError.
        """
        begin: Any = self.channel.unary_stream(path)
        patience = self.patience(None, 0.0)
        while True:
            call, received = begin(request, metadata=self.metadata), False
            try:
                for answer in call:
                    received = True
                    yield answer
                return
            except grpc.RpcError as error:
                failure = from_rpc(error, doing)
                if received or not isinstance(failure, Unavailable):
                    raise failure from None
            finally:
                call.cancel()
            patience.wait(failure)

    def patience(self, deadline_s: float | None, retry_s: float) -> Patience:
        """How long a call that begins now goes on trying."""
        return Patience(self.target, self.connect_s, deadline_s, retry_s)


class Patience:
    """How long one call is tried again while there is no server, or while the server is full.

    Arguments as those of `Connection.unary`.
    """

    def __init__(self, target: str, connect_s: float, deadline_s: float | None, retry_s: float) -> None:
        began = monotonic()
        self._target = target
        self._deadline = float("inf") if deadline_s is None else began + deadline_s
        self._connect_s, self._connect_until = connect_s, began + connect_s
        self._retry_until = began + retry_s
        self._attempt = 0

    def left(self) -> float | None:
        """Seconds until the deadline; None if there is none."""
        return None if self._deadline == float("inf") else max(0.0, self._deadline - monotonic())

    def wait(self, failure: LivefactorError) -> None:
        """Sleep before the next try.

        Raises the error that ends the tries: `failure`, or one that says that nothing listens.
        """
        self._attempt += 1
        unreachable = is_unreachable(failure)
        again_at = monotonic() + backoff_s(self._attempt, READ_BACKOFF_S, READ_BACKOFF_MAX_S)
        until = self._connect_until if unreachable else self._retry_until
        if again_at >= min(self._deadline, until):
            raise no_server(failure, self._target, self._connect_s) if unreachable else failure
        sleep(max(0.0, again_at - monotonic()))


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


def backoff_s(attempt: int, first_s: float, most_s: float) -> float:
    """Seconds to wait after try number `attempt` (1, 2, ...).

    The wait doubles with each try and is drawn at random, so that many clients do not come back at
    once.
    """
    return min(most_s, first_s * 2.0 ** min(attempt - 1, 16)) * random.uniform(0.5, 1.0)


# gRPC's text for a message above its limit. Its status says "try again", which never helps.
_TOO_LARGE = re.compile(r"(.*)(Received|Sent) message larger than max \((\d+) vs. (\d+)\)")


def guarded(call: Callable[[], Result], doing: str) -> Result:
    """Make the call. Errors of gRPC and of a closed channel become LivefactorErrors."""
    try:
        return call()
    except grpc.RpcError as error:
        failure = from_rpc(error, doing)
        if isinstance(failure, ResourceExhausted) and (large := _TOO_LARGE.match(failure.details)):
            side, verb, got, most = large.groups()
            # Texts without a side are those of the receiver of the answer.
            field = "request" if side.startswith("SERVER") == (verb == "Received") else "answer"
            text = over(field, int(most), int(got), "bytes")
            failure = InvalidArgument(f"{doing}: {text}", code=failure.code, details=text)
        raise failure from None
    except ValueError as error:
        # grpc raises this on a closed channel.
        raise LivefactorError(f"{doing}: {error}") from error
