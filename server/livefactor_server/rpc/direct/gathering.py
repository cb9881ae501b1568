"""Hands the batches of direct calls to the engines, many at a time."""

from __future__ import annotations

import math
import time

from livefactor_server.engine.engine import Engine
from livefactor_server.engine.submission import Submission

GATHER_S = 0.002
"""Seconds for which a batch may wait while further messages arrive."""


class Gathering:
    """The batches that the engines do not have yet.

    A commit costs several times what one more batch in it costs, and its threads compete with the
    thread of direct calls for the GIL. So while that has messages to handle, their batches are
    gathered, and the engine gets them when it would wait. A lone call loses nothing by this. Only
    the thread of direct calls may call the methods.

    Attributes:
        until: when the batches are handed over at the latest, in seconds of `time.monotonic`.
            Infinite without batches.
    """

    def __init__(self) -> None:
        self._batches: dict[Engine, list[Submission]] = {}
        self.until = math.inf

    def add(self, engine: Engine, batch: Submission) -> None:
        """Adds a batch for which the engine has reserved room."""
        if not self._batches:
            self.until = time.monotonic() + GATHER_S
        self._batches.setdefault(engine, []).append(batch)

    def hand_over(self) -> None:
        """Hands all batches over."""
        gathered, self._batches, self.until = self._batches, {}, math.inf
        for engine, batches in gathered.items():
            engine.enqueue(batches)
