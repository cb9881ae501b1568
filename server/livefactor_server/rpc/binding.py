"""Why an address cannot be bound. gRPC itself only writes this to standard error."""

from __future__ import annotations

import socket
from pathlib import Path

UNIX_PATH_BYTES_MAX = 107
"""Bytes of the path of a Unix-domain socket, a limit of Linux."""


def host_and_port(host: str, port: int) -> str:
    """The address of a host and a port, with the brackets that an IPv6 address needs."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def fault(address: str) -> str | None:
    """Why `address` ("host:port" or "unix:/path") cannot be bound now. None if it can."""
    if address.startswith("unix:"):
        return _unix_fault(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        for family, kind, protocol, _, place in found:
            with socket.socket(family, kind, protocol) as tried:
                # As in gRPC, connections that were closed a moment ago do not count.
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(place)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _unix_fault(path: str) -> str | None:
    size = len(path.encode())
    if size > UNIX_PATH_BYTES_MAX:
        return f"the path of a socket has at most {UNIX_PATH_BYTES_MAX} bytes, got {size}"
    folder = Path(path).parent
    return None if folder.is_dir() else f"the folder {folder} does not exist"
