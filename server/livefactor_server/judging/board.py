"""Writes the judge's figures as TensorBoard event files.

Each figure is a scalar, and its step is the revision.

It needs the package tensorboardX.
"""

from __future__ import annotations

import logging
import math
import threading
from importlib.util import find_spec
from pathlib import Path

from livefactor_server.judging.observer import Observer

WRITE_EVERY_S = 10.0

logger = logging.getLogger(__name__)


class Board:
    """Writes one model's figures every `WRITE_EVERY_S` seconds if they are new, and at the end."""

    def __init__(self, folder: Path, observer: Observer) -> None:
        """Stores where to write. If tensorboardX is missing, a warning is logged and nothing is
        written.

        Args:
            folder: the folder of the event files; it is made if it is missing.
            observer: the source of the figures.
        """
        self._folder = folder
        self._observer = observer
        self._written = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"board-{folder.name}", daemon=True)

    def start(self) -> None:
        """Starts the background thread."""
        if find_spec("tensorboardX") is None:
            logger.warning("TensorBoard files need tensorboardX: pip install livefactor[tensorboard]")
            self._stopped.set()
        self._thread.start()

    def stop(self) -> None:
        """Writes new figures, and closes the file."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._stopped.is_set():
            return
        from tensorboardX import SummaryWriter

        try:
            with SummaryWriter(str(self._folder), flush_secs=int(WRITE_EVERY_S)) as writer:
                while not self._stopped.wait(WRITE_EVERY_S):
                    self._write(writer)
                self._write(writer)
        except Exception:
            logger.exception("TensorBoard event files are no longer written to %s", self._folder)

    def _write(self, writer: object) -> None:
        report = self._observer.report()
        if report is None or report.judged_events == self._written:
            return
        self._written = report.judged_events
        groups = (
            ("", report.figures),
            ("/new_users", report.new_user_figures),
            ("/known_users", report.known_user_figures),
        )
        for users, figure in ((users, figure) for users, each in groups for figure in each):
            kind = users if figure.event_type is None else f"/type_{figure.event_type}"
            for span, value in (("window", figure.windowed), ("decayed", figure.decayed)):
                if math.isfinite(value):
                    tag = f"{figure.metric.replace('@', '_at_')}{kind}/{figure.scorer}/{span}"
                    writer.add_scalar(tag, value, report.revision)  # type: ignore[attr-defined]
        writer.add_scalar("row_norm", report.row_norm, report.revision)  # type: ignore[attr-defined]


def start_board(folder: Path | None, name: str, observer: Observer) -> Board | None:
    """The running board of a model in a folder for all models. None without a folder."""
    if folder is None:
        return None
    board = Board(folder / name, observer)
    board.start()
    return board
