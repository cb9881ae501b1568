"""The server's end of a contest's process: starts it, tells it how far to go, reads its reports."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from livefactor_server.challenging import worker
from livefactor_server.challenging.messages import Go, Report, Task

LINE_BYTES_MAX = 1 << 20
"""Maximum bytes of a report. A process that sends more is ended."""

END_S = 5.0
"""Seconds after which a process that was told to end is killed."""

_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Process:
    """One process. One thread uses it, and nothing here blocks but `end`."""

    def __init__(self, task: Task) -> None:
        """Starts it. Raises OSError."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", worker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | _ONE_THREAD,
        )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._orders, self._reports = self._child.stdin, self._child.stdout
        self._buffer = b""
        self._tell(task.to_line())
        for pipe in (self._orders, self._reports):
            os.set_blocking(pipe.fileno(), False)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._child.poll() is not None

    def go(self, order: Go) -> None:
        """Tells the process how far it may go.

        A process that has ended, or reads nothing for long, is not told. Nothing waits for it.
        """
        self._tell(order.to_line())

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._orders.write(line.encode())

    def reports(self) -> Iterator[Report]:
        """Yields the reports that have arrived. Raises ValueError if one is malformed."""
        while piece := self._read():
            self._buffer += piece
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                yield Report.from_line(line.decode())
            if len(self._buffer) > LINE_BYTES_MAX:
                raise ValueError(f"a report has more than {LINE_BYTES_MAX} bytes")

    def _read(self) -> bytes:
        try:
            return os.read(self._reports.fileno(), 1 << 16)
        except BlockingIOError:
            return b""

    def end(self) -> None:
        """Ends the process."""
        self._orders.close()
        self._reports.close()
        try:
            self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
