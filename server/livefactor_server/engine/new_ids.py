"""How many new users and items a producer may add, with those of admitted batches counted once."""

from __future__ import annotations

import numpy as np

from livefactor_kernels.backend import RowTable
from livefactor_kernels.tables import NO_ROW
from livefactor_server.changes import KeyedChange
from livefactor_server.engine.quotas import Quota
from livefactor_server.engine.submission import Submission


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
