"""Bytes that may wait in an engine's queue."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Budget:
    """A limit of bytes, shared by all threads that submit. A batch over the limit passes when nothing else waits."""

    def __init__(self, limit: int) -> None:
        self._condition = threading.Condition()
        self._limit = limit
        self.used = 0

    def take(self, size: int, wait: bool, is_cancelled: Callable[[], bool]) -> bool:
        """Take `size` bytes, waiting for room if told to; False if there is none or `is_cancelled()` came true."""
        with self._condition:
            while self.used and self.used + size > self._limit:
                if not wait or is_cancelled():
                    return False
                self._condition.wait()
            self.used += size
            return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._condition:
            self.used -= size
            self._condition.notify()

    def wake(self) -> None:
        """Let waiting callers look at their cancel condition again."""
        with self._condition:
            self._condition.notify_all()
