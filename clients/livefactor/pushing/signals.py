"""`Signal` wakes those who wait for a producer: threads, and tasks of event loops."""

from __future__ import annotations

import threading
from collections.abc import Callable

from livefactor.pushing.forks import ProcessLock


class Signal:
    """A change of a state that `lock` guards. Threads wait for it; event loops listen."""

    def __init__(self, lock: ProcessLock) -> None:
        self._changed = threading.Condition(lock)  # type: ignore[arg-type]
        self._listeners: tuple[Callable[[], None], ...] = ()

    def notify(self) -> None:
        """Wake everybody. Call it with the lock held."""
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        """Wait up to `timeout` seconds until the predicate is true, and return its value.

        The predicate is called with the lock held. Call this without it.
        """
        with self._changed:
            return self._changed.wait_for(predicate, timeout)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` at each change, with the lock held, in the thread that changes it."""
        with self._changed:
            self._listeners += (listener,)

    def ignore(self, listener: Callable[[], None]) -> None:
        """Call `listener` no longer."""
        with self._changed:
            self._listeners = tuple(each for each in self._listeners if each is not listener)
