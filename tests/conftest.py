"""What tests of every room share: a real server in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

START_TIMEOUT_S = 120.0  # the first start on a machine compiles the kernels
STOP_TIMEOUT_S = 60.0

# Compiling makes first examples slow, so hypothesis' own deadline says nothing.
# A failure prints how to repeat it.
hypothesis.settings.register_profile("livefactor", deadline=None, print_blob=True)
hypothesis.settings.load_profile("livefactor")


class ServerProcess:
    """`livefactor serve` on a data folder and free ports. It can be killed or stopped, and started again."""

    def __init__(self, data: Path, *flags: str) -> None:
        self.data = data
        self.flags = flags
        self.log_path = data.with_name(data.name + ".log")
        self.port = 0
        self.metrics_port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        """Where clients connect to; another one after a restart."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the server has written, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> ServerProcess:
        """Start and wait until it serves. AssertionError with the server's log if it does not come up."""
        assert self.process is None, "already started"
        port_file = self.data.with_name(self.data.name + ".port")
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "livefactor", "serve", "--data", str(self.data), "--port", "0"]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("LIVEFACTOR_")
        }
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port-file", str(port_file), *self.flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self._await(port_file)
        self.port, self.metrics_port = (int(line) for line in port_file.read_text().split())
        return self

    def _await(self, port_file: Path) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (port_file.exists() and port_file.read_text().count("\n") >= 2):
            code = self.process.poll()
            if code is None and time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            self.kill()
            raise AssertionError(f"the server did not start (exit code {code}):\n{self.log[-4000:]}")

    def kill(self) -> None:
        """SIGKILL, as a crash would; harmless if it is not running."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, so that it drains. Returns the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(STOP_TIMEOUT_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """`start_server(*flags, name="data")` starts a server on a folder of the test's; all end with it."""
    servers: list[ServerProcess] = []

    def start(*flags: str, name: str = "data") -> ServerProcess:
        servers.append(ServerProcess(tmp_path / name, *flags))
        return servers[-1].start()

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with default settings, which began empty; the tests of a module share it."""
    running = ServerProcess(tmp_path_factory.mktemp("server") / "data").start()
    yield running
    running.kill()
