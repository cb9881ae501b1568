"""How fast a contest may go: its share of a core, and its share of the champion's CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable

NAP_S_MAX = 1.0
"""Maximum seconds of a pause. What is owed beyond stays owed."""


class Pace:
    """Counts the CPU time of this process, and rests so that it stays below a share of one core.

    Attributes:
        cpu_s: CPU seconds since the start. Compiled kernels are not counted before `start`.
    """

    def __init__(
        self,
        share: float,
        clock: Callable[[], float] = time.process_time,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        """`share` is in (0, 1]. `clock` gives CPU seconds, and `rest` sleeps."""
        self._per_cpu_s, self._clock, self._rest = 1.0 / share - 1.0, clock, rest
        self._last, self._owed, self.cpu_s = clock(), 0.0, 0.0

    def start(self) -> None:
        """Begins to count."""
        self._last = self._clock()

    def keep(self) -> None:
        """Counts the work since the last call, and rests as long as it took too much."""
        now = self._clock()
        worked, self._last = now - self._last, now
        self.cpu_s += worked
        self._owed += worked * self._per_cpu_s
        while self._owed > 0:
            nap = min(self._owed, NAP_S_MAX)
            begin_s = time.monotonic()
            self._rest(nap)
            # A rest that took longer, because others have the core, counts in full.
            self._owed = max(0.0, self._owed - max(nap, time.monotonic() - begin_s))
