"""An in-process server on a Unix-domain socket, for `livefactor.local()`. It opens no TCP port."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from livefactor_kernels.backend import choose_backend
from livefactor_kernels.spec.names import DEFAULT_PRESET
from livefactor_kernels.spec.presets import preset as spec_of
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer, limit_libraries

STOP_GRACE_S = 5.0


class EmbeddedServer:
    """A running in-process server. `target` is the address for `grpc.insecure_channel`."""

    def __init__(
        self, preset: str | None = None, data: Path | str | None = None, backend: str = "cpu"
    ) -> None:
        """Starts the server.

        Args:
            preset: preset of the model "default"; None means `DEFAULT_PRESET`, "" means no model.
            data: the data folder; None means a temporary one, which `stop` deletes.
            backend: "auto", "cpu" or "cuda", like the option --backend of `livefactor serve`.

        After an error no temporary folder remains.

        Raises:
            BackendUnavailable: the backend cannot run on this machine.
        """
        limit_libraries()
        with contextlib.ExitStack() as undo:
            self._temporary = Path(tempfile.mkdtemp(prefix="livefactor-"))
            undo.callback(shutil.rmtree, self._temporary, ignore_errors=True)
            folder = Path(data) if data is not None else self._temporary / "data"
            folder.mkdir(parents=True, exist_ok=True)
            settings = HostingSettings(
                default_preset=DEFAULT_PRESET if preset is None else preset,
                engine=EngineSettings(backend=choose_backend(backend, spec_of(preset or DEFAULT_PRESET))),
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
        """Drains the server and deletes its temporary files."""
        self._server.drain(STOP_GRACE_S)
        shutil.rmtree(self._temporary, ignore_errors=True)


def start(preset: str | None = None, data: Path | str | None = None) -> EmbeddedServer:
    """Starts an in-process server."""
    return EmbeddedServer(preset, data)
