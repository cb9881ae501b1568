"""The process of a score worker: `python -m livefactor_server.workers.worker CONTROL ARENA`.

The arguments are the descriptors of the socket to the head and of the arena. The worker ends when
the head says so, or when the socket closes because the head has died. It leaves the signals that a
terminal or a service manager sends to all processes of a server to the head.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue

from livefactor_kernels.simd import arena
from livefactor_server.rpc.server import limit_libraries, raise_file_limit
from livefactor_server.telemetry.durations import CALL_SECONDS
from livefactor_server.telemetry.lines import set_up_logging
from livefactor_server.workers.messages import ModelEntry, Order, Report, Setup
from livefactor_server.workers.metrics import counts
from livefactor_server.workers.models import Models
from livefactor_server.workers.server import WorkerServer

REPORT_S = 1.0

logger = logging.getLogger("livefactor_server.workers")


class Reports:
    """Tells the head what this process has counted. Thread-safe."""

    def __init__(self, control: socket.socket) -> None:
        self._control, self._lock = control, threading.Lock()
        self._sent: dict[str, dict[str, int]] = {}

    def send(self, is_first: bool = False) -> None:
        """Sends what was counted since the last report, if there is anything."""
        with self._lock:
            now = counts()
            news: dict[str, dict[str, int]] = {}
            for name, counted in now.items():
                sent = self._sent.get(name, {})
                news[name] = {label: count - sent.get(label, 0) for label, count in counted.items()}
            self._sent = now
            report = Report(CALL_SECONDS.take(), news)
            if is_first or report.calls or any(any(new.values()) for new in news.values()):
                self._control.sendall(report.to_line())


def run(control: socket.socket, arena_file: int) -> int:
    """Serves until the head says that it is enough. Returns the exit code."""
    lines = control.makefile("rb")
    setup = Setup.from_line(lines.readline())
    set_up_logging(setup.log_level, setup.log_format)
    limit_libraries()
    raise_file_limit()
    arena.attach(arena_file)
    models, reports = Models(setup.service), Reports(control)
    server = WorkerServer(setup, models)
    reports.send(is_first=True)
    threading.Thread(target=_report, args=(reports,), name="reports", daemon=True).start()
    orders: SimpleQueue[Sequence[ModelEntry]] = SimpleQueue()
    threading.Thread(target=_follow, args=(models, orders), name="models", daemon=True).start()
    for line in lines:
        order = Order.from_line(line)
        if order.models is not None:
            orders.put(order.models)
        if order.stop_s is not None:
            server.stop(order.stop_s)
            reports.send()
            return 0
    # The head is gone.
    return 1


def _follow(models: Models, orders: SimpleQueue[Sequence[ModelEntry]]) -> None:
    """Carries out the newest of the orders. The socket stays empty while kernels are loaded."""
    try:
        while True:
            entries = orders.get()
            while not orders.empty():
                entries = orders.get()
            models.replace(entries)
    except Exception:
        logger.exception("score worker")
        logging.shutdown()
        os._exit(1)


def _report(reports: Reports) -> None:
    pause = threading.Event()
    while True:
        pause.wait(REPORT_S)
        try:
            reports.send()
        except OSError:
            return


def main() -> None:
    """Runs the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    code = 1
    try:
        code = run(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    except Exception:
        logger.exception("score worker")
    finally:
        logging.shutdown()
        # No thread of a call keeps the process.
        os._exit(code)


if __name__ == "__main__":
    main()
