"""The keys of one side and their rows, in host arrays: the common part of CPU and GPU tables."""

from __future__ import annotations

import secrets

import numpy as np

from livefactor_kernels.simd.memory import reserve_shared
from livefactor_kernels.spec.model import USERS, ModelSpec
from livefactor_kernels.tables import NO_ROW, check_sections
from livefactor_kernels.tables.keymap import KeyMap


class RowKeys:
    """The keys of one side and their rows.

    Only the LOG stage calls `allocate`.

    Attributes:
        keys: uint64[cap], by row.
        allocated: number of allocated rows, which may exceed the number of published rows.
    """

    def __init__(self, spec: ModelSpec, side: int) -> None:
        """Reserves the memory of the keys.

        Raises:
            MemoryError, OSError: the system refuses the address space.
        """
        self.spec, self.side = spec, side
        self.capacity = spec.limits.users_max if side == USERS else spec.limits.items_max
        self.keys = reserve_shared((self.capacity,), np.uint64)
        self.keymap = self._new_keymap()
        self.allocated = 0

    def _new_keymap(self) -> KeyMap:
        # Slots are not part of the state of a model. With a secret seed nobody can choose keys that
        # collide.
        return KeyMap(secrets.randbits(64), shared=True)

    def allocate(self, keys: np.ndarray) -> np.ndarray:
        """Rows uint32[n] of `keys` uint64[n]. New keys get the next rows in order of first
        appearance.

        It initialises the new rows.

        Raises:
            OverflowError: the new keys do not fit the table. Nothing has changed.
        """
        start = self.allocated
        if start + keys.size > self.capacity and start + self.count_new(keys) > self.capacity:
            raise OverflowError(f"table of {self.capacity} rows is full")
        rows, new_keys = self.keymap.insert_missing(keys, start)
        stop = start + new_keys.size
        if new_keys.size:
            self.keys[start:stop] = new_keys
            self._initialise(new_keys, start, stop)
            self.allocated = stop
        return rows

    def _initialise(self, keys: np.ndarray, start: int, stop: int) -> None:
        """Gives the new rows [start, stop) their initial values. A GPU table does this later."""

    def count_new(self, keys: np.ndarray) -> int:
        """Number of distinct keys of uint64[n] that have no row yet."""
        return int(self.keymap.count_new(keys))

    def find(self, keys: np.ndarray, published: int) -> np.ndarray:
        """Rows uint32[n] of `keys` uint64[n]. `NO_ROW` for unknown keys and rows from `published`
        on.

        Any thread may call it without a lock.
        """
        rows = self.keymap.find(keys)
        rows[rows >= published] = NO_ROW
        return rows

    def map_of(self, sections: dict[str, np.ndarray], views: dict[str, np.ndarray], count: int) -> KeyMap:
        """The map for `count` rows with which the caller will fill an empty table.

        It changes nothing, and it checks only the sections that are in `views`.

        Raises:
            ValueError: the table is not empty, names, shapes or dtypes differ from `views`, or a
                key repeats.
        """
        if self.allocated:
            raise ValueError("load_sections: the table is not empty")
        check_sections(views, sections)
        keymap = self._new_keymap()
        _, new_keys = keymap.insert_missing(np.ascontiguousarray(sections["keys"]), 0)
        if new_keys.size != count:
            raise ValueError(f"load_sections: {count - new_keys.size} keys repeat")
        return keymap
