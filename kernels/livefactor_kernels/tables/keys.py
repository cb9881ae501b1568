"""Which key has which row of one side, in arrays: what the tables of the CPU and the GPU have in common."""

from __future__ import annotations

import secrets

import numpy as np

from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.spec.model import USERS, ModelSpec
from livefactor_kernels.tables import NO_ROW, check_sections
from livefactor_kernels.tables.keymap import KeyMap


class RowKeys:
    """Which key has which row of one side; shared by the tables of all fast backends.

    keys uint64[cap] by row. allocated: rows given out, may be ahead of what is published. Only the LOG stage
    calls `allocate`.
    """

    def __init__(self, spec: ModelSpec, side: int) -> None:
        """Reserve the keys' memory; MemoryError or OSError if the system refuses the address space."""
        self.spec, self.side = spec, side
        self.capacity = spec.limits.users_max if side == USERS else spec.limits.items_max
        self.keys = reserve((self.capacity,), np.uint64)
        self.keymap = self._new_keymap()
        self.allocated = 0

    @staticmethod
    def _new_keymap() -> KeyMap:
        # Slots are no part of a model's state: with a secret seed nobody can aim keys at one of them.
        return KeyMap(secrets.randbits(64))

    def allocate(self, keys: np.ndarray) -> np.ndarray:
        """Rows uint32[n] of `keys` uint64[n]; unknown keys get the next rows in order of first appearance,
        initialised.

        LOG stage only. OverflowError, with nothing changed, if the new keys do not fit the table.
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
        """Give the new rows [start, stop) of `keys` their initial values, where that is done at once."""

    def count_new(self, keys: np.ndarray) -> int:
        """Distinct keys of uint64[n] that have no row yet; changes nothing."""
        return int(self.keymap.count_new(keys))

    def find(self, keys: np.ndarray, published: int) -> np.ndarray:
        """Rows uint32[n] of `keys` uint64[n]; `NO_ROW` where unknown or at or past `published`. Any thread,
        no lock."""
        rows = self.keymap.find(keys)
        rows[rows >= published] = NO_ROW
        return rows

    def map_of(self, sections: dict[str, np.ndarray], views: dict[str, np.ndarray], count: int) -> KeyMap:
        """The map of `count` rows that an empty table is to be filled with; changes nothing.

        ValueError if the table is not empty, if names, shapes or dtypes of `sections` differ
        from `views` (only those are looked at), or if a key repeats.
        """
        if self.allocated:
            raise ValueError("load_sections: the table is not empty")
        check_sections(views, sections)
        keymap = self._new_keymap()
        _, new_keys = keymap.insert_missing(np.ascontiguousarray(sections["keys"]), 0)
        if new_keys.size != count:
            raise ValueError(f"load_sections: {count - new_keys.size} keys repeat")
        return keymap
