"""The number of bytes that may wait in the queue of an engine."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Budget:
    """A limit in bytes that all submitting threads share.

    A batch above the limit passes when no other batch waits.
    """

    def __init__(self, limit: int) -> None:
        self._condition = threading.Condition()
        self._limit = limit
        self.used = 0

    def take(self, size: int, wait: bool, is_cancelled: Callable[[], bool]) -> bool:
        """Takes `size` bytes. With `wait` it waits until they are free.

        Returns False if the bytes are not free, or if `is_cancelled()` becomes true during the
        wait.
        """
        with self._condition:
            while self.used and self.used + size > self._limit:
                if not wait or is_cancelled():
                    return False
                self._condition.wait()
            self.used += size
            return True

    def give(self, size: int) -> None:
        """Returns `size` bytes."""
        with self._condition:
            self.used -= size
            self._condition.notify()

    def wake(self) -> None:
        """Lets waiting callers check their `is_cancelled` again."""
        with self._condition:
            self._condition.notify_all()
