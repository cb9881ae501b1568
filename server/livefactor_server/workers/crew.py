"""The head's side of score workers: starts, tells, counts, replaces and ends them."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.simd import memory
from livefactor_kernels.simd.arena import arena_of_process
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.tables.shared import places_of
from livefactor_server.hosting.host import Hosted, Hosting
from livefactor_server.rpc import binding
from livefactor_server.rpc.server import PortInUse
from livefactor_server.telemetry.durations import CALL_SECONDS
from livefactor_server.workers.messages import ModelEntry, Order, Report, Setup
from livefactor_server.workers.metrics import COUNTED, REPLACED, RUNNING
from livefactor_server.workers.process import Process

POLL_S = 0.1
"""Seconds between two looks at which models there are."""

PAUSE_S_MAX = 5.0
"""A worker that ends again and again is replaced after at most so many seconds."""

LIVED_S = 10.0
"""A worker that lived for so long is replaced at once."""

START_S = 300.0
"""Seconds that the workers may take to start. The first one on a machine compiles kernels."""

END_S = 1.0
"""Seconds that a worker may take to end itself after its calls have ended."""

logger = logging.getLogger("livefactor_server.workers")


class Crew:
    """The workers of a server. It must be made before the models are opened."""

    def __init__(self, count: int, host: str, port: int, setup: Callable[[str, str], Setup]) -> None:
        """Takes the address, and makes the arena. `setup(address, head)` makes the first line to
        each worker.

        Raises:
            PortInUse: the address cannot be bound.
            OSError: the system refuses the shared memory.
        """
        self._sockets, self.port = _take(host, port)
        self._arena = arena_of_process()
        self._folder = Path(tempfile.mkdtemp(prefix="livefactor-"))
        self.head = f"unix:{self._folder / 'head.sock'}"
        """Where the server of the head must listen."""
        self._setup = setup(binding.host_and_port(host, self.port), self.head)
        self._count = count
        self._workers: list[_Worker] = []
        self._stopping = threading.Event()
        memory.share_from(self._arena)

    def start(self) -> None:
        """Starts the workers, without waiting for them. The head listens already."""
        self._workers = [
            _Worker(f"score-worker-{number}", self._setup, self._arena.file, self._stopping)
            for number in range(self._count)
        ]
        for worker in self._workers:
            worker.thread.start()

    def wait(self) -> None:
        """Waits until all workers listen.

        Raises:
            PortInUse: they do not.
        """
        deadline = time.monotonic() + START_S
        for worker in self._workers:
            if not worker.has_begun.wait(max(0.0, deadline - time.monotonic())) or worker.has_failed:
                raise PortInUse("the score workers did not start; the server's log says why")

    def watch(self, hosting: Hosting) -> None:
        """Tells the workers from now on which models there are."""
        threading.Thread(target=self._watch, args=(hosting,), name="score-models", daemon=True).start()

    def _watch(self, hosting: Hosting) -> None:
        while True:
            models = tuple(entry for hosted in hosting.all() if (entry := entry_of(hosted)) is not None)
            for worker in self._workers:
                worker.tell(models)
            if self._stopping.wait(POLL_S):
                return

    def stop(self, grace_s: float) -> None:
        """Has the workers end their calls within `grace_s` seconds, without waiting for them."""
        self._stopping.set()
        for worker in self._workers:
            worker.stop(grace_s)

    def end(self) -> None:
        """Waits for workers that were told to stop, kills the others, and frees the address."""
        self._stopping.set()
        for worker in self._workers:
            worker.end()
        memory.share_from(None)
        for each in self._sockets:
            each.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Worker:
    """One place of the crew. A thread keeps a process in it."""

    def __init__(self, name: str, setup: Setup, arena_file: int, stopping: threading.Event) -> None:
        self._setup, self._arena_file, self._stopping = setup, arena_file, stopping
        self._models: tuple[ModelEntry, ...] = ()
        self._lock = threading.Lock()
        self._end_at: float | None = None
        self.process: Process | None = None
        self.has_begun, self.has_failed = threading.Event(), False
        self.thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def tell(self, models: tuple[ModelEntry, ...]) -> None:
        """Tells the process which models there are, if they have changed."""
        with self._lock:
            if models != self._models:
                self._models = models
                if self.process is not None:
                    self.process.tell(Order(models))

    def stop(self, grace_s: float) -> None:
        with self._lock:
            self._end_at = time.monotonic() + grace_s + END_S
            if self.process is not None:
                self.process.tell(Order(stop_s=grace_s))

    def end(self) -> None:
        with self._lock:
            process, at = self.process, self._end_at
        if process is not None and at is None:
            process.kill()
        self.thread.join(None if at is None else max(0.0, at - time.monotonic()))
        if self.thread.is_alive() and process is not None:
            process.kill()
            self.thread.join()

    def _keep(self) -> None:
        pause = 0.0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run()
            if self._stopping.is_set():
                return
            if not self.has_begun.is_set():
                self.has_failed = True
                self.has_begun.set()
                return
            pause = 0.0 if time.monotonic() - began > LIVED_S else min(PAUSE_S_MAX, pause * 2 + 0.1)
            logger.error("a score worker ended with code %s; another one takes its place", code)
            REPLACED.inc()
            self._stopping.wait(pause)

    def _run(self) -> int | str:
        """Runs a process until it ends. Returns how it ended."""
        is_listening = False
        try:
            with self._lock:
                if self._stopping.is_set():
                    return 0
                process = self.process = Process(self._setup, self._arena_file)
                process.tell(Order(self._models))
        except OSError as error:
            return str(error)
        try:
            for report in process.reports():
                if not is_listening:
                    is_listening = True
                    RUNNING.inc()
                    self.has_begun.set()
                _count(report)
        except (ValueError, TypeError, KeyError):
            logger.exception("a report of a score worker is malformed")
            process.kill()
        finally:
            with self._lock:
                self.process = None
            if is_listening:
                RUNNING.dec()
        return process.wait()


def _count(report: Report) -> None:
    CALL_SECONDS.add(report.calls)
    for name, counts in report.counts.items():
        for label, count in counts.items():
            COUNTED[name].labels(label).inc(count)


def entry_of(hosted: Hosted) -> ModelEntry | None:
    """What workers must know of a model, or None if they cannot answer from it."""
    state = hosted.engine.state
    backend, marks, labels = state.backend, state.marks.shared, state.labels[ITEMS].shared
    # The head notes which answers come from a challenger, and which do not.
    if not isinstance(backend, CpuModel) or not marks or not labels or hosted.sharing is not None:
        return None
    parts = {"marks": marks, "labels": labels}
    beside = places_of(
        {f"{part}.{name}": array for part, own in parts.items() for name, array in own.items()}
    )
    places = backend.places()
    if places is None or beside is None:
        return None
    return ModelEntry(hosted.name, state.lineage.hex, state.spec_id, state.spec_body.hex(), places + beside)


def _take(host: str, port: int) -> tuple[list[socket.socket], int]:
    """Sockets that keep the address for the workers, and its port.

    They do not listen, so no connection comes to them.
    """
    address = binding.host_and_port(host, port)
    if (fault := binding.fault(address)) is not None:
        raise PortInUse(f"{address} cannot be bound ({fault}); --port names another port")
    taken: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for family, kind, protocol, _, place in socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM
        ):
            each = undo.enter_context(socket.socket(family, kind, protocol))
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                each.bind((place[0], port, *place[2:]))
            except OSError as error:
                raise PortInUse(f"{address} cannot be bound ({error.strerror})") from None
            port = each.getsockname()[1]
            taken.append(each)
        undo.pop_all()
    return taken, port
