"""Servers as processes of their own, which tests start, kill, stop and start again on the same
folder and port.

`ColdStart` runs `python -m livefactor serve` as people do; `WarmStart` forks the same command from
a process that has imported it (warm_start.py), for tests that start dozens.
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
    """This process's, with its import path, without settings of the server; SIGABRT writes where
    every thread is.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIVEFACTOR_")}
    path = os.pathsep.join(path for path in sys.path if path)
    return {**kept, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}


def wait_until(done: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Polls `done` until it is true; AssertionError naming `what` if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(POLL_S)


class ColdStart:
    """`python -m livefactor`, with nothing prepared."""

    def start(self, arguments: Sequence[str], log: Path, plants: Sequence[str] = ()) -> Child:
        assert not plants, "bugs are planted in warm starts alone"
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "livefactor", *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(),
            )  # fmt: skip


class WarmStart:
    """Forks of one process that has imported the server."""

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
        """One order and its answer (warm_start.py)."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
            return self._read()

    def start(self, arguments: Sequence[str], log: Path, plants: Sequence[str] = ()) -> Child:
        pid = self.order(start=list(arguments), log=str(log), plants=list(plants))["pid"]
        return _Fork(self, pid)

    def close(self) -> None:
        """Ends all children."""
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
        """Where clients connect to."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What the server has written, over all its starts."""
        return self.log_path.read_text(errors="replace")

    def model_folder(self, model: str) -> Path:
        """A model's folder."""
        return self.data / "models" / model

    def channel(self, **options: int) -> grpc.Channel:
        """A new channel with connections of its own, which looks for a restarted server at once."""
        wanted = {
            "grpc.use_local_subchannel_pool": 1,
            "grpc.initial_reconnect_backoff_ms": 20,
            "grpc.max_reconnect_backoff_ms": 100,
            **options,
        }
        return grpc.insecure_channel(self.target, list(wanted.items()))

    def launch(self) -> None:
        """Start, without waiting for anything."""
        assert self._child is None, "already started"
        self._ports.unlink(missing_ok=True)
        arguments = [
            "serve", "--data", str(self.data), "--port", str(self.port), "--metrics-port", str(self.metrics_port),
            "--port-file", str(self._ports), *self.flags,
        ]  # fmt: skip
        self._child = self._starter.start(arguments, self.log_path, self.plants)

    def start(self) -> float:
        """Start and wait until it serves; seconds that took.

        AssertionError with the server's log if it does not.
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
        """Of the running process."""
        assert self._child is not None
        return self._child.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._child is not None
        return self._child.poll()

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit code, once it has ended."""
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
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a crash would; harmless if it is not running."""
        if self._child is None:
            return
        if self.exit_code() is None:
            self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM, so that it drains; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()
