"""Targets and channels: addresses, the options of a channel, and the default times.

Every client class takes a target ("host:port", "[::1]:port", "unix:/path"), several of them, or a
channel that the caller opened (`channel=`). The caller closes such a channel, and should make it
with `open_channel`, because the options matter.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import grpc

from livefactor.errors import InvalidArgument
from livefactor.wire.limits import MESSAGE_BYTES_MAX

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

OPTIONS: tuple[tuple[str, Any], ...] = (
    # With the transport's own retries, a stream that fails while it connects is sometimes lost: its
    # status arrives, but whoever waits for the next message waits for ever (grpcio 1.85.3: 7 of 119
    # streams on a busy machine; without retries none of 252). So calling/retries.py tries reads
    # again, and the Producer retries writes.
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


def open_channel(
    target: str = DEFAULT_TARGET,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.Channel:
    """Open a channel to `target`; it connects at the first call.

    target: one address. credentials: None for plain text. options: gRPC's own options, which
    override the defaults here.
    A proxy that the environment names (grpc_proxy, https_proxy, http_proxy) is used for other
    machines only, never for loopback addresses and Unix-domain sockets.
    Raises InvalidArgument, which is a ValueError, for a malformed target.
    """
    address, merged = parse_target(target), channel_options(target, options)
    if credentials is None:
        return grpc.insecure_channel(address, merged)
    return grpc.secure_channel(address, credentials, merged)


def channel_options(target: str, options: Sequence[tuple[str, Any]] = ()) -> list[tuple[str, Any]]:
    """The options of a channel to `target`. options: override the defaults."""
    direct = {} if may_be_remote(target) else {"grpc.enable_http_proxy": 0}
    return list({**dict(OPTIONS), **direct, **dict(options)}.items())


def parse_targets(targets: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses of one or several targets.

    targets: a list, or a text with commas between the targets. Raises InvalidArgument for a
    malformed target and for one that stands there twice.
    """
    texts = targets.split(",") if isinstance(targets, str) else targets
    addresses = tuple(map(parse_target, texts))
    if not addresses or len(set(addresses)) < len(addresses):
        raise InvalidArgument(f"target: expected at least one, and each once, got {targets!r}")
    return addresses


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
