"""`livefactor serve --console`: the web console in a process beside the server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from importlib.util import find_spec

from livefactor_server.cli.serve.settings import EntryError, ServerSettings
from livefactor_server.console import serving
from livefactor_server.rpc.binding import host_and_port

PAUSE_S, PAUSE_S_MAX = 0.5, 30.0
"""How long the first and the longest wait before another start takes, seconds."""

END_S = 3.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}

logger = logging.getLogger("livefactor_server")


def check_pages(settings: ServerSettings) -> None:
    """Raises EntryError if the console cannot run beside a server with these settings."""
    if not settings.console:
        return
    for package in ("starlette", "jinja2", "uvicorn"):
        if find_spec(package) is None:
            raise EntryError(f'--console needs {package}: pip install "livefactor[console]"')
    if settings.tls_client_ca is not None:
        raise EntryError(
            "--console has no certificate for --tls-client-ca; run `livefactor console` with LIVEFACTOR_CERTIFICATE"
        )


class Pages:
    """The process of the console. It ends with the server, however that ends."""

    def __init__(self, settings: ServerSettings, port: int) -> None:
        """Starts it. port: that of gRPC."""
        host = settings.host.strip("[]")
        target = host_and_port(_EVERY_ADDRESS.get(settings.host, settings.host), port)
        files = ("" if path is None else str(path) for path in (settings.tls_cert, settings.tls_key))
        ca = os.environ.get("LIVEFACTOR_CA", "")
        address = serving.Address(target, host, settings.console_port, (), ca, *files)
        self._command = [sys.executable, "-m", serving.__name__, json.dumps(address)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="console", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ends the process."""
        self._stop.set()
        self._thread.join(2 * END_S)

    def _keep(self) -> None:
        pause = PAUSE_S
        while not self._stop.is_set():
            # The process ends when its standard input does, so it never outlives the server.
            child = subprocess.Popen(self._command, stdin=subprocess.PIPE)
            while child.poll() is None and not self._stop.wait(PAUSE_S):
                pass
            if child.poll() is None:
                _end(child)
                return
            logger.warning("the console ended with code %d; it starts again in %g s", child.returncode, pause)
            self._stop.wait(pause)
            pause = min(2 * pause, PAUSE_S_MAX)


def _end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(END_S)
        return
    child.kill()
    child.wait()
