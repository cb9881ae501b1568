"""The head's end of a worker's process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from threading import Lock

from livefactor_server.workers import worker
from livefactor_server.workers.messages import Order, Report, Setup

_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Process:
    """A running worker."""

    def __init__(self, setup: Setup, arena_file: int) -> None:
        """Starts it. Raises OSError."""
        self._control, theirs = socket.socketpair()
        files = (theirs.fileno(), arena_file)
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", worker.__name__, *map(str, files)],
                stdin=subprocess.DEVNULL,
                pass_fds=files,
                env=os.environ | _ONE_THREAD,
            )
        self._lock = Lock()
        self._tell(setup.to_line())

    def tell(self, order: Order) -> None:
        """Gives an order to a worker that runs. It kills a worker that takes none."""
        self._tell(order.to_line())

    def _tell(self, line: bytes) -> None:
        with self._lock:
            try:
                sent = self._control.send(line, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                return
            if sent < len(line):
                self.kill()

    def reports(self) -> Iterator[Report]:
        """Yields the reports of the worker until it ends."""
        with contextlib.suppress(OSError), self._control.makefile("rb") as lines:
            for line in lines:
                yield Report.from_line(line)

    def kill(self) -> None:
        """Ends the process at once."""
        self._child.kill()

    def wait(self) -> int:
        """Waits until the process has ended. Returns its exit code, or minus a signal."""
        code = self._child.wait()
        self._control.close()
        return code
