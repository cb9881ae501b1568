"""The gRPC server: services, health, reflection and shutdown.

`livefactor serve`, the in-process server and the tests use it.
"""

from __future__ import annotations

import logging
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from google.protobuf.internal import api_implementation

from livefactor.v1 import models_pb2, scoring_pb2, snapshots_pb2, updates_pb2
from livefactor.wire.limits import MESSAGE_BYTES_MAX
from livefactor_server.access.entry import OPEN, Entry
from livefactor_server.access.grants import ANY
from livefactor_server.hosting.host import Hosting
from livefactor_server.rpc import binding
from livefactor_server.rpc.calls import Calls, ServiceSettings
from livefactor_server.rpc.direct.server import DirectServer
from livefactor_server.rpc.guards import Guard, Need
from livefactor_server.rpc.loop import shared_loop
from livefactor_server.rpc.service import direct_methods, generic_handlers

THREAD_SWITCH_S = 0.0005
"""Seconds between thread switches.

With Python's default of 5 ms one busy thread would add milliseconds to the latency of others.
"""

if TYPE_CHECKING:
    from livefactor_server.rpc.health import Health

SERVICES = tuple(
    service.full_name
    for file in (updates_pb2, scoring_pb2, snapshots_pb2, models_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
MODEL_HEALTH = "models/"
"""The health of a model is that of a service with this prefix and the model's name."""

UPDATE_SERVICE = updates_pb2.DESCRIPTOR.services_by_name["UpdateService"].full_name

CONNECTIONS_MAX = 1024
"""Maximum number of connections of a server."""

CALLS_A_CONNECTION_MAX = 1024
"""Maximum number of open calls of a connection. The transport of a client waits at this number."""

FILES = 4096
"""Number of open files that a server asks the system for."""

_OPTIONS = (
    # A larger message than the limit reaches the handler, which refuses it with the limit's name.
    # Only far larger ones are refused by the transport.
    ("grpc.max_receive_message_length", 2 * MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
    # A connection that does not speak HTTP/2, one that is unused, and one whose peer is gone end.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A peer that pings more often is disconnected.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
RELAYED_CALLS_MAX = 1 << 20
"""The same for the connection of a score worker, which counts the calls of its clients."""

HEALTH_POLL_S = 0.25

logger = logging.getLogger(__name__)


class PortInUse(Exception):
    """The server cannot bind its address."""


class RpcServer:
    """A gRPC server for a `Hosting`."""

    def __init__(
        self,
        hosting: Hosting,
        settings: ServiceSettings,
        address: str,
        entry: Entry = OPEN,
        is_behind_workers: bool = False,
    ) -> None:
        """Binds `address`: "host:port" or "unix:/path". Port 0 picks a free port.

        `is_behind_workers` says that only score workers connect to the address.

        Raises:
            PortInUse: the address cannot be bound.
            CertificateError: the certificate cannot be used.
            RuntimeError: protobuf runs without its upb implementation.
        """
        check_protobuf()
        sys.setswitchinterval(THREAD_SWITCH_S)
        self._hosting = hosting
        self._loop = shared_loop()
        self._health = _health()
        self._stopping = threading.Event()
        self._listening = False
        self._is_behind_workers = is_behind_workers
        self._loop.run(self._bind(settings, address, entry))

    async def _bind(self, settings: ServiceSettings, address: str, entry: Entry) -> None:
        self._calls = Calls(self._hosting, settings, self._loop)
        waits, behind = (settings.message_wait_s, settings.write_wait_s), self._is_behind_workers
        # A worker limits the open calls of its clients.
        open_calls_max = RELAYED_CALLS_MAX if behind else settings.open_calls_max
        guard = Guard(*waits, open_calls_max, entry.grants, behind)
        self._server = grpc.aio.server(
            options=options(RELAYED_CALLS_MAX if behind else CALLS_A_CONNECTION_MAX)
        )
        self._server.add_generic_rpc_handlers(tuple(generic_handlers(self._calls, guard)))
        self._server.add_generic_rpc_handlers(tuple(reflection_handlers(guard)))
        if self._health is not None:
            self._server.add_generic_rpc_handlers((self._health.handler(guard),))
        try:
            if (fault := binding.fault(address)) is not None:
                hint = "" if address.startswith("unix:") else "; --port names another port"
                raise PortInUse(f"{address} cannot be bound ({fault}){hint}")
            if entry.certificate is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, entry.certificate.credentials())
        except RuntimeError as error:
            raise PortInUse(f"{address} cannot be bound ({error})") from None
        methods = direct_methods(self._calls)
        self._direct = DirectServer(self._server, self._loop, guard, settings.message_wait_s, methods)

    def listen(self) -> None:
        """Accepts calls with the health NOT_SERVING. They get UNAVAILABLE until the models are
        open.
        """
        self._set_health(False, False)
        self._loop.run(self._server.start())
        self._direct.start()
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
        parts = {
            service: serving and (writable or service not in ("", UPDATE_SERVICE))
            for service in ("", *SERVICES)
        }
        self._loop.post(self._health.set, parts | dict(models), tuple(gone))

    def drain(self, grace_s: float, stop_workers: Callable[[float], None] = lambda _: None) -> None:
        """Shuts down in order.

        It reports NOT_SERVING, refuses new batches, finishes accepted ones, ends all calls and
        takes the last snapshots. Running calls end at the latest after `grace_s` seconds.
        `stop_workers` has the score workers do the same, without waiting for them.
        """
        deadline = time.monotonic() + grace_s
        self._stopping.set()
        self._set_health(False, False)
        self._hosting.finish_updates()
        stop_workers(deadline - time.monotonic())
        ended = self._loop.start(self._stopped(deadline - time.monotonic()))
        self._hosting.drain()
        ended.result()
        self._direct.close()

    def stop(self) -> None:
        """Ends all calls at once. The models stay open."""
        self._stopping.set()
        self._loop.run(self._stopped(0.0))
        self._direct.close()

    async def _stopped(self, grace_s: float) -> None:
        self._calls.streams.end()
        if self._health is not None:
            self._health.end()
        await self._server.stop(max(0.0, grace_s))
        self._calls.served.close()


def _health() -> Health | None:
    # GPU test machines lack grpcio-health-checking. The other services run without it.
    try:
        from livefactor_server.rpc.health import Health
    except ModuleNotFoundError:
        logger.warning("grpcio-health-checking is not installed, so there is no health service")
        return None
    return Health()


def check_protobuf() -> None:
    """Checks that protobuf runs with its upb implementation.

    Raises:
        RuntimeError: it does not.
    """
    if api_implementation.Type() != "upb":
        raise RuntimeError(
            "protobuf: its upb implementation is required, because the pure-Python one is too slow "
            "and not safe enough"
        )


def options(calls_a_connection_max: int, shares_port: bool = False) -> tuple[tuple[str, int], ...]:
    """The options of a gRPC server.

    With `shares_port` several processes may listen on its port. Without it a second server would
    share the port silently.
    """
    own = ("grpc.so_reuseport", int(shares_port)), ("grpc.max_concurrent_streams", calls_a_connection_max)
    return (*_OPTIONS, *own)


def reflection_handlers(guard: Guard) -> Iterator[grpc.GenericRpcHandler]:
    """The handler of the reflection service, if its library is installed."""
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ModuleNotFoundError:
        logger.warning("grpcio-reflection is not installed, so there is no reflection service")
        return
    servicer = reflection.aio.ReflectionServicer(
        (*SERVICES, reflection.SERVICE_NAME, "grpc.health.v1.Health")
    )
    need = Need("ServerReflection", ANY)
    handler = guard.library(reflection_pb2.ServerReflectionRequest, servicer.ServerReflectionInfo, need)
    yield grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": handler})


def raise_file_limit() -> None:
    """Asks the system for enough open files for all connections and logs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
