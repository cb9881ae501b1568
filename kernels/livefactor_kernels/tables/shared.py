"""The tables of a model as another process reads them, in an arena (`simd/arena.py`).

`places_of` says where they lie. In the other process `model_at` gives what a reader of candidates
needs (`scoring/cpu_candidates.py`). It reads by the same version as threads of the first process
do. Nothing else is shared, and nothing is written.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from livefactor_kernels.simd.arena import is_shared, view
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.head import WORDS, Head, HeadReader
from livefactor_kernels.tables.keymap import SHARED_WORDS, Blocks


class Place(NamedTuple):
    """Where the rows of one side lie.

    Attributes:
        factors, bias, keymap: addresses.
        rows, width: shape of the factors.
        dtype: name of their type in NumPy.
    """

    factors: int
    bias: int
    keymap: int
    rows: int
    width: int
    dtype: str


class Places(NamedTuple):
    """Where a model lies: the head, the sums of its global mean, and both sides."""

    head: int
    sums: int
    users: Place
    items: Place


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


class SharedTable(NamedTuple):
    """The rows of one side of another process, as in `tables.cpu.Table`."""

    factors: np.ndarray
    bias: np.ndarray
    keymap: SharedMap


class SharedModel(NamedTuple):
    """A model of another process."""

    head: HeadReader
    sums: np.ndarray
    users: SharedTable
    items: SharedTable


def places_of(head: Head, sums: np.ndarray, users: Table, items: Table) -> Places | None:
    """Where a model lies, or None if not all of it is in the arena."""
    parts = [head.words, sums]
    for table in (users, items):
        if table.keymap.shared is None:
            return None
        parts += table.factors, table.bias, table.keymap.shared
    if not all(map(is_shared, parts)):
        return None
    return Places(_address(head.words), _address(sums), _place_of(users), _place_of(items))


def model_at(places: Places) -> SharedModel:
    """The model at these places of an attached arena."""
    head, sums = view(places.head, (WORDS,), np.uint64), view(places.sums, (2,), np.int64)
    return SharedModel(HeadReader(head), sums, _table_at(places.users), _table_at(places.items))


def _place_of(table: Table) -> Place:
    factors, shared = table.factors, table.keymap.shared
    assert shared is not None
    rows, width = factors.shape
    return Place(
        _address(factors), _address(table.bias), _address(shared), rows, width, factors.dtype.name
    )  # fmt: skip


def _table_at(place: Place) -> SharedTable:
    return SharedTable(
        view(place.factors, (place.rows, place.width), place.dtype),
        view(place.bias, (place.rows,), np.float32),
        SharedMap(view(place.keymap, (SHARED_WORDS,), np.uint64)),
    )


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
