"""Servers in separate processes.

Tests start, kill, stop and restart them on the same folder and port. `ColdStart` runs
`python -m livefactor serve` as users do. `WarmStart` forks the same command from a process that has
already imported it (warm_start.py). Tests that start dozens of servers use `WarmStart`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc

# The first start on a machine compiles the kernels.
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.005


class Child(Protocol):
    """A running process."""

    pid: int

    def poll(self) -> int | None: ...


class Starter(Protocol):
    """Starts the `livefactor` command."""

    def start(self, arguments: Sequence[str], log: Path, plants: Sequence[str] = ()) -> Child: ...


def environment() -> dict[str, str]:
    """Return the environment for a server.

    It is this process's environment with its import path and without settings of the server. In
    it, SIGABRT makes Python print the stack of every thread.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIVEFACTOR_")}
    path = os.pathsep.join(path for path in sys.path if path)
    return {**kept, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}


def wait_until(done: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Poll `done` until it returns true.

    Raises:
        AssertionError: that takes longer than `timeout_s` seconds. The message names `what`.
    """
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(POLL_S)


class ColdStart:
    """Starts `python -m livefactor` in a new interpreter."""

    def start(self, arguments: Sequence[str], log: Path, plants: Sequence[str] = ()) -> Child:
        assert not plants, "bugs are planted in warm starts alone"
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "livefactor", *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(),
            )  # fmt: skip


class WarmStart:
    """Starts servers as forks of one process that has imported the server."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("warm_start.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._lock = threading.Lock()
        assert self._read() == {"ready": True}

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def order(self, **words: Any) -> Any:
        """Send one order and return its answer. warm_start.py describes both."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
            return self._read()

    def start(self, arguments: Sequence[str], log: Path, plants: Sequence[str] = ()) -> Child:
        pid = self.order(start=list(arguments), log=str(log), plants=list(plants))["pid"]
        return _Fork(self, pid)

    def close(self) -> None:
        """End all children."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(STOP_TIMEOUT_S)


class _Fork:
    def __init__(self, starter: WarmStart, pid: int) -> None:
        self.pid = pid
        self._starter = starter
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._starter.order(poll=self.pid)["code"]
        return self._code


class Server:
    """One server on the folder `data`. It takes free ports at its first start and keeps them."""

    def __init__(self, starter: Starter, data: Path, *flags: str, plants: Sequence[str] = ()) -> None:
        self.data, self.flags, self.plants = data, flags, plants
        self.log_path = data.with_name(data.name + ".log")
        self.port = self.metrics_port = 0
        self._starter = starter
        self._ports = data.with_name(data.name + ".ports")
        self._child: Child | None = None

    @property
    def target(self) -> str:
        """Return the address for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Return the output of the server over all its starts."""
        return self.log_path.read_text(errors="replace")

    def model_folder(self, model: str) -> Path:
        """Return the folder of a model."""
        return self.data / "models" / model

    def channel(self, **options: int) -> grpc.Channel:
        """Open a channel with its own connections. It reconnects to a restarted server at once."""
        wanted = {
            "grpc.use_local_subchannel_pool": 1,
            "grpc.initial_reconnect_backoff_ms": 20,
            "grpc.max_reconnect_backoff_ms": 100,
            **options,
        }
        return grpc.insecure_channel(self.target, list(wanted.items()))

    def launch(self) -> None:
        """Start the server and return without waiting."""
        assert self._child is None, "already started"
        self._ports.unlink(missing_ok=True)
        arguments = [
            "serve", "--data", str(self.data), "--port", str(self.port), "--metrics-port", str(self.metrics_port),
            "--port-file", str(self._ports), *self.flags,
        ]  # fmt: skip
        self._child = self._starter.start(arguments, self.log_path, self.plants)

    def start(self) -> float:
        """Start the server, wait until it serves, and return the seconds that this took.

        Raises:
            AssertionError: the server does not start to serve. The message holds its log.
        """
        began = time.monotonic()
        if self._child is None:
            self.launch()
        while not self._ports.exists():
            if self.exit_code() is not None or time.monotonic() - began > START_TIMEOUT_S:
                code = self.exit_code()
                self.kill()
                raise AssertionError(f"the server did not start (exit code {code}):\n{self.log[-4000:]}")
            time.sleep(POLL_S)
        self.port, self.metrics_port = (int(line) for line in self._ports.read_text().split())
        return time.monotonic() - began

    @property
    def pid(self) -> int:
        """Return the id of the running process."""
        assert self._child is not None
        return self._child.pid

    def exit_code(self) -> int | None:
        """Return the exit code, or None while the server runs."""
        assert self._child is not None
        return self._child.poll()

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until the server has ended and return its exit code."""
        try:
            wait_until(lambda: self.exit_code() is not None, "the server's end", timeout_s)
        except AssertionError as error:
            self.signal(signal.SIGABRT)
            wait_until(lambda: self.exit_code() is not None, "its end by SIGABRT", timeout_s)
            raise AssertionError(f"{error}; where it was:\n{self.log[-8000:]}") from None
        code = self.exit_code()
        assert code is not None
        self._child = None
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End the server with SIGKILL, as in a crash. Do nothing if it is not running."""
        if self._child is None:
            return
        if self.exit_code() is None:
            self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """Send SIGTERM, so that the server drains, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()
