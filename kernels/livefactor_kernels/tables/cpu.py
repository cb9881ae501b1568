"""The rows of one side in host memory (semantics: `tables/__init__.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from livefactor_kernels.numbers.narrow import init_narrow_rows
from livefactor_kernels.numbers.random import INIT_DOMAIN, INIT_ROUNDING_DOMAIN, domain_key, init_rows
from livefactor_kernels.optimizers import initial_state, optimizer_sections
from livefactor_kernels.simd.memory import reserve, reserve_shared
from livefactor_kernels.spec.model import FactorDtype, ModelSpec
from livefactor_kernels.tables import (
    RINGS,
    STARTS,
    history_sections,
    read_rows,
    ring_length,
    row_sections,
    unpadded,
)
from livefactor_kernels.tables.keys import RowKeys
from livefactor_kernels.tables.pages import PageReader, Pages, Places
from livefactor_kernels.tables.recent import Recent

ANSWERING = (
    "factors", "bias", "seen_count", "visits", "neighbor_rows", "neighbor_counts", *STARTS, "bagged", "embedding",
)  # fmt: skip
"""Sections from which scores are computed. Those of events (`RINGS`) lie in pages."""

_NO_COUNTS = np.empty(0, np.uint32)


class RowReader:
    """Reads the rows of one side, also of another process (`tables/shared.py`).

    Attributes:
        keys: uint64[cap].
        factors: [cap, k_padded] of dtype float32, float16, or uint16 (the bits of bfloat16).
            Columns from k on are 0.
        bias: float32[cap].
        pages: the rings, None without histories.
        ring_names: names of the sections that are rings.
    """

    spec: ModelSpec
    side: int
    keys: np.ndarray
    factors: np.ndarray
    bias: np.ndarray
    pages: PageReader | None
    ring_names: tuple[str, ...]
    _arrays: dict[str, np.ndarray]

    def places(self, seen: np.ndarray, short: bool = False) -> Places:
        """The places of rows that have had `seen` uint32[n] events, in their form outside.

        If `short`, rows have as many places as the longest row has events.
        """
        counts = np.minimum(seen, np.uint32(ring_length(self.spec, self.side)))
        if short:
            return Places.dense(counts, int(counts.max(initial=0)))
        if self.spec.history.paged:
            return Places.end_to_end(counts)
        return Places.dense(counts, ring_length(self.spec, self.side))

    def read(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `backend.Backend.read`."""
        plain = self.read_plain(rows, names)
        rings = [name for name in names if name in self.ring_names]
        if self.pages is None or not rings:
            return plain
        seen = plain.get("seen_count")
        if seen is None:
            seen = self.read_plain(rows, ("seen_count",))["seen_count"]
        places = self.places(seen, short=True)
        columns = self.pages.read(rows, rings, places)
        return plain | {name: column.reshape(places.shape) for name, column in columns.items()}

    def recent(self, rows: np.ndarray, most: int) -> Recent:
        """See `backend.Backend.recent`."""
        assert self.pages is not None
        return self.pages.newest(rows, self.read_plain(rows, ("seen_count",))["seen_count"], most)

    def read_plain(self, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """As `read`, without events."""
        plain = [name for name in names if name not in self.ring_names]
        return read_rows(self._arrays, rows, plain, self.spec.k)


class Table(RowKeys, RowReader):
    """The rows of one side of a model in host memory.

    Attributes:
        state: float32 arrays [cap, ...] of `optimizers.optimizer_sections`, by name.
        history: arrays [cap, ...] of `history_sections` without the rings, by name.
        allocated: number of allocated rows, which may exceed the number of published rows.
    """

    def __init__(self, spec: ModelSpec, side: int) -> None:
        """Reserves the memory of one side (`USERS` or `ITEMS`).

        Raises:
            MemoryError, OSError: the system refuses the address space.
        """
        super().__init__(spec, side)
        self._arrays = {
            name: (reserve_shared if name in ANSWERING else reserve)(
                (self.capacity, *section.shape), section.dtype
            )
            for name, section in row_sections(spec, side).items()
            if name != "keys" and name not in RINGS
        }
        self.factors, self.bias = self._arrays["factors"], self._arrays["bias"]
        self.state = {name: self._arrays[name] for name in optimizer_sections(spec)}
        history = history_sections(spec, side)
        self.history = {name: self._arrays[name] for name in history if name not in RINGS}
        self.ring_names = tuple(name for name in history if name in RINGS)
        seen = self.history.get("seen_count")
        self.pages: Pages | None = None if seen is None else Pages(spec, side, seen)

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

    def reset(self, rows: np.ndarray) -> None:
        """Clears rows uint32[n] (`clearing.py`). Pages of their events are free after a restart."""
        for row in rows.tolist():
            for array in self._arrays.values():
                array[row] = 0
            self._initialise(self.keys[row : row + 1], row, row + 1)

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
        """The first `count` rows, without padding: views, and copies of the events.

        They are keys, factors [count, k], bias, the state of the optimiser, and the history
        (`tables.RINGS` has the form of events).
        """
        seen = self.history.get("seen_count", _NO_COUNTS)[:count]
        return self.in_order(self.plain(0, count), self.events(np.arange(count, dtype=np.uint32), seen))

    def in_order(self, *parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The sections of rows in order, each from one of `parts`."""
        found = {name: array for part in parts for name, array in part.items()}
        return {name: found[name] for name in row_sections(self.spec, self.side)}

    def plain(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Views of rows [start, stop), without padding and without events."""
        arrays = {"keys": self.keys, **self._arrays}
        return {name: unpadded(name, array[start:stop], self.spec.k) for name, array in arrays.items()}

    def events(self, rows: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
        """The sections of events of rows uint32[n] that had had `seen` uint32[n] events."""
        if self.pages is None:
            return {}
        places = self.places(seen)
        columns = self.pages.read(rows, self.ring_names, places)
        return {name: column.reshape(places.shape) for name, column in columns.items()}

    def load_sections(self, sections: dict[str, np.ndarray], count: int) -> None:
        """Fills an empty table with `count` rows, and rebuilds its map.

        `sections` has the names and shapes of `sections()`.

        Raises:
            ValueError: names or shapes differ, a key repeats, or the rows do not fit. The table is
                still empty.
        """
        if count > self.capacity:
            raise ValueError(f"load_sections: {count} rows, the table holds {self.capacity}")
        plain = self.plain(0, count)
        places = self.places(sections.get("seen_count", _NO_COUNTS))
        events = {
            name: np.empty(places.shape, section.dtype)
            for name, section in row_sections(self.spec, self.side).items()
            if name in self.ring_names
        }
        keymap = self.map_of(sections, plain | events, count)
        for name, view in plain.items():
            view[:] = sections[name]
        if self.pages is not None:
            self.pages.fill(sections, places)
        self.keymap, self.allocated = keymap, count
