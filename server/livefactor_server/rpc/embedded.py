"""A server inside this process, on a Unix-domain socket. `livefactor.local()` starts it. It opens
no port.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from livefactor_kernels.backend import choose_backend
from livefactor_kernels.spec.names import DEFAULT_PRESET
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer, limit_libraries

STOP_GRACE_S = 5.0


class EmbeddedServer:
    """A running server in this process. target: its address, for `grpc.insecure_channel`."""

    def __init__(
        self, preset: str | None = None, data: Path | str | None = None, backend: str = "cpu"
    ) -> None:
        """Start the server.

        preset: the preset of the model "default"; None for `DEFAULT_PRESET`, "" for no model.
        data: the data folder; None for a temporary one that `stop` removes. backend: a name that `livefactor serve
        --backend` takes. Raises BackendUnavailable if the backend cannot run here. After an error
        no temporary folder is left.
        """
        limit_libraries()
        with contextlib.ExitStack() as undo:
            self._temporary = Path(tempfile.mkdtemp(prefix="livefactor-"))
            undo.callback(shutil.rmtree, self._temporary, ignore_errors=True)
            folder = Path(data) if data is not None else self._temporary / "data"
            folder.mkdir(parents=True, exist_ok=True)
            settings = HostingSettings(
                default_preset=DEFAULT_PRESET if preset is None else preset,
                engine=EngineSettings(backend=choose_backend(backend)),
            )
            self._hosting = Hosting(folder, settings)
            undo.callback(self._hosting.drain)
            self._hosting.open_all()
            self.target = f"unix:{self._temporary / 'rpc.sock'}"
            self._server = RpcServer(
                self._hosting, ServiceSettings(default_preset=settings.default_preset), self.target
            )
            self._server.start()
            undo.pop_all()

    def stop(self) -> None:
        """Drain the server and remove its temporary folder."""
        self._server.drain(STOP_GRACE_S)
        shutil.rmtree(self._temporary, ignore_errors=True)


def start(preset: str | None = None, data: Path | str | None = None) -> EmbeddedServer:
    """Start an in-process server."""
    return EmbeddedServer(preset, data)
