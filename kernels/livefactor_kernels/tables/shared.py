"""The tables of a model as another process reads them, in an arena (`simd/arena.py`).

`places_of` says where they lie. In the other process `SharedModel` has what readers need
(`scoring/cpu_candidates.py`, `pins/shared.py`). They read by the same version as threads of the
first process do. Nothing else is shared, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.simd.arena import is_shared, view
from livefactor_kernels.spec.model import ITEMS, USERS, ModelSpec
from livefactor_kernels.tables import NO_ROW, RINGS, history_sections
from livefactor_kernels.tables.cpu import ANSWERING, RowReader, Table
from livefactor_kernels.tables.head import Changed, HeadReader
from livefactor_kernels.tables.keymap import Blocks, find_kernel
from livefactor_kernels.tables.pages import PageReader
from livefactor_kernels.tables.state import ANSWERING as ANSWERING_STATE

SIDES = ("users", "items")


class Place(NamedTuple):
    """An array of the arena: its name here, its address, its shape, and its type in NumPy."""

    name: str
    address: int
    shape: tuple[int, ...]
    dtype: str


Places = tuple[Place, ...]


def places_of(arrays: Mapping[str, np.ndarray]) -> Places | None:
    """Where arrays lie, or None if not all of them are in the arena."""
    if not all(map(is_shared, arrays.values())):
        return None
    return tuple(
        Place(name, int(array.__array_interface__["data"][0]), array.shape, array.dtype.name)
        for name, array in arrays.items()
    )


def arrays_at(places: Places) -> dict[str, np.ndarray]:
    """The arrays at these places of an attached arena, by name."""
    return {place.name: view(place.address, place.shape, place.dtype) for place in places}


def model_places(head: HeadReader, state: Mapping[str, np.ndarray], tables: Sequence[Table]) -> Places | None:
    """Where a model lies, or None if not all that answers need is in the arena.

    `state` has the state beside the rows (`tables/state.py`).
    """
    arrays = {"head": head.words}
    arrays |= {f"state.{name}": state[name] for name in ANSWERING_STATE if name in state}
    for side, table in zip(SIDES, tables, strict=True):
        if table.keymap.shared is None:
            return None
        arrays |= {f"{side}.keys": table.keys, f"{side}.keymap": table.keymap.shared}
        arrays |= {f"{side}.{name}": array for name, array in table.padded().items() if name in ANSWERING}
        # Only a mix with similar users reads the events of items.
        if table.pages is not None and (table.side == USERS or table.spec.mix.neighbors):
            if not all(map(is_shared, table.pages.read_arrays)):
                return None
            arrays[f"{side}.pages"] = table.pages.fields
    return places_of(arrays)


class SharedMap:
    """A key map of another process (`tables/keymap.py`)."""

    def __init__(self, words: np.ndarray) -> None:
        self._words, self._changes = words, 0
        self._blocks = Blocks(words, [])

    @property
    def blocks(self) -> Blocks:
        """The present blocks: another object after each change of the map."""
        changes = int(self._words[-1])
        if changes != self._changes or not changes:
            self._changes, self._blocks = changes, Blocks(self._words, [])
        return self._blocks

    def find(self, keys: np.ndarray) -> np.ndarray:
        """See `tables.keymap.KeyMap.find`.

        Raises:
            Changed: the map has grown meanwhile.
        """
        keys, rows = np.require(keys, np.uint64, ("C", "A")), np.empty(len(keys), np.uint32)
        blocks = self.blocks
        find_kernel(blocks.address, address_of(keys), rows)
        if self.blocks is not blocks:
            raise Changed
        return rows


class SharedTable(RowReader):
    """The rows of one side of another process, as in `tables.cpu.Table`."""

    def __init__(self, spec: ModelSpec, side: int, arrays: Mapping[str, np.ndarray]) -> None:
        """`arrays` are those of `model_places`, by name."""
        prefix = f"{SIDES[side]}."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        self.spec, self.side = spec, side
        self.keymap, self.keys = SharedMap(own.pop("keymap")), own.pop("keys")
        self.pages = PageReader(own.pop("pages")) if "pages" in own else None
        self.ring_names = tuple(name for name in history_sections(spec, side) if name in RINGS)
        self.factors, self.bias, self._arrays = own["factors"], own["bias"], own

    def find(self, keys: np.ndarray, published: int) -> np.ndarray:
        """See `tables.keys.RowKeys.find`.

        Raises:
            Changed: the map has grown meanwhile.
        """
        rows = self.keymap.find(keys)
        rows[rows >= published] = NO_ROW
        return rows


class SharedModel:
    """A model of another process.

    Attributes:
        head: its head.
        state: the state beside the rows from which scores are computed, by name.
        users, items: its tables.
    """

    def __init__(self, spec: ModelSpec, arrays: Mapping[str, np.ndarray]) -> None:
        """`arrays` are those of `model_places`, by name; others are ignored."""
        self.head = HeadReader(arrays["head"])
        self.state = {
            name.removeprefix("state."): array for name, array in arrays.items() if name.startswith("state.")
        }
        self.users, self.items = SharedTable(spec, USERS, arrays), SharedTable(spec, ITEMS, arrays)

    def table(self, side: int) -> SharedTable:
        """The table of a side."""
        return (self.users, self.items)[side]
