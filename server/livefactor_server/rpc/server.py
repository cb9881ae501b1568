"""The gRPC server: services, health, reflection and shutdown.

`livefactor serve`, the in-process server and the tests use it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.internal import api_implementation

from livefactor.v1 import models_pb2, scoring_pb2, snapshots_pb2, updates_pb2
from livefactor.wire.limits import MESSAGE_BYTES_MAX
from livefactor_server.hosting.host import Hosting
from livefactor_server.rpc import binding
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.service import Services

THREAD_SWITCH_S = 0.0005
"""Seconds between thread switches.

With Python's default of 5 ms one busy thread would add milliseconds to the latency of others.
"""

SERVICES = tuple(
    service.full_name
    for file in (updates_pb2, scoring_pb2, snapshots_pb2, models_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
MODEL_HEALTH = "models/"
"""The health of a model is that of a service with this prefix and the model's name."""

UPDATE_SERVICE = updates_pb2.DESCRIPTOR.services_by_name["UpdateService"].full_name

_OPTIONS = (
    # With SO_REUSEPORT a second server would silently share the port.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
HEALTH_POLL_S = 0.25

logger = logging.getLogger(__name__)


class PortInUse(Exception):
    """The server cannot bind its address."""


class RpcServer:
    """A gRPC server for a `Hosting`."""

    def __init__(self, hosting: Hosting, settings: ServiceSettings, address: str) -> None:
        """Binds `address`: "host:port" or "unix:/path". Port 0 picks a free port.

        Raises:
            PortInUse: the address cannot be bound.
            RuntimeError: protobuf runs without its upb implementation.
        """
        if api_implementation.Type() != "upb":
            raise RuntimeError(
                "protobuf: its upb implementation is required, because the pure-Python one is too slow "
                "and not safe enough"
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
            if (fault := binding.fault(address)) is not None:
                hint = "" if address.startswith("unix:") else "; --port names another port"
                raise PortInUse(f"{address} cannot be bound ({fault}){hint}")
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise PortInUse(f"{address} cannot be bound ({error})") from None
        self._stopping = threading.Event()
        self._listening = False

    def listen(self) -> None:
        """Accepts calls with the health NOT_SERVING. They get UNAVAILABLE until the models are
        open.
        """
        self._set_health(False, False)
        self._server.start()
        self._listening = True

    def start(self) -> None:
        """Serves with the health SERVING. The models are open already."""
        if not self._listening:
            self.listen()
        self._set_health(True, True)
        threading.Thread(target=self._watch_health, name="health", daemon=True).start()

    def _watch_health(self) -> None:
        models: dict[str, bool] = {}
        while True:
            now = {
                MODEL_HEALTH + hosted.name: hosted.engine.failure is None for hosted in self._hosting.all()
            }
            faults = {MODEL_HEALTH + fault.name: False for fault in self._hosting.faults()}
            # Where no model can be opened, nobody should send updates.
            writable = all(now.values()) and bool(now or not faults)
            now |= faults
            if now != models:
                self._set_health(True, writable, now, models.keys() - now.keys())
                models = now
            if self._stopping.wait(HEALTH_POLL_S):
                # Nobody polls the models of a server that drains.
                self._set_health(False, False, dict.fromkeys(models, False))
                return

    def _set_health(
        self, serving: bool, writable: bool, models: Mapping[str, bool] = {}, gone: Iterable[str] = ()
    ) -> None:
        """Sets the health of the server, its services and `models`. It ends that of `gone`."""
        if self._health is None:
            return
        from grpc_health.v1 import health_pb2

        state = health_pb2.HealthCheckResponse
        parts = {
            service: serving and (writable or service not in ("", UPDATE_SERVICE))
            for service in ("", *SERVICES)
        }
        for part, ok in (parts | dict(models)).items():
            self._health.set(part, state.SERVING if ok else state.NOT_SERVING)
        for part in gone:
            self._health.set(part, state.SERVICE_UNKNOWN)

    def drain(self, grace_s: float) -> None:
        """Shuts down in order.

        It reports NOT_SERVING, refuses new batches, finishes accepted ones, ends all calls and
        takes the last snapshots. Running calls end at the latest after `grace_s` seconds.
        """
        deadline = time.monotonic() + grace_s
        self._stopping.set()
        self._set_health(False, False)
        self._hosting.finish_updates()
        self._services.end_streams()
        ended = self._server.stop(max(0.0, deadline - time.monotonic()))
        self._hosting.drain()
        ended.wait()


def _add_health(server: grpc.Server) -> Any:
    # GPU test machines lack grpcio-health-checking. The other services run without it.
    try:
        from grpc_health.v1 import health, health_pb2_grpc
    except ModuleNotFoundError:
        logger.warning("grpcio-health-checking is not installed, so there is no health service")
        return None
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def _add_reflection(server: grpc.Server) -> None:
    try:
        from grpc_reflection.v1alpha import reflection
    except ModuleNotFoundError:
        logger.warning("grpcio-reflection is not installed, so there is no reflection service")
        return
    reflection.enable_server_reflection((*SERVICES, reflection.SERVICE_NAME, "grpc.health.v1.Health"), server)


def limit_libraries() -> None:
    """Limits BLAS to one thread.

    The threads of the server share the cores, and results must not depend on the number of threads.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError:
        logger.warning("threadpoolctl is not installed: set OPENBLAS_NUM_THREADS=1")
        return
    threadpool_limits(limits=1)


def write_port_file(path: Path, ports: Sequence[int]) -> None:
    """Writes the ports, one per line, for a script that starts the server on port 0.

    The file appears with its whole contents.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(f"{port}\n" for port in ports))
    temporary.replace(path)
