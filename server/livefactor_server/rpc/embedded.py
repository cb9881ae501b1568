"""A server inside this process, on a Unix-domain socket: the far side of `livefactor.local()`. No port is opened."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from livefactor_kernels.backend import choose_backend
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer, limit_libraries

STOP_GRACE_S = 5.0


class EmbeddedServer:
    """A running in-process server. `target` is what `grpc.insecure_channel` takes."""

    def __init__(
        self, preset: str | None = None, data: Path | str | None = None, backend: str = "cpu"
    ) -> None:
        """preset: of the model "default" (None: the server's default). data: its folder (None: a temporary one, gone at `stop`).
        backend: as `livefactor serve --backend`; BackendUnavailable if it cannot run here."""
        limit_libraries()
        self._temporary = Path(tempfile.mkdtemp(prefix="livefactor-"))
        folder = Path(data) if data is not None else self._temporary / "data"
        folder.mkdir(parents=True, exist_ok=True)
        settings = HostingSettings(
            default_preset=preset or HostingSettings().default_preset,
            engine=EngineSettings(backend=choose_backend(backend)),
        )
        self._hosting = Hosting(folder, settings)
        self._hosting.open_all()
        self.target = f"unix:{self._temporary / 'rpc.sock'}"
        self._server = RpcServer(
            self._hosting, ServiceSettings(default_preset=settings.default_preset), self.target
        )
        self._server.start()

    def stop(self) -> None:
        """Drain, and remove what was temporary."""
        self._server.drain(STOP_GRACE_S)
        shutil.rmtree(self._temporary, ignore_errors=True)


def start(preset: str | None = None, data: Path | str | None = None) -> EmbeddedServer:
    """Start an in-process server."""
    return EmbeddedServer(preset, data)
