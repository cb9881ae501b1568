"""How many new users and items a producer may add, and how many events a user may have.

The LOG stage decides it before a batch enters the log, so no state depends on a clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from livefactor.v1 import updates_pb2
from livefactor_kernels.backend import RowTable
from livefactor_kernels.tables import NO_ROW, USERS
from livefactor_server.changes import KeyedChange
from livefactor_server.engine.quotas import Quota, Quotas
from livefactor_server.engine.submission import Submission


def limits_of(quotas: Quotas, tables: tuple[RowTable, RowTable]) -> tuple[NewIds | None, UserRows | None]:
    """The limits of a model with these tables of users and items."""
    new_ids, most = quotas.new_ids, quotas.user_rows_per_minute
    return NewIds(new_ids, tables) if new_ids is not None else None, UserRows(most) if most else None


class NewIds:
    """The quotas of the producers of one model. Only the LOG stage uses it."""

    def __init__(self, quota: Quota, tables: tuple[RowTable, RowTable]) -> None:
        """`tables` has the tables of users and of items."""
        self._quota, self._tables = quota, tables
        # New ids of admitted batches, which have no rows yet.
        self._ahead: tuple[set[int], set[int]] = (set(), set())

    def left(self, payer: bytes) -> float:
        """The number of ids that a producer may still add."""
        return self._quota.left(payer)

    def admits(self, item: Submission, change: KeyedChange) -> bool:
        """Whether the producer of a batch may add all its new ids."""
        left = self.left(item.payer)
        return 2 * change.rows <= left or sum(map(len, self._new(change))) <= left

    def take(self, item: Submission) -> None:
        """Takes the new ids of an admitted batch from the quota of its producer."""
        assert isinstance(item.change, KeyedChange)
        for new, ahead in zip(self._new(item.change), self._ahead, strict=True):
            self._quota.take(item.payer, len(new))
            ahead |= new

    def forget_placed(self, all_placed: bool) -> None:
        """Drops the ids that have rows now. With `all_placed` no admitted batch waits for rows."""
        for table, ahead in zip(self._tables, self._ahead, strict=True):
            if all_placed:
                ahead.clear()
            elif ahead:
                ids = np.fromiter(ahead, np.uint64, len(ahead))
                ahead.difference_update(ids[table.find(ids, table.allocated) != NO_ROW].tolist())

    def _new(self, change: KeyedChange) -> list[set[int]]:
        """The users and the items that neither have rows nor stand in an admitted batch."""
        return [
            set(keys[table.find(keys, table.allocated) == NO_ROW].tolist()) - ahead
            for table, keys, ahead in zip(self._tables, change.keys, self._ahead, strict=True)
        ]


class UserRows:
    """How many events a user may have in a minute. Only the LOG stage uses it.

    Minutes begin anew for all users at once, and after an eviction or a switch of the spec. A user
    without a row counts in each batch alone.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._most, self._clock = most, clock
        self._minute = -1
        self._counts = np.zeros(0, np.uint32)

    def limit(self, item: Submission, table: RowTable) -> None:
        """Rejects the events of a batch with which a user would have too many."""
        assert isinstance(item.change, KeyedChange)
        users = item.change.keys[USERS]
        rows = self._rows(users, table)
        known = rows != NO_ROW
        if not self._has_excess(rows[known], len(users)):
            np.add.at(self._counts, rows[known], 1)
            return
        # Unknown users get numbers after those of rows, for this batch alone.
        new, places = np.unique(users[~known], return_inverse=True)
        rows = rows.astype(np.int64)
        rows[~known] = len(self._counts) + places
        had = np.concatenate((self._counts, np.zeros(len(new), np.uint32)))[rows]
        admitted = had + _turns(rows) < self._most
        np.add.at(self._counts, rows[known & admitted], 1)
        if not admitted.all():
            reason = int(updates_pb2.REJECT_REASON_USER_RATE)
            item.reject_rows([(row, reason) for row in np.flatnonzero(~admitted).tolist()])

    def _rows(self, users: np.ndarray, table: RowTable) -> np.ndarray:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute = minute
            self._counts[:] = 0
        if len(self._counts) < table.allocated:
            grown = np.zeros(max(table.allocated, 2 * len(self._counts)), np.uint32)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        return table.find(users, table.allocated)

    def _has_excess(self, rows: np.ndarray, events: int) -> bool:
        """Whether a user may have too many with a batch of `events` events."""
        return int(self._counts[rows].max(initial=0)) + events > self._most


def _turns(numbers: np.ndarray) -> np.ndarray:
    """How many equal numbers stand before each, int64[n]."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else order
    turns = np.empty(len(numbers), np.int64)
    turns[order] = np.arange(len(numbers)) - np.repeat(starts, np.diff(np.append(starts, len(numbers))))
    return turns
