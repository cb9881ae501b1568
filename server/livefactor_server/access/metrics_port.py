"""The HTTP port of the Prometheus metrics. It has the TLS and the grants of the gRPC port."""

from __future__ import annotations

import logging
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref import simple_server

from prometheus_client import REGISTRY, make_wsgi_app

from livefactor_server.access.entry import Entry
from livefactor_server.access.grants import Grants

REQUEST_S = 5.0
"""Seconds that a peer may take for its handshake, its request or its reading."""

THREADS_MAX = 16
"""Maximum number of requests at a time. A further connection is closed."""

logger = logging.getLogger(__name__)

Begin = Callable[..., Any]


def serve_metrics(host: str, port: int, entry: Entry) -> int:
    """Serves the metrics in threads of their own.

    Args:
        host: address to listen on.
        port: port to listen on; 0 picks one.
        entry: TLS and grants. With grants a request needs the bearer token of any role.

    Returns the port.

    Raises:
        OSError: the address cannot be bound.
    """
    context = None if entry.certificate is None else entry.certificate.context()
    server = (_Ipv6Server if ":" in host else _Server)((host, port), context)
    app = make_wsgi_app(REGISTRY)
    server.set_app(app if entry.grants is None else _guarded(app, entry.grants))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_port)


def _guarded(app: Any, grants: Grants) -> Any:
    def answer(environ: dict[str, Any], begin: Begin) -> Iterable[bytes]:
        if grants.of_authorization(environ.get("HTTP_AUTHORIZATION", "")) is None:
            begin("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Length", "0")])
            return []
        found: Iterable[bytes] = app(environ, begin)
        return found

    return answer


class _Handler(simple_server.WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


class _Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        self._context = context
        self._places = threading.BoundedSemaphore(THREADS_MAX)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # WSGIServer looks the host's name up, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(REQUEST_S)
            if self._context is not None:
                # In the thread, so that a peer that never ends its handshake stops no other one.
                request = self._context.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            request.close()
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request for the metrics failed", exc_info=True)


class _Ipv6Server(_Server):
    address_family = socket.AF_INET6
