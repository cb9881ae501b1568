"""What `livefactor serve` does: bind the ports, open the models, serve, drain.

The ports are bound first. So a taken port is reported before anything is made or compiled, and a
health check is answered (NOT_SERVING) while models are opened.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

from livefactor_kernels.backend import BackendUnavailable
from livefactor_kernels.numbers import shipped
from livefactor_kernels.spec.model import KERNEL_SEMANTICS
from livefactor_server.access.entry import Entry
from livefactor_server.access.metrics_port import serve_metrics
from livefactor_server.cli.base import complain
from livefactor_server.cli.serve.front import Front
from livefactor_server.cli.serve.pages import Pages, check_pages
from livefactor_server.cli.serve.settings import LOOPBACK, ServerSettings
from livefactor_server.files.specs import SpecFileError
from livefactor_server.hosting import host as hosting
from livefactor_server.log.store import LogError
from livefactor_server.rpc import server
from livefactor_server.rpc.binding import host_and_port
from livefactor_server.snapshots.replay import ReplayError
from livefactor_server.snapshots.signing import SigningKeyError
from livefactor_server.telemetry import traces
from livefactor_server.telemetry.build import report_build
from livefactor_server.telemetry.lines import set_up_logging

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
CALLS_SHARE = 0.9
"""Share of the seconds of a drain that running calls get. The rest remains to end them."""

EXPECTED_FAULTS = (
    BackendUnavailable,
    hosting.DataFolderBusy,
    server.PortInUse,
    LogError,
    ReplayError,
    SigningKeyError,
    SpecFileError,
    OSError,
)

logger = logging.getLogger("livefactor_server")


def run_server(settings: ServerSettings, port_file: Path | None) -> int:
    """Serves until SIGTERM or SIGINT, then drains and ends the process with code 0.

    Returns the exit code if the server cannot start.
    """
    set_up_logging(settings.log_level, settings.log_format)
    try:
        entry = settings.entry()
        check_pages(settings)
        settings.set_up_process()
    except ValueError as error:
        complain(error)
        return 2
    _warn_if_open(settings)
    server.limit_libraries()
    server.raise_file_limit()
    news = _signals()
    try:
        parts = settings.hosting()
        settings.data.mkdir(parents=True, exist_ok=True)
        models = hosting.Hosting(settings.data, parts)
        metrics_port = _serve_metrics(settings, entry)
        front = Front(settings, models, entry)
        report_build(KERNEL_SEMANTICS, parts.engine.backend)
    except EXPECTED_FAULTS as error:
        complain(error)
        return 1
    front.listen()
    logger.info("gRPC listens on %s; models are being opened", host_and_port(settings.host, front.port))
    logger.info("the models run on the backend %s (--backend %s)", parts.engine.backend, settings.backend)

    def open_models() -> None:
        try:
            models.open_all(_report_replay, _report_compiling)
            front.wait()
            news.put("open")
        except BaseException as error:
            news.put(error)

    threading.Thread(target=open_models, name="open-models", daemon=True).start()
    first = news.get()
    if isinstance(first, EXPECTED_FAULTS):
        complain(first)
        front.leave()
        _leave(1)
    if isinstance(first, BaseException):
        raise first
    if first == "stop":
        # No call was accepted yet, so there is nothing to drain. A running compilation cannot be
        # stopped, and ending the process does not damage the data folder.
        logger.info("stopped before the models were open")
        front.leave()
        _leave(0)
    front.start()
    logger.info(
        "the server is ready: gRPC on %s, metrics %s, data in %s",
        host_and_port(settings.host, front.port),
        f"on port {metrics_port}" if metrics_port >= 0 else "off",
        settings.data,
    )
    pages = Pages(settings, front.port) if settings.console else None
    if port_file is not None:
        server.write_port_file(port_file, [front.port, metrics_port])
    news.get()
    logger.info("draining: accepted batches are finished, new ones are refused")
    # The exit code of a drain is 0, however many signals arrive.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _drain(front, settings.drain_s, pages)
    # A thread of a call may still compute, and nobody waits for its answer.
    _leave(0)


def _signals() -> queue.SimpleQueue[BaseException | str]:
    """A queue that gets "stop" for each signal that stops the server."""
    # A handler may run between any two steps of the main thread. A SimpleQueue, unlike an Event,
    # can be used in a handler without a deadlock.
    news: queue.SimpleQueue[BaseException | str] = queue.SimpleQueue()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: news.put("stop"))
    return news


def _warn_if_open(settings: ServerSettings) -> None:
    if settings.host not in LOOPBACK and settings.access is None and settings.tls_client_ca is None:
        logger.warning("whoever reaches %s may do everything: there is no --access file", settings.host)


def _drain(front: Front, drain_s: float, pages: Pages | None) -> None:
    """Drains the server, or gives up after `drain_s` seconds. Nothing acknowledged is lost then."""
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def drain() -> None:
        try:
            if pages is not None:
                pages.end()
            front.drain(drain_s * CALLS_SHARE)
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    threading.Thread(target=drain, name="drain", daemon=True).start()
    try:
        error = ended.get(timeout=drain_s)
    except queue.Empty:
        logger.warning(
            "not drained after %g s (--drain-s): what still ran was ended. Nothing acknowledged is lost; the next"
            " start replays the log from an older snapshot",
            drain_s,
        )
        return
    if error is not None:
        raise error
    logger.info("drained")


def _leave(code: int) -> NoReturn:
    """Ends the process without waiting for threads."""
    traces.flush()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve_metrics(settings: ServerSettings, entry: Entry) -> int:
    if settings.metrics_port < 0:
        return -1
    try:
        return serve_metrics(settings.host.strip("[]"), settings.metrics_port, entry)
    except OSError as error:
        raise server.PortInUse(
            f"the metrics port {host_and_port(settings.host, settings.metrics_port)} cannot be bound ({error.strerror});"
            " --metrics-port names another one, 0 takes a free one, -1 turns metrics off"
        ) from None


def _report_compiling(step: str, number: int, total: int) -> None:
    if number == 1:
        if reason := shipped.misfit():
            logger.info("the kernels that came with the package are not used: %s", reason)
        logger.info("compiling kernels, once on a machine (`livefactor warmup` does it ahead)")
    logger.info("compiling kernels, step %d of %d: %s", number, total, step)


def _report_replay(model: str, at: int, last: int) -> None:
    step = max(1, last // 20)
    if at == last or at // step != (at - 256) // step:
        logger.info(
            "model %s: %.0f %% of the log is replayed, revision %d of %d",
            model,
            100 * at / max(1, last),
            at,
            last,
        )
