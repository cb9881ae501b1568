"""A lock of one process. A producer's threads and its stream do not live on in a forked child."""

from __future__ import annotations

import os
import threading

from livefactor.errors import ForkError


class ProcessLock:
    """A `threading.Lock` that raises ForkError in a child of the process that made it.

    There a thread that no longer exists may hold the lock for ever. owner: what the lock belongs
    to, for the error's text.
    """

    def __init__(self, owner: str) -> None:
        self._owner, self._pid, self._lock = owner, os.getpid(), threading.Lock()

    @property
    def is_ours(self) -> bool:
        """Whether this process made the lock."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise ForkError if another process made the lock."""
        if not self.is_ours:
            raise ForkError(
                f"{self._owner}: process {self._pid} made it, and it does not work in its child "
                f"{os.getpid()}; make another one there, with an id of its own"
            )

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As `threading.Lock.acquire`. Raises ForkError."""
        self.check()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """As `threading.Lock.release`."""
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
