"""The gRPC server over the models: services, health, reflection, and the drain.

`livefactor serve` and the in-process server use it.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.internal import api_implementation

from livefactor.v1 import models_pb2, scoring_pb2, snapshots_pb2, updates_pb2
from livefactor_server.hosting.host import Hosting
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.service import Services

MESSAGE_BYTES_MAX = 4 << 20
THREAD_SWITCH_S = 0.0005
"""Python's own 5 ms would let one busy thread add milliseconds to everybody's latency."""

SERVICES = tuple(
    service.full_name
    for file in (updates_pb2, scoring_pb2, snapshots_pb2, models_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
UPDATE_SERVICE = updates_pb2.DESCRIPTOR.services_by_name["UpdateService"].full_name

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server silently shares the port
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
HEALTH_POLL_S = 0.25

logger = logging.getLogger(__name__)


class PortInUse(Exception):
    """The address could not be bound."""


class RpcServer:
    """A gRPC server over a `Hosting`."""

    def __init__(self, hosting: Hosting, settings: ServiceSettings, address: str) -> None:
        """Bind `address` ("host:port", port 0 picks one, or "unix:/path"). Raises PortInUse."""
        if api_implementation.Type() != "upb":
            raise RuntimeError(
                "protobuf's upb implementation is needed: the pure-Python one is neither fast nor safe enough"
            )
        sys.setswitchinterval(THREAD_SWITCH_S)
        self._hosting = hosting
        pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="rpc")
        self._server = grpc.server(pool, options=_OPTIONS, maximum_concurrent_rpcs=settings.threads)
        self._services = Services(hosting, settings)
        self._server.add_generic_rpc_handlers(tuple(self._services.generic_handlers()))
        self._health = _add_health(self._server)
        _add_reflection(self._server)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise PortInUse(
                f"{address} cannot be bound; another server may be running there (--port names another port)"
            ) from None
        self._stopping = threading.Event()
        self._listening = False

    def listen(self) -> None:
        """Accept calls with the health NOT_SERVING. Until the models are open, they get UNAVAILABLE."""
        self._set_health(False, False)
        self._server.start()
        self._listening = True

    def start(self) -> None:
        """Serve: accept calls, and say SERVING. The models must be open."""
        if not self._listening:
            self.listen()
        self._set_health(True, True)
        threading.Thread(target=self._watch_health, name="health", daemon=True).start()

    def _watch_health(self) -> None:
        writable = True
        while not self._stopping.wait(HEALTH_POLL_S):
            now = all(hosted.engine.failure is None for hosted in self._hosting.all())
            if now != writable:
                writable = now
                self._set_health(True, writable)

    def _set_health(self, serving: bool, writable: bool) -> None:
        if self._health is None:
            return
        from grpc_health.v1 import health_pb2

        state = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            ok = serving and (writable or service not in ("", UPDATE_SERVICE))
            self._health.set(service, state.SERVING if ok else state.NOT_SERVING)

    def drain(self, grace_s: float) -> None:
        """Say NOT_SERVING, refuse new batches, finish accepted ones, take the last snapshots, end."""
        self._stopping.set()
        self._set_health(False, False)
        self._hosting.drain()
        self._services.end_streams()
        self._server.stop(grace_s).wait()


def _add_health(server: grpc.Server) -> Any:
    # The GPU machine has no grpcio-health-checking; the RPC core runs without it.
    try:
        from grpc_health.v1 import health, health_pb2_grpc
    except ModuleNotFoundError:
        logger.warning("grpcio-health-checking is not installed: no health service")
        return None
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def _add_reflection(server: grpc.Server) -> None:
    try:
        from grpc_reflection.v1alpha import reflection
    except ModuleNotFoundError:
        logger.warning("grpcio-reflection is not installed: no reflection")
        return
    reflection.enable_server_reflection((*SERVICES, reflection.SERVICE_NAME, "grpc.health.v1.Health"), server)


def limit_libraries() -> None:
    """One thread for BLAS: the server's own threads share the cores, and results must not depend on their number."""
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        logger.warning("threadpoolctl is not installed: set OPENBLAS_NUM_THREADS=1")
        return
    threadpool_limits(limits=1)


def write_port_file(path: Path, ports: Sequence[int]) -> None:
    """Write the ports, one a line, so that a script that started the server on port 0 finds it. Appears whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(f"{port}\n" for port in ports))
    temporary.replace(path)
