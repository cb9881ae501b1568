"""One side's rows: keys, factors, biases, the optimizer's state, and the map from key to row.

Memory is reserved once for the spec's maximum of rows and backed by the kernel as rows are first written:
growth copies nothing and pauses nobody. Only the LOG stage allocates rows; only the APPLY stage changes rows;
readers may look at any row below the published count.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import secrets
from collections.abc import Mapping, Sequence

import numpy as np

from livefactor_kernels.history import row_sections
from livefactor_kernels.numbers.narrow import array_dtype, init_narrow_rows
from livefactor_kernels.numbers.random import INIT_DOMAIN, INIT_ROUNDING_DOMAIN, domain_key, init_rows
from livefactor_kernels.optimizers import initial_state, optimizer_sections
from livefactor_kernels.spec.model import FactorDtype, ModelSpec
from livefactor_kernels.tables.keymap import KeyMap

USERS, ITEMS = 0, 1
"""Sides of a model; also the table's number in the counter of its initial factors."""
NO_ROW = 0xFFFFFFFF
"""Row number of a key that is unknown."""
_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it only in newer Pythons


def reserve(shape: tuple[int, ...], dtype: str | type | np.dtype) -> np.ndarray:
    """A zeroed array of `shape` whose pages take memory when first written; page-aligned; huge pages are
    asked for."""
    count = math.prod(shape)
    size = max(1, count * np.dtype(dtype).itemsize)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages: slower, not wrong
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def check_sections(views: dict[str, np.ndarray], sections: dict[str, np.ndarray]) -> None:
    """ValueError if `sections` differ from a table's `views` in a name, a shape or a dtype."""
    if set(views) != set(sections):
        raise ValueError(f"load_sections: expected {sorted(views)}, got {sorted(sections)}")
    for name, view in views.items():
        if sections[name].shape != view.shape or sections[name].dtype != view.dtype:
            raise ValueError(f"load_sections: {name}: expected {view.dtype}{list(view.shape)}")


def unpadded(name: str, rows: np.ndarray, k: int) -> np.ndarray:
    """A view of rows of section `name` without the columns that only fill up their last vector."""
    return rows[:, :k] if name.startswith("factor") else rows


def read_rows(
    arrays: Mapping[str, np.ndarray], rows: np.ndarray, names: Sequence[str], k: int
) -> dict[str, np.ndarray]:
    """Copies of rows uint32[n] of the sections `names` of padded `arrays`, unpadded; zeros where a row is `NO_ROW`."""
    known = rows != NO_ROW
    out = {}
    for name in names:
        part = np.zeros((len(rows), *arrays[name].shape[1:]), arrays[name].dtype)
        part[known] = arrays[name][rows[known]]
        out[name] = unpadded(name, part, k)
    return out


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


class Table(RowKeys):
    """Rows of one side of a model in this machine's memory.

    keys uint64[cap]; factors [cap, k_padded], columns from k on stay 0, of dtype float32, float16, or uint16
    (the bits of bfloat16), as the spec says; bias float32[cap]; state: float32 arrays of
    `optimizers.optimizer_sections` by name, history: arrays of `history.row_sections`, both [cap, ...].
    allocated: rows given out, may be ahead of what is published.
    """

    def __init__(self, spec: ModelSpec, side: int) -> None:
        """Reserve the side's memory (`USERS` or `ITEMS`); MemoryError or OSError if the system refuses the
        address space."""
        super().__init__(spec, side)
        shape = (self.capacity, spec.k_padded)
        self.factors = reserve(shape, array_dtype(spec.factor_dtype))
        self.bias = reserve((self.capacity,), np.float32)
        self.state = {
            name: reserve((self.capacity, *shape), np.float32)
            for name, shape in optimizer_sections(spec).items()
        }
        self.history = {
            name: reserve((self.capacity, *shape), dtype)
            for name, (shape, dtype) in row_sections(spec, side).items()
        }

    def padded(self) -> dict[str, np.ndarray]:
        """All arrays that a learned event may change, as they lie in memory, by name."""
        return {"factors": self.factors, "bias": self.bias} | self.state | self.history

    def _initialise(self, keys: np.ndarray, start: int, stop: int) -> None:
        spec = self.spec
        key, side = domain_key(spec.seed, INIT_DOMAIN), np.uint64(self.side)
        rows, width = self.factors[start:stop], (np.uint64(spec.k), np.float32(spec.init_scale))
        if spec.factor_dtype == FactorDtype.FLOAT32:
            init_rows(keys, rows, *width, key, side)
        else:
            rounding_key = domain_key(spec.seed, INIT_ROUNDING_DOMAIN)
            bits, dtype = rows.view(np.uint16), np.uint64(spec.factor_dtype)
            init_narrow_rows(keys, bits, dtype, *width, key, rounding_key, side)
        for name, array in self.state.items():
            new = unpadded(name, array[start:stop], spec.k)
            new[:] = initial_state(spec, name, rows[:, : spec.k])

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes in all arrays (its slot in the key map not counted)."""
        return sum(array[0].nbytes for array in (self.keys, *self.padded().values()))

    def sections(self, count: int) -> dict[str, np.ndarray]:
        """Views of the first `count` rows, unpadded: keys, factors (count, k), bias, the
        optimizer's state and the history's."""
        views = {"keys": self.keys[:count]}
        for name, array in self.padded().items():
            views[name] = unpadded(name, array[:count], self.spec.k)
        return views

    def read(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Copies of the sections `names` of rows uint32[n], unpadded; zeros where a row is `NO_ROW`."""
        return read_rows(self.padded(), rows, names, self.spec.k)

    def load_sections(self, sections: dict[str, np.ndarray], count: int) -> None:
        """Fill an empty table with `count` rows of `sections` (names and shapes as `sections()` gives) and
        rebuild its map.

        ValueError, with the table still empty, if names or shapes differ, a key repeats, or the rows do not
        fit.
        """
        if count > self.capacity:
            raise ValueError(f"load_sections: {count} rows, the table holds {self.capacity}")
        views = self.sections(count)
        keymap = self.map_of(sections, views, count)
        for name, view in views.items():
            view[:] = sections[name]
        self.keymap, self.allocated = keymap, count
