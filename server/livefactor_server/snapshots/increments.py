"""An incremental snapshot: what differs from its parent, an earlier snapshot in the same folder.

Its manifest is that of a whole snapshot of the same state, and so is its root hash. In place of the
three tensor files it has one file with rows that changed. Its parent may be incremental itself.

    magic, 8 bytes │ frames │ index, JSON │ bytes of the index, 8 │ SHA-256 of all before │ magic

A frame belongs to a section. It has the numbers of changed rows, uint32 and ascending, and their
bytes. A row that the parent lacks counts as changed. In the sections with remembered events the
rows have lengths of their own, uint32, between the numbers and the bytes. A section beside the rows
is taken in chunks of CHUNK_BYTES, and a chunk counts as a row. Each part begins at a multiple of 8.

The index has the parent's id and root hash, the number of parents up to a whole snapshot (`depth`),
the bytes of all incremental files of the chain (`chain_bytes`), and for each section its frames:
[number of rows, where the numbers, the lengths and the bytes begin, how many bytes].
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.digest import SectionHasher
from livefactor.snapshots.files import CHANGES_FILE
from livefactor.snapshots.format import ITEM_BYTES, Manifest, Place
from livefactor.snapshots.sections import SIDES, bounded_spec, row_sections

CHUNK_BYTES = 256
MAGIC = b"lvfincr1"
_END = struct.Struct("<Q32s8s")
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Sink(Protocol):
    """Where the bytes of an incremental file go."""

    def append(self, data: bytes | memoryview) -> None:
        """Writes the next bytes."""


class TooMuch(Exception):
    """So much changed that a whole snapshot is better."""


class Frame(NamedTuple):
    """Changed rows of a section: their numbers, where each one's bytes begin, and how many.

    `offsets` and `lengths` count bytes of the incremental file, int64[n] each.
    """

    rows: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True, slots=True)
class Shape:
    """How a section is divided into rows.

    Attributes:
        unit: bytes of a row, or of an element if the rows have lengths of their own.
        ragged: the section `seen_count` that the lengths follow from, and the most events of a row.
    """

    unit: int
    ragged: tuple[str, int] | None = None


def shapes_of(manifest_spec: bytes, places: tuple[Place, ...]) -> dict[str, Shape]:
    """How each section of a state is divided into rows, by name."""
    spec = bounded_spec(manifest_spec)
    ragged = {
        f"{side}.{section.name}": (f"{side}.seen_count", section.shape[0])
        for side in SIDES
        for section in row_sections(spec, side)
        if section.ragged
    }
    shapes = {}
    for place in places:
        unit = ITEM_BYTES[place.dtype]
        if place.name in ragged:
            shapes[place.name] = Shape(unit, ragged[place.name])
        elif place.file == "state.safetensors":
            shapes[place.name] = Shape(CHUNK_BYTES)
        else:
            shapes[place.name] = Shape(unit * int(np.prod(place.shape[1:], dtype=np.int64)))
    return shapes


def spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers starts[i], starts[i] + 1, ... of each i, lengths[i] of them, int64."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def as_bytes(data: object) -> np.ndarray:
    """A buffer as uint8[n]."""
    return np.frombuffer(data, np.uint8)  # type: ignore[call-overload, no-any-return]


class ChangesWriter:
    """Writes the file of an incremental snapshot."""

    def __init__(self, sink: Sink, bytes_max: int) -> None:
        self._sink, self._bytes_max = sink, bytes_max
        self._hash = hashlib.sha256()
        self.size = 0
        self._frames: dict[str, list[list[int]]] = {}
        self._append(MAGIC)

    def _append(self, data: bytes | memoryview) -> int:
        at = self.size
        self._sink.append(data)
        self._hash.update(data)
        self.size += len(data)
        return at

    def _part(self, array: np.ndarray) -> int:
        view = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if not view.size:
            return self.size
        at = self._append(view.data)
        self._append(bytes(-self.size % 8))
        return at

    def frame(self, name: str, rows: np.ndarray, data: np.ndarray, lengths: np.ndarray | None = None) -> None:
        """Writes the bytes `data` of changed rows.

        Raises:
            TooMuch: more changed than the file may hold.
        """
        at = self._part(rows.astype("<u4"))
        lengths_at = at if lengths is None else self._part(lengths.astype("<u4"))
        self._frames.setdefault(name, []).append([len(rows), at, lengths_at, self._part(data), data.nbytes])
        if self.size > self._bytes_max:
            raise TooMuch

    def finish(self, parent: Manifest, depth: int, chain_bytes: int) -> None:
        """Writes the index."""
        index = {
            "chain_bytes": chain_bytes + self.size, "depth": depth, "frames": self._frames,
            "parent": parent.snapshot_id, "parent_root": parent.root_hash.hex(),
        }  # fmt: skip
        data = json.dumps(index, sort_keys=True).encode()
        self._append(data)
        self._sink.append(_END.pack(len(data), self._hash.digest(), MAGIC))


class Changes:
    """The file of an incremental snapshot, open for reading."""

    def __init__(self, data: np.ndarray, is_checked: bool = True) -> None:
        """`data` is the whole file, uint8[n]. Its bytes are compared with their hash, or not.

        Raises:
            SnapshotInvalid: it is damaged.
        """
        self.data = data
        end = len(data) - _END.size
        if end < len(MAGIC):
            raise SnapshotInvalid(CHANGES_FILE, "ends early")
        size, digest, magic = _END.unpack(data[end:].tobytes())
        if magic != MAGIC or size > end or data[: len(MAGIC)].tobytes() != MAGIC:
            raise SnapshotInvalid(CHANGES_FILE, "is no incremental snapshot")
        if is_checked and hashlib.sha256(data[:end].data).digest() != digest:
            raise SnapshotInvalid(CHANGES_FILE, "the bytes differ from the hashed ones")
        index: dict[str, Any] = json.loads(data[end - size : end].tobytes())
        self.parent, self.parent_root = str(index["parent"]), bytes.fromhex(index["parent_root"])
        self.depth, self.chain_bytes = int(index["depth"]), int(index["chain_bytes"])
        self._frames: dict[str, list[list[int]]] = index["frames"]

    def frames(self, name: str, shape: Shape, start: int, stop: int) -> Iterator[Frame]:
        """Yields the changed rows of a section from row `start` to before row `stop`."""
        for count, rows_at, lengths_at, data_at, _ in self._frames.get(name, ()):
            rows = self._numbers(rows_at, count)
            if not count or rows[0] >= stop or rows[-1] < start:
                continue
            lengths = np.full(count, shape.unit, np.int64)
            if shape.ragged is not None:
                lengths = self._numbers(lengths_at, count).astype(np.int64)
            offsets = data_at + np.cumsum(lengths) - lengths
            first, last = np.searchsorted(rows, [start, stop])
            yield Frame(rows[first:last].astype(np.int64), offsets[first:last], lengths[first:last])

    def _numbers(self, at: int, count: int) -> np.ndarray:
        return self.data[at : at + 4 * count].view("<u4")


@dataclass(frozen=True, slots=True)
class Level:
    """An incremental snapshot of a chain."""

    manifest: Manifest
    changes: Changes


class Chain:
    """A whole snapshot and the incremental ones after it: the state of the last one, by rows.

    Attributes:
        manifest: that of the last one.
        depth, chain_bytes: those of the last one, 0 if it is whole.
    """

    def __init__(self, base: Manifest, tensors: dict[str, np.ndarray], levels: list[Level]) -> None:
        """`tensors` has the tensor files of the whole snapshot by name, uint8[n] each."""
        self.manifest = levels[-1].manifest if levels else base
        self.depth = levels[-1].changes.depth if levels else 0
        self.chain_bytes = levels[-1].changes.chain_bytes if levels else 0
        self.shapes = shapes_of(self.manifest.spec, self.manifest.layout.places)
        self._places = {tensor.place.name: tensor.place for tensor in base.tensors}
        self._tensors, self._levels = tensors, levels
        self._starts: dict[str, np.ndarray] = {}

    def rows_of(self, name: str) -> int:
        """The number of rows of a section of rows."""
        side = name.split(".", 1)[0]
        return self.manifest.users if side == "users" else self.manifest.items

    def _base(self, name: str) -> np.ndarray:
        place = self._places[name]
        return self._tensors[place.file][place.offset : place.offset + place.nbytes]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """The bytes of rows of a section whose rows have one length, uint8[stop - start, unit]."""
        shape = self.shapes[name]
        found = np.zeros((stop - start, shape.unit), np.uint8)
        if shape.unit:
            own = self._base(name).reshape(-1, shape.unit)[start:stop]
            found[: len(own)] = own
        for level in self._levels:
            for rows, offsets, _ in level.changes.frames(name, shape, start, stop):
                if len(rows):
                    data = level.changes.data[offsets[0] : offsets[-1] + shape.unit]
                    found[rows - start] = data.reshape(len(rows), shape.unit)
        return found

    def lengths(self, name: str, start: int, stop: int) -> np.ndarray:
        """The bytes of each row of a section with remembered events, int64[stop - start]."""
        shape = self.shapes[name]
        assert shape.ragged is not None
        counts, most = shape.ragged
        return lengths_of(self.rows(counts, start, stop), most, shape.unit)

    def events(self, name: str, start: int, stop: int) -> np.ndarray:
        """The bytes of rows of a section with remembered events, end to end, uint8[any]."""
        shape = self.shapes[name]
        lengths = self.lengths(name, start, stop)
        level_of = np.full(stop - start, -1)
        offsets = np.zeros(stop - start, np.int64)
        own = self._base_starts(name)
        known = max(0, min(stop, len(own) - 1) - start)
        offsets[:known] = own[start : start + known]
        for number, level in enumerate(self._levels):
            for rows, at, _ in level.changes.frames(name, shape, start, stop):
                level_of[rows - start], offsets[rows - start] = number, at
        found = np.zeros(int(lengths.sum()), np.uint8)
        ends = np.cumsum(lengths)
        for number in np.unique(level_of):
            mine = level_of == number
            data = self._base(name) if number < 0 else self._levels[number].changes.data
            _copy_elements(found, ends[mine] - lengths[mine], data, offsets[mine], lengths[mine], shape.unit)
        return found

    def _base_starts(self, name: str) -> np.ndarray:
        """Where the events of each row begin in the whole snapshot, in bytes, int64[rows + 1]."""
        shape = self.shapes[name]
        assert shape.ragged is not None
        counts, most = shape.ragged
        key = f"{counts} {shape.unit}"
        if key not in self._starts:
            raw = self._base(counts).reshape(-1, 4)
            self._starts[key] = np.append(0, np.cumsum(lengths_of(raw, most, shape.unit)))
        return self._starts[key]

    def small(self, name: str) -> np.ndarray:
        """The bytes of a section beside the rows, uint8[any]."""
        found = self._base(name) if name in self._places else np.empty(0, np.uint8)
        for level in self._levels:
            size = next(t.place.nbytes for t in level.manifest.tensors if t.place.name == name)
            padded = resized(found, -(-size // CHUNK_BYTES) * CHUNK_BYTES, size).reshape(-1, CHUNK_BYTES)
            for rows, offsets, _ in level.changes.frames(name, self.shapes[name], 0, len(padded)):
                data = level.changes.data[offsets[0] : offsets[-1] + CHUNK_BYTES]
                padded[rows] = data.reshape(-1, CHUNK_BYTES)
            found = padded.reshape(-1)[:size]
        return found

    def pieces(self, rows_max: int) -> Iterator[tuple[Place, int, np.ndarray]]:
        """Yields the state in pieces: a section, where the bytes begin in it, and the bytes."""
        for tensor in self.manifest.tensors:
            place, shape = tensor.place, self.shapes[tensor.place.name]
            if place.file == "state.safetensors":
                yield place, 0, self.small(place.name)
                continue
            at = 0
            for start in range(0, self.rows_of(place.name), rows_max):
                stop = min(start + rows_max, self.rows_of(place.name))
                read = self.rows if shape.ragged is None else self.events
                data = read(place.name, start, stop).reshape(-1)
                yield place, at, data
                at += data.nbytes


def lengths_of(counts: np.ndarray, most: int, unit: int) -> np.ndarray:
    """The bytes of rows with these numbers of events. `counts` has uint32 as uint8[n, 4]."""
    events = np.ascontiguousarray(counts).view("<u4").reshape(-1).astype(np.int64)
    return np.minimum(events, most) * unit


def resized(data: np.ndarray, capacity: int, size: int) -> np.ndarray:
    """A copy with `capacity` bytes: the first `size` ones of the data, and zeros."""
    made = np.zeros(capacity, np.uint8)
    kept = min(size, len(data))
    made[:kept] = data[:kept]
    return made


def _copy_elements(
    to: np.ndarray, to_at: np.ndarray, source: np.ndarray, at: np.ndarray, lengths: np.ndarray, unit: int
) -> None:
    """Copies runs of elements. Places and lengths count bytes and are multiples of `unit`."""
    kind = _UNSIGNED[unit]
    target = to.view(kind)
    whole = source[: len(source) // unit * unit].view(kind)
    target[spread(to_at // unit, lengths // unit)] = whole[spread(at // unit, lengths // unit)]


class Comparison:
    """Compares a state with a chain, piece by piece, and writes what differs."""

    def __init__(self, chain: Chain, writer: ChangesWriter) -> None:
        self._chain, self._writer = chain, writer
        self._row = dict.fromkeys(SIDES, 0)

    def rows(self, side: str, parts: list[tuple[str, memoryview]]) -> Iterator[tuple[str, np.ndarray]]:
        """Takes the next rows of a side, all sections of them.

        Yields the bytes that the chain has in these rows, section by section.

        Raises:
            TooMuch: more changed than the file may hold.
        """
        now = {name: as_bytes(data) for name, data in parts}
        count = now[f"{side}.keys"].nbytes // 8
        start = self._row[side]
        self._row[side] += count
        known = max(0, min(start + count, self._chain.rows_of(f"{side}.keys")) - start)
        for name, data in now.items():
            shape = self._chain.shapes[name]
            if shape.ragged is None:
                before = self._chain.rows(name, start, start + known)
                self._fixed(name, start, before, data.reshape(count, shape.unit))
            else:
                counts = now[shape.ragged[0]].reshape(-1, 4)
                before = self._chain.events(name, start, start + known)
                lengths = lengths_of(counts, shape.ragged[1], shape.unit)
                self._ragged(name, start, before, data, lengths)
            yield name, before.reshape(-1)

    def _fixed(self, name: str, start: int, before: np.ndarray, now: np.ndarray) -> None:
        known = len(before)
        if not now.shape[1]:
            return
        differs = _wide(before) != _wide(now[:known])
        changed = np.append(np.flatnonzero(differs.any(axis=1)), np.arange(known, len(now)))
        if changed.size:
            self._writer.frame(name, changed + start, now[changed])

    def _ragged(
        self, name: str, start: int, before: np.ndarray, now: np.ndarray, lengths: np.ndarray
    ) -> None:
        unit = self._chain.shapes[name].unit
        rows = self._chain.rows_of(name)
        known = max(0, min(start + len(lengths), rows) - start)
        old = self._chain.lengths(name, start, start + known)
        same = old == lengths[:known]
        ends, old_ends = np.cumsum(lengths), np.cumsum(old)
        size = lengths[:known][same] // unit
        kind = _UNSIGNED[unit]
        here = now.view(kind)[spread((ends[:known] - lengths[:known])[same] // unit, size)]
        there = before.view(kind)[spread((old_ends - old)[same] // unit, size)]
        differs = np.bincount(np.repeat(np.flatnonzero(same), size)[here != there], minlength=known)
        is_changed = np.ones(len(lengths), bool)
        is_changed[:known] = ~same | (differs[:known] > 0)
        changed = np.flatnonzero(is_changed)
        if changed.size:
            own = lengths[changed]
            data = now.view(kind)[spread((ends - lengths)[changed] // unit, own // unit)]
            self._writer.frame(name, changed + start, data, own)

    def small(self, name: str, data: memoryview) -> np.ndarray:
        """Takes a section beside the rows. Returns the bytes that the chain has in it."""
        now, before = as_bytes(data), self._chain.small(name)
        capacity = -(-len(now) // CHUNK_BYTES) * CHUNK_BYTES
        here = resized(now, capacity, len(now)).reshape(-1, CHUNK_BYTES)
        there = resized(before, capacity, len(now)).reshape(-1, CHUNK_BYTES)
        changed = np.flatnonzero((here != there).any(axis=1))
        if changed.size:
            self._writer.frame(name, changed, here[changed])
        return before


class Seen:
    """Follows the pass over a state: compares it, and hashes what the chain has."""

    def __init__(self, chain: Chain, writer: ChangesWriter) -> None:
        self._chain, self._comparison = chain, Comparison(chain, writer)
        self._hashers = {tensor.place.name: SectionHasher() for tensor in chain.manifest.tensors}

    def take(self, pieces: list[tuple[str, memoryview]]) -> None:
        """Takes the next rows of a side, all sections of them, or one section beside the rows.

        Raises:
            TooMuch: more changed than the file may hold.
        """
        side = pieces[0][0].split(".", 1)[0]
        if side in SIDES:
            for name, before in self._comparison.rows(side, pieces):
                self._hashers[name].update(before.data)
            return
        for name, data in pieces:
            self._hashers[name].update(self._comparison.small(name, data).data)

    def verifies(self) -> bool:
        """Whether the chain has the bytes that its manifest names, after the whole pass."""
        tensors = self._chain.manifest.tensors
        return all(self._hashers[each.place.name].finish() == each.blocks for each in tensors)


def _wide(rows: np.ndarray) -> np.ndarray:
    """Rows of bytes as rows of the widest whole numbers that fit."""
    unit = rows.shape[1]
    width = next(width for width in (8, 4, 2, 1) if not unit % width)
    return np.ascontiguousarray(rows).view(_UNSIGNED[width])
