"""The time by which grants expire. A clock that is set back makes no expired grant valid again.

It is the later one of two times: that of the system's clock, and the time at which the process
looked first plus what has passed since. So a clock that jumps ahead makes grants expire while it is
ahead, and a clock that jumps back has no effect. Both are logged by name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

RELEASED_S = 1_760_000_000
"""A clock before this time (October 2025) is wrong, because no release is older."""

JUMP_S = 60.0
"""A clock that differs by more has jumped."""

logger = logging.getLogger(__name__)


class Clock:
    """The time in seconds since 1970. Thread-safe."""

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        """`wall` is a clock that may jump, and `steady` one that does not."""
        self._wall, self._steady = wall, steady
        self._begin = wall() - steady()
        self._lock = threading.Lock()
        self._jumped_s = 0.0

    def now(self) -> float:
        """The present time."""
        wall, expected = self._wall(), self._begin + self._steady()
        ahead_s = wall - expected
        if abs(ahead_s - self._jumped_s) > JUMP_S:
            self._tell(ahead_s)
        return max(wall, expected)

    def _tell(self, ahead_s: float) -> None:
        with self._lock:
            jumped_s, self._jumped_s = ahead_s - self._jumped_s, ahead_s
        if abs(jumped_s) <= JUMP_S:
            return
        way = "ahead" if jumped_s > 0 else "back"
        logger.error(
            "the clock of the system jumped %s by %.0f s; grants expire by the later one of its time and "
            "the time that passed since the start", way, abs(jumped_s),
        )  # fmt: skip

    def fault(self) -> str | None:
        """What is wrong with a clock by which nothing can be checked, or None."""
        return fault_of(self._wall())


def fault_of(now: float) -> str | None:
    """What is wrong with a clock that says `now`, or None."""
    if now >= RELEASED_S:
        return None
    day = time.strftime("%Y-%m-%d", time.gmtime(now))
    return f"the clock says {day}, which is before this release"


CLOCK = Clock()
"""The clock of this process."""
