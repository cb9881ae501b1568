"""The rows of one side in host memory (semantics: `tables/__init__.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from livefactor_kernels.numbers.narrow import init_narrow_rows
from livefactor_kernels.numbers.random import INIT_DOMAIN, INIT_ROUNDING_DOMAIN, domain_key, init_rows
from livefactor_kernels.optimizers import initial_state, optimizer_sections
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.spec.model import FactorDtype, ModelSpec
from livefactor_kernels.tables import NO_ROW, history_sections, read_rows, row_sections, unpadded
from livefactor_kernels.tables.keys import RowKeys
from livefactor_kernels.tables.pages import RING, Pages


class Table(RowKeys):
    """The rows of one side of a model in host memory.

    Attributes:
        keys: uint64[cap].
        factors: [cap, k_padded] of dtype float32, float16, or uint16 (the bits of bfloat16).
            Columns from k on are 0.
        bias: float32[cap].
        state: float32 arrays [cap, ...] of `optimizers.optimizer_sections`, by name.
        history: arrays [cap, ...] of `history_sections` without the rings, by name.
        pages: the rings, None without histories.
        ring_names: names of the sections that are rings.
        allocated: number of allocated rows, which may exceed the number of published rows.
    """

    def __init__(self, spec: ModelSpec, side: int) -> None:
        """Reserves the memory of one side (`USERS` or `ITEMS`).

        Raises:
            MemoryError, OSError: the system refuses the address space.
        """
        super().__init__(spec, side)
        self._arrays = {
            name: reserve((self.capacity, *section.shape), section.dtype)
            for name, section in row_sections(spec, side).items()
            if name != "keys" and name not in RING
        }
        self.factors, self.bias = self._arrays["factors"], self._arrays["bias"]
        self.state = {name: self._arrays[name] for name in optimizer_sections(spec)}
        history = history_sections(spec, side)
        self.history = {name: self._arrays[name] for name in history if name not in RING}
        self.ring_names = tuple(name for name in history if name in RING)
        seen = self.history.get("seen_count")
        self.pages = None if seen is None else Pages(spec, side, seen)

    def padded(self) -> dict[str, np.ndarray]:
        """All arrays that an event may change, by name, with padding."""
        return self._arrays

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
        """Bytes of a row in all arrays, without its slot in the key map and its pages."""
        pages = 0 if self.pages is None else 8
        return pages + sum(int(array[0].nbytes) for array in (self.keys, *self.padded().values()))

    @property
    def page_bytes(self) -> int:
        """Bytes of the pages in use."""
        return 0 if self.pages is None else self.pages.nbytes

    def sections(self, count: int) -> dict[str, np.ndarray]:
        """The first `count` rows, without padding: views, and copies of the rings.

        They are keys, factors [count, k], bias, the state of the optimiser, and the history.
        """
        return self.rows(0, count)

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop), as `sections`."""
        names = row_sections(self.spec, self.side)
        found = self.rings(np.arange(start, stop, dtype=np.uint32), names)
        found["keys"] = self.keys[start:stop]
        for name, array in self.padded().items():
            found[name] = unpadded(name, array[start:stop], self.spec.k)
        return {name: found[name] for name in names}

    def rings(self, rows: np.ndarray, names: Iterable[str], short: bool = False) -> dict[str, np.ndarray]:
        """Copies of those sections of `names` that are rings, for rows uint32[n]; see
        `Pages.dense`.

        They have all places, or those up to the last one with an event in any row if `short`.
        """
        rings = [name for name in names if name in self.ring_names]
        if self.pages is None or not rings:
            return {}
        seen = np.zeros(len(rows), np.uint32)
        known = rows != NO_ROW
        seen[known] = self.pages.seen[rows[known]]
        length = self.pages.length
        width = min(int(seen.max(initial=0)), length) if short else length
        return self.pages.dense(rows, seen, rings, width)

    def read(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `backend.Backend.read`."""
        plain = [name for name in names if name not in RING]
        return read_rows(self.padded(), rows, plain, self.spec.k) | self.rings(rows, names, short=True)

    def load_sections(self, sections: dict[str, np.ndarray], count: int) -> None:
        """Fills an empty table with `count` rows, and rebuilds its map.

        `sections` has the names and shapes of `sections()`.

        Raises:
            ValueError: names or shapes differ, a key repeats, or the rows do not fit. The table is
                still empty.
        """
        if count > self.capacity:
            raise ValueError(f"load_sections: {count} rows, the table holds {self.capacity}")
        views = self.sections(count)
        keymap = self.map_of(sections, views, count)
        for name, view in views.items():
            if name not in RING:
                view[:] = sections[name]
        if self.pages is not None:
            self.pages.fill(count, sections)
        self.keymap, self.allocated = keymap, count
