"""Serves the pages: for `livefactor console`, and as a process beside `livefactor serve`.

This module imports nothing that takes long: a command imports it when it starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import NamedTuple


class Address(NamedTuple):
    """Where the pages are served, and what they show.

    target: address of the server. names: further names that stand in the address bar of browsers.
    ca: file with the authorities of the server's certificate. tls_cert, tls_key: files of the
    pages' own certificate. Empty strings stand for none.
    """

    target: str
    host: str
    port: int
    names: tuple[str, ...] = ()
    ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""


def serve_pages(address: Address) -> None:
    """Serve until a signal. Raises ModuleNotFoundError if the extra `console` is missing."""
    import uvicorn

    from livefactor.channel import parse_target
    from livefactor_server.console.app import ConsoleSettings, make_app

    named = () if address.host in ("0.0.0.0", "::") else (address.host,)
    names = (*address.names, *named, "localhost", "127.0.0.1", "[::1]")
    settings = ConsoleSettings(parse_target(address.target), address.ca or None, names)
    uvicorn.run(
        make_app(settings),
        host=address.host,
        port=address.port,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        ssl_certfile=address.tls_cert or None,
        ssl_keyfile=address.tls_key or None,
        timeout_graceful_shutdown=2,
    )


def _end_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    # The server holds the other end of standard input as long as it lives.
    threading.Thread(target=_end_with_input, daemon=True).start()
    serve_pages(Address(*json.loads(sys.argv[1])))
