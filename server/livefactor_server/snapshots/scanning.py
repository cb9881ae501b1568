"""A state that is frozen at one revision, and the pass over it that hashes all sections.

The pass reads the rows once, a few MiB at a time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from livefactor.snapshots import digest
from livefactor.snapshots import format as fmt
from livefactor.snapshots.format import Layout, Place, Tensor

USERS, ITEMS = 0, 1
PASS_BYTES = 4 << 20
"""Bytes of rows per read from the tables."""

Progress = Callable[[int, int], None]
"""Function of (bytes done, total bytes), called after every piece.

If it raises an exception, the work ends with this exception.
"""


class RowReader(Protocol):
    """The part of a pin (`livefactor_kernels.backend`) that a snapshot needs: the rows at one
    revision.
    """

    @property
    def counts(self) -> tuple[int, int]:
        """(number of user rows, number of item rows)."""

    def read_rows(self, side: int, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """The sections of rows [start, stop) of a side, by name.

        For example keys uint64[n], factors [n, k or more] in their stored type (bfloat16 as
        uint16), bias float32[n].
        """


@dataclass(slots=True)
class FrozenState:
    """The whole state at one revision, which later updates do not change.

    Attributes:
        spec_body: the logged bytes of the spec.
        log_hash: chain hash of the log at `revision`, 32 bytes.
        created_us: microseconds since 1970 UTC.
        pin: the rows at `revision`.
        small: sections beside the tables, one-dimensional, with the names of
            `livefactor.snapshots.sections.small_sections`.
        remembered: numbers of remembered events of users and items, with `history.paged`; else 0.
    """

    revision: int
    lineage: uuid.UUID
    spec_body: bytes
    log_hash: bytes
    log_hash_name: str
    created_us: int
    kernel_semantics: int
    model: str
    pin: RowReader
    small: Mapping[str, np.ndarray]
    remembered: tuple[int, int] = (0, 0)

    @property
    def layout(self) -> Layout:
        """The place of every section.

        Raises:
            ValueError: the state does not fit the format.
        """
        users, items = self.pin.counts
        lengths = {name: len(array) for name, array in self.small.items()}
        return fmt.layout(self.spec_body, users, items, lengths, self.remembered)


Sink = Callable[[Place, int, memoryview], None]
Watch = Callable[[list[tuple[str, memoryview]]], None]
"""Function of the next rows of a side, all sections of them, or of one section beside the rows."""


def root_hash_of(state: FrozenState, progress: Progress | None = None) -> tuple[bytes, tuple[Tensor, ...]]:
    """(root hash, sections) of a state. It reads the state in pieces and keeps no copy."""
    tensors = scan(state, state.layout, lambda place, offset, data: None, progress)
    return fmt.root_hash(state.revision, tensors), tensors


def scan(
    state: FrozenState, layout: Layout, sink: Sink, progress: Progress | None, watch: Watch = lambda _: None
) -> tuple[Tensor, ...]:
    """Hashes all sections in one pass over the rows.

    It passes each piece to `sink` (section, byte offset, bytes), and all pieces of the same rows
    together to `watch`.
    """
    hashers = {place.name: digest.SectionHasher() for place in layout.places}
    places = {place.name: place for place in layout.places}
    offsets = dict.fromkeys(places, 0)
    total, done = layout.nbytes, 0
    for pieces in _pieces(state, places):
        watch(pieces)
        for name, data in pieces:
            sink(places[name], offsets[name], data)
            hashers[name].update(data)
            offsets[name] += data.nbytes
            done += data.nbytes
        if progress is not None:
            progress(done, total)
    assert all(offsets[name] == place.nbytes for name, place in places.items()), offsets
    return tuple(Tensor(place, hashers[place.name].finish()) for place in layout.places)


def _pieces(state: FrozenState, places: dict[str, Place]) -> Iterator[list[tuple[str, memoryview]]]:
    for side, table in ((USERS, "users"), (ITEMS, "items")):
        mine = [place for place in places.values() if place.name.startswith(table + ".")]
        rows = state.pin.counts[side]
        step = max(1, PASS_BYTES * rows // max(1, sum(place.nbytes for place in mine)))
        for start in range(0, rows, step):
            columns = state.pin.read_rows(side, start, min(rows, start + step))
            yield [(place.name, _column(columns[place.name.split(".")[1]], place)) for place in mine]
    for name in sorted(state.small):
        array = state.small[name]
        place = places[name]
        if array.shape != place.shape:
            raise ValueError(f"{name}: expected shape {place.shape}, got {array.shape}")
        yield [(name, _bytes(array, place))]


def _column(column: np.ndarray, place: Place) -> memoryview:
    if column.ndim == 2:
        # Rows have padding in memory.
        column = column[:, : place.shape[1]]
    return _bytes(column, place)


def _bytes(array: np.ndarray, place: Place) -> memoryview:
    expected = np.dtype(fmt.NUMPY_DTYPES[place.dtype])
    if array.dtype != expected:
        raise ValueError(f"{place.name}: expected dtype {expected}, got {array.dtype}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
