"""The queue before the LOG stage, and how it is divided into groups."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Generic, TypeVar

from livefactor_server.engine.commit import Commit
from livefactor_server.engine.handover import Handover
from livefactor_server.engine.submission import Submission

GROUP_RECORDS_MAX = 256
GROUP_BYTES_MAX = 8 << 20

LITTLE_WORK = 4_096
"""A group with less work than this (`Commit.work`) waits for the APPLY stage, so that it becomes
larger meanwhile.

Many little groups would cost more than the overlap saves.
"""

WAIT_WORK_MAX = 6_144
"""It waits only if the APPLY stage has at most this work, which takes less than a millisecond.

A longer wait would delay the answers of small batches beside a stream of large ones.
"""

IDLE_MARK_S = 0.010
"""Seconds without a batch after which the log gets a mark.

The mark distinguishes an unsynced tail from damage.
"""

Switch = TypeVar("Switch")


class Intake(Generic[Switch]):
    """The queue of batches and of switches.

    Any thread may call `put`. Only the LOG stage calls the rest.
    A switch ends a group. It is what `put` gets that is neither a batch nor None.

    Attributes:
        next_switch: the switch that follows the last group, or None. The LOG stage resets it.
    """

    def __init__(self, to_apply: Handover[Commit], mark: Callable[[], None]) -> None:
        """An empty queue.

        `to_apply` is the hand-over to the APPLY stage. `mark` is called when the queue has been
        empty for `IDLE_MARK_S`.
        """
        self._queue: queue.SimpleQueue[Submission | Switch | None] = queue.SimpleQueue()
        self._to_apply, self._mark = to_apply, mark
        self.next_switch: Switch | None = None

    def put(self, item: Submission | Switch | None) -> None:
        """Adds a batch or a switch. None ends the queue."""
        self._queue.put(item)

    def get(self) -> Submission | Switch | None:
        """The next item, or None at the end."""
        return self._queue.get()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is queued."""
        return self._queue.empty()

    def next_group(self, cost_of_event: int) -> tuple[list[Submission], bool]:
        """The queued batches, and whether the queue is still open.

        `cost_of_event` is `ModelSpec.cost_of_event`.
        """
        first = self._first()
        if first is None:
            return [], False
        if not isinstance(first, Submission):
            self.next_switch = first
            return [], True
        group = [first]
        may_grow = self._gather(group)
        if may_grow and 0 < self._to_apply.work <= WAIT_WORK_MAX:
            rows = sum(batch.change.rows * batch.change.work_of_row for batch in group)
            if rows * cost_of_event < LITTLE_WORK:
                self._to_apply.wait_until_idle()
                may_grow = self._gather(group)
        return group, may_grow or self.next_switch is not None

    def _first(self) -> Submission | Switch | None:
        try:
            return self._queue.get(timeout=IDLE_MARK_S)
        except queue.Empty:
            self._mark()
            return self._queue.get()

    def _gather(self, group: list[Submission]) -> bool:
        """Adds the queued batches to the group.

        Returns False if no batch may follow: a switch is next, or the queue has ended.
        """
        size = sum(len(batch.received_body) for batch in group)
        while len(group) < GROUP_RECORDS_MAX and size < GROUP_BYTES_MAX:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                return False
            if not isinstance(item, Submission):
                self.next_switch = item
                return False
            group.append(item)
            size += len(item.received_body)
        return True
