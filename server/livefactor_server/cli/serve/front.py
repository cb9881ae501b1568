"""The gRPC server of `livefactor serve`, with the score workers before it if there are any."""

from __future__ import annotations

from livefactor_server.access.entry import Entry
from livefactor_server.cli.serve.settings import ServerSettings
from livefactor_server.hosting.host import Hosting
from livefactor_server.rpc.binding import host_and_port
from livefactor_server.rpc.server import RpcServer
from livefactor_server.workers.crew import Crew
from livefactor_server.workers.messages import EntryFiles, Setup


class Front:
    """Where calls come in.

    Attributes:
        port: the port of gRPC.
    """

    def __init__(self, settings: ServerSettings, models: Hosting, entry: Entry) -> None:
        """Binds the address of the settings.

        Raises:
            PortInUse: the address cannot be bound.
            CertificateError: the certificate cannot be used.
            OSError: the system refuses the memory that workers share.
        """
        self._models, self._crew = models, _crew(settings)
        service = settings.service()
        if self._crew is None:
            address = host_and_port(settings.host, settings.port)
            self._server = RpcServer(models, service, address, entry)
            self.port = self._server.port
            return
        # TLS ends in the workers.
        self._server = RpcServer(models, service, self._crew.head, Entry(None, entry.grants), True)
        self.port = self._crew.port

    def listen(self) -> None:
        """See `RpcServer.listen`. It does not wait for workers."""
        self._server.listen()
        if self._crew is not None:
            self._crew.start()

    def wait(self) -> None:
        """Waits for the workers. Raises PortInUse if they do not start."""
        if self._crew is not None:
            self._crew.wait()

    def start(self) -> None:
        """See `RpcServer.start`."""
        self._server.start()
        if self._crew is not None:
            self._crew.watch(self._models)

    def drain(self, grace_s: float) -> None:
        """See `RpcServer.drain`."""
        if self._crew is None:
            self._server.drain(grace_s)
        else:
            self._server.drain(grace_s, self._crew.stop)
            self._crew.end()

    def leave(self) -> None:
        """Ends the workers of a server that has not served."""
        if self._crew is not None:
            self._crew.end()


def _crew(settings: ServerSettings) -> Crew | None:
    if not settings.score_workers:
        return None
    paths = settings.tls_cert, settings.tls_key, settings.tls_client_ca, settings.access
    files = EntryFiles(*("" if path is None else str(path) for path in paths))

    def setup(address: str, head: str) -> Setup:
        return Setup(address, head, settings.service(), files, settings.log_level, settings.log_format)

    return Crew(settings.score_workers, settings.host, settings.port, setup)
