"""The hand-over of logged groups from the LOG stage to the APPLY stage."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Group = TypeVar("Group")


class Handover(Generic[Group]):
    """A short queue between two threads, which knows how much the receiver has not finished."""

    def __init__(self, most: int) -> None:
        """An empty queue. `put` waits while `most` groups are unfinished."""
        self._condition = threading.Condition()
        self._groups: deque[Group | None] = deque()
        self._most = most
        self._unfinished = self._work = 0

    def put(self, group: Group, work: int) -> None:
        """Adds a group. Only the sender calls it."""
        with self._condition:
            while self._unfinished >= self._most:
                self._condition.wait()
            self._unfinished += 1
            self._work += work
            self._groups.append(group)
            self._condition.notify_all()

    def end(self) -> None:
        """Ends the queue after its groups."""
        with self._condition:
            self._groups.append(None)
            self._condition.notify_all()

    def get(self) -> Group | None:
        """The next group, or None at the end. The receiver calls `finish` when it has finished
        it.
        """
        with self._condition:
            while not self._groups:
                self._condition.wait()
            return self._groups.popleft()

    def finish(self, work: int) -> None:
        """Makes room for a group. `work` is that of the finished one."""
        with self._condition:
            self._unfinished -= 1
            self._work -= work
            self._condition.notify_all()

    @property
    def work(self) -> int:
        """The work of the groups that the receiver has not finished."""
        return self._work

    @property
    def is_idle(self) -> bool:
        """Whether the receiver has finished all groups. It then stays idle until the next `put`."""
        return not self._unfinished

    def wait_until_idle(self) -> None:
        """Waits until the receiver has finished all groups. Only the sender calls it."""
        with self._condition:
            while self._unfinished:
                self._condition.wait()
