"""The marks of unavailable items.

    known item     one bit, at the item's row
    unknown id     a place in a hash map, until the model learns of the item
                   ids     uint64 by place; places are only appended
                   marked  whether a place has a mark; without one it is unused

A change costs its own size, however many marks there are. Places that are not used are dropped when
they outnumber the marks. The order of the marks in memory depends on the history. A snapshot has
the ids in ascending order, so equal marks have equal bytes.

Other processes read the bits, if the process has an arena (`simd/arena.py`). The marks have a head
of their own, because they change after the rows: its version is odd while bits change. Its revision
is the one whose marks the bits are, and its first count is the number of changes so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from livefactor_kernels.backend import Backend, RowTable
from livefactor_kernels.simd.memory import is_sharing, reserve_shared
from livefactor_kernels.tables import ITEMS, NO_ROW
from livefactor_kernels.tables.head import Changed, Head, HeadReader
from livefactor_kernels.tables.keymap import KeyMap

UNKNOWN_MARK_BYTES = 72
"""Memory of a mark of an unknown id after the map and the arrays have grown, in bytes."""

_UNUSED_MAX = 1024
"""Unused places beyond the number of marks, before places are dropped."""


class _Unknown:
    """Marks of ids that the model does not know. One thread writes. Any thread may call `has`."""

    def __init__(self, ids: np.ndarray) -> None:
        """Marks ids uint64[n], which are distinct."""
        self._map = KeyMap()
        self.ids, self.marked = ids, np.ones(len(ids), bool)
        self.places = self.count = len(ids)
        self._map.insert_missing(ids, 0)
        self.nbytes = self._measured()

    def _measured(self) -> int:
        return self._map.nbytes + self.ids.nbytes + self.marked.nbytes

    @property
    def sparse(self) -> bool:
        """Whether most places are unused."""
        return self.places > 2 * self.count + _UNUSED_MAX

    def present(self) -> np.ndarray:
        """The marked ids, uint64[count]."""
        return np.asarray(self.ids[: self.places][self.marked[: self.places]])

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Which of ids uint64[n] are marked, bool[n]."""
        places = self._map.find(ids)
        # The array is taken after the look-up, so it is long enough for all places.
        marked = self.marked
        found: np.ndarray = places != NO_ROW
        found[found] = marked[places[found]]
        return found

    def add(self, ids: np.ndarray) -> None:
        """Marks ids uint64[n], which are distinct."""
        needed = self.places + len(ids)
        if needed > len(self.ids):
            room = max(needed, 2 * len(self.ids)) - len(self.ids)
            self.ids = np.concatenate((self.ids, np.zeros(room, np.uint64)))
            self.marked = np.concatenate((self.marked, np.zeros(room, bool)))
        places, new = self._map.insert_missing(ids, self.places)
        self.ids[self.places : self.places + len(new)] = new
        self.places += len(new)
        self.count += len(ids) - int(np.count_nonzero(self.marked[places]))
        self.marked[places] = True
        self.nbytes = self._measured()

    def remove(self, ids: np.ndarray) -> np.ndarray:
        """Removes the marks of ids uint64[n], which are distinct.

        Returns which of them had one, bool[n].
        """
        had = self.has(ids)
        self.marked[self._map.find(ids[had])] = False
        self.count -= int(np.count_nonzero(had))
        return had


@dataclass(frozen=True, slots=True)
class FrozenMarks:
    """The marks at one revision, which later changes do not affect.

    Attributes:
        items: the table of items. Its keys never change.
        bits: the bits of its rows, uint8.
        ids: unknown ids by place.
        marked: which places have a mark.
    """

    items: RowTable
    bits: np.ndarray
    ids: np.ndarray
    marked: np.ndarray

    def keys(self) -> np.ndarray:
        """The ids of the unavailable items, uint64[n], in ascending order."""
        return np.sort(np.concatenate((self.items.keys[rows_of(self.bits)], self.ids[self.marked])))


class Marks:
    """The unavailable items of a model. The APPLY stage changes them, and holds the gate."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._items = backend, backend.items
        self._bits = reserve_shared((backend.items.capacity // 8 + 1,), np.uint8)
        self._head = Head() if is_sharing() else None
        self._changes = 0
        self._seen: np.ndarray | None = None
        self._unknown: _Unknown | None = None
        self._published = backend.published[ITEMS]

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the marks."""
        return self._items.allocated // 8 + (self._unknown.nbytes if self._unknown else 0)

    @property
    def unknown(self) -> int:
        """Number of marks of unknown ids."""
        return self._unknown.count if self._unknown else 0

    def are_marked_unknown(self, ids: np.ndarray) -> np.ndarray:
        """Which of ids uint64[n] have a mark and were unknown when they got it, bool[n].

        Any thread may call it.
        """
        unknown = self._unknown
        return np.zeros(len(ids), bool) if unknown is None else unknown.has(ids)

    def put(self, ids: np.ndarray, available: bool) -> None:
        """Marks ids uint64[n] as available or not."""
        ids = np.unique(ids)
        rows = self._items.find(ids, self._published)
        is_known = rows != NO_ROW
        if is_known.any():
            self._set(rows[is_known], not available)
        ids = ids[~is_known]
        if not ids.size:
            return
        if not available:
            if self._unknown is None:
                self._unknown = _Unknown(np.empty(0, np.uint64))
            self._unknown.add(ids)
        elif self._unknown is not None:
            self._unknown.remove(ids)
            self._compact()

    @property
    def shared(self) -> dict[str, np.ndarray]:
        """What `SharedMarks` reads, by name; nothing without an arena."""
        return {} if self._head is None else {"head": self._head.words, "bits": self._bits}

    def publish(self) -> None:
        """Follows a new revision of the backend: moves the marks of unknown ids to the rows of
        items that are published since the last call.
        """
        self._move()
        if self._head is not None:
            self._head.close(self._backend.revision, self._changes, self._published)

    def _move(self) -> None:
        start, self._published = self._published, self._backend.published[ITEMS]
        if self._unknown is None or start == self._published:
            return
        had = self._unknown.remove(self._items.keys[start : self._published])
        if had.any():
            self._set(np.flatnonzero(had) + start, True)
            self._compact()

    def _set(self, rows: np.ndarray, value: bool) -> None:
        if self._head is not None:
            self._head.open()
        self._changes += 1
        places, bits = rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8)
        if value:
            np.bitwise_or.at(self._bits, places, bits)
        else:
            np.bitwise_and.at(self._bits, places, ~bits)
        self._seen = None

    def _compact(self) -> None:
        # Frozen marks keep the old arrays.
        assert self._unknown is not None
        if not self._unknown.count:
            self._unknown = None
        elif self._unknown.sparse:
            self._unknown = _Unknown(self._unknown.present())

    def bits(self) -> np.ndarray:
        """The bits of the published rows, uint8[n], which later changes do not affect.

        It is the same array until a mark changes. The caller holds the gate.
        """
        if self._seen is None:
            self._seen = self._bits[: (self._published + 7) // 8].copy()
        return self._seen

    def freeze(self) -> FrozenMarks:
        """The present marks. The caller holds the gate."""
        unknown = self._unknown
        if unknown is None:
            return FrozenMarks(self._items, self.bits(), np.empty(0, np.uint64), np.empty(0, bool))
        places = unknown.places
        return FrozenMarks(self._items, self.bits(), unknown.ids[:places], unknown.marked[:places].copy())

    def load(self, ids: np.ndarray) -> None:
        """Sets the marks of a snapshot. The items are published, and nothing is marked.

        `ids` uint64[n] has the ids of unavailable items.
        """
        self._published = self._backend.published[ITEMS]
        self.put(np.array(ids, np.uint64), available=False)
        self.publish()


class SharedMarks:
    """The marks of a model of another process. Any thread may call it."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        """`arrays` are those of `Marks.shared`."""
        self._head, self._bits = HeadReader(arrays["head"]), arrays["bits"]
        self._seen: tuple[int, np.ndarray] = -1, np.empty(0, np.uint8)

    def bits(self, revision: int) -> np.ndarray:
        """As `Marks.bits`, at a revision.

        Raises:
            Changed: the marks are those of another revision.
        """
        version = self._head.version()
        changes, published = self._head.counts
        if self._head.revision != revision:
            raise Changed
        seen = self._seen
        if seen[0] != changes:
            seen = changes, self._bits[: (published + 7) // 8].copy()
        self._head.check(version)
        self._seen = seen
        return seen[1]


def rows_of(bits: np.ndarray) -> np.ndarray:
    """The rows whose bits uint8[n] are set, uint32[m], in ascending order."""
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).astype(np.uint32)
