"""The contests of all models of a server. One process runs at a time, so that one share of one core
suffices for all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from livefactor_server.challenging.challengers import Challengers

POLL_S = 0.25

logger = logging.getLogger(__name__)


class Contests:
    """Starts and follows the processes of the models' contests, in a thread of its own."""

    def __init__(self, challengers: Callable[[], list[Challengers]]) -> None:
        """`challengers` gives those of all models."""
        self._all = challengers
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="contests", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. The challengers' processes are ended by their `close`."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_S):
            there = self._all()
            for each in there:
                self._guarded(each.poll)
            if not any(each.pid for each in there):
                for each in there:
                    if self._guarded(each.wants_process):
                        self._guarded(each.start)
                        break

    @staticmethod
    def _guarded(step: Callable[[], bool | None]) -> bool | None:
        """Runs a step. An error in it is logged, and the models are served as before."""
        try:
            return step()
        except Exception:
            logger.exception("a contest failed")
            return None
