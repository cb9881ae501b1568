"""The transport: targets, channel options, retries of reads, and unary calls whose errors are this package's.

Every client class takes a target ("host:port", "[::1]:port", "unix:/path") or a channel of the caller's own
(`channel=`), which then stays the caller's to close; it should come from `open_channel`, whose options
matter. Reads are tried again here, within their deadline; writes are made exactly-once by the Producer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic, sleep
from typing import Any, TypeVar

import grpc

from livefactor.errors import LivefactorError, Unavailable, from_rpc

DEFAULT_PORT = 50051
DEFAULT_TARGET = f"127.0.0.1:{DEFAULT_PORT}"
MESSAGE_BYTES_MAX = 4 << 20
DEADLINE_S = 10.0
"""Default deadline of unary calls, seconds."""

READ_ATTEMPTS = 4
"""How often a read is tried while the server is unavailable, within its deadline."""

READ_BACKOFF_S = 0.05
READ_BACKOFF_MAX_S = 1.0

OPTIONS: tuple[tuple[str, Any], ...] = (
    # The transport's own retries lose a stream now and then that fails while it connects: its status arrives,
    # and whoever waits for the next message waits for ever (grpcio 1.85.3, 7 of 119 streams on a busy
    # machine; without retries none of 252). So reads are tried again here, and writes by the Producer.
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # A server ends connections that ping more often than every 5 minutes.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # The default waits up to two minutes before it looks whether a restarted server is back.
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
    """A channel to `target`, not yet connected. credentials: None for plain text. options: gRPC's own, over
    the defaults.

    Raises ValueError for a target that is none.
    """
    address = parse_target(target)
    merged = list({**dict(OPTIONS), **dict(options)}.items())
    if credentials is None:
        return grpc.insecure_channel(address, merged)
    return grpc.secure_channel(address, credentials, merged)


def parse_target(target: str) -> str:
    """What gRPC takes for `target`: host:port, [ipv6]:port or unix:/path; a lone host gets the default port.

    Raises ValueError naming what was expected: gRPC itself would report a bad address only as UNAVAILABLE,
    later.
    """
    text = target.strip()
    if text.startswith("unix:"):
        if len(text) > len("unix:"):
            return text
        raise ValueError("target: expected unix:/path, got 'unix:'")
    if "/" in text or not text:
        raise ValueError(f"target: expected host:port, [ipv6]:port or unix:/path, got {target!r}")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return f"{text}:{DEFAULT_PORT}"
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not bracketed) or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"target: expected host:port with a port of 1..65535, got {target!r}")
    return text


class Connection:
    """A channel with its owner: closed by `close` if it was opened here, left alone if it came from the
    caller.
    """

    def __init__(self, target: str | grpc.Channel, channel: grpc.Channel | None) -> None:
        given = target if channel is None else channel
        self.owned = isinstance(given, str)
        self.channel = open_channel(given) if isinstance(given, str) else given

    def close(self) -> None:
        """Close the channel if it was opened here."""
        if self.owned:
            self.channel.close()

    def unary(
        self, path: str, request: bytes, deadline_s: float | None, doing: str, attempts: int = 1
    ) -> bytes:
        """One unary call with bytes in and out. Raises a LivefactorError.

        doing: what is tried, for the error's text. attempts: of a read, how often it is tried while the
        server is unavailable; all within the deadline.
        """
        call: Any = self.channel.unary_unary(path)
        deadline = float("inf") if deadline_s is None else monotonic() + deadline_s
        attempt = 1
        while True:
            left = None if deadline_s is None else max(0.0, deadline - monotonic())
            try:
                answer: bytes = guarded(partial(call, request, timeout=left), doing)
                return answer
            except Unavailable:
                delay = backoff_s(attempt, READ_BACKOFF_S, READ_BACKOFF_MAX_S)
                if attempt >= attempts or monotonic() + delay >= deadline:
                    raise
            sleep(delay)
            attempt += 1

    def stream(self, path: str, request: bytes, doing: str) -> Iterator[bytes]:
        """One call with a stream of answers as bytes; leaving the iteration early cancels it. Raises a
        LivefactorError.
        """
        begin: Any = self.channel.unary_stream(path)
        call = begin(request)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc(error, doing) from None
        finally:
            call.cancel()


def backoff_s(attempt: int, first_s: float, most_s: float) -> float:
    """Seconds to wait after try number `attempt` (1, 2, ...): doubled each time, spread so that clients do
    not come at once.
    """
    return min(most_s, first_s * 2.0 ** min(attempt - 1, 16)) * random.uniform(0.5, 1.0)


def guarded(call: Callable[[], Result], doing: str) -> Result:
    """`call()`, with gRPC's errors and those of a closed channel as LivefactorErrors."""
    try:
        return call()
    except grpc.RpcError as error:
        raise from_rpc(error, doing) from None
    except ValueError as error:  # What grpc raises on a closed channel.
        raise LivefactorError(f"{doing}: {error}") from error
