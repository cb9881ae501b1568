"""The rows of one side in host memory (semantics: `tables/__init__.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livefactor_kernels.numbers.narrow import init_narrow_rows
from livefactor_kernels.numbers.random import INIT_DOMAIN, INIT_ROUNDING_DOMAIN, domain_key, init_rows
from livefactor_kernels.optimizers import initial_state, optimizer_sections
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.spec.model import FactorDtype, ModelSpec
from livefactor_kernels.tables import history_sections, read_rows, row_sections, unpadded
from livefactor_kernels.tables.keys import RowKeys


class Table(RowKeys):
    """The rows of one side of a model in host memory.

    Attributes:
        keys: uint64[cap].
        factors: [cap, k_padded] of dtype float32, float16, or uint16 (the bits of bfloat16).
            Columns from k on are 0.
        bias: float32[cap].
        state: float32 arrays [cap, ...] of `optimizers.optimizer_sections`, by name.
        history: arrays [cap, ...] of `history_sections`, by name.
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
            if name != "keys"
        }
        self.factors, self.bias = self._arrays["factors"], self._arrays["bias"]
        self.state = {name: self._arrays[name] for name in optimizer_sections(spec)}
        self.history = {name: self._arrays[name] for name in history_sections(spec, side)}

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
        """Bytes of a row in all arrays, without its slot in the key map."""
        return sum(array[0].nbytes for array in (self.keys, *self.padded().values()))

    def sections(self, count: int) -> dict[str, np.ndarray]:
        """Views of the first `count` rows, without padding.

        They are keys, factors [count, k], bias, the state of the optimiser, and the history.
        """
        views = {"keys": self.keys[:count]}
        for name, array in self.padded().items():
            views[name] = unpadded(name, array[:count], self.spec.k)
        return views

    def read(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Copies of the sections `names` of rows uint32[n], without padding. `NO_ROW` gives
        zeros.
        """
        return read_rows(self.padded(), rows, names, self.spec.k)

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
            view[:] = sections[name]
        self.keymap, self.allocated = keymap, count
