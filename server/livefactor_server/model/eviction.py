"""Eviction: rows that no event has touched for long leave the tables.

With `eviction.idle_events` each row has the number of learned events of the model at its last one:
that of the record with it, counted with the record. A record EVICT (`changes/history/evict.py`)
takes out the rows whose number is smaller than that of the model by more than its idle events.
These rows stay: the last touched ones of each side, and those that someone has described with a
vector, features, or factors of another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_server.model.compaction import Kept, compacted

DESCRIPTIONS = ("described", "bagged", "start_events")
"""Sections of rows that are not 0 where someone has described a row."""

NAMES = ("touched.users", "touched.items")
"""The sections of a snapshot."""


class Touches:
    """The number of learned events at the last event of each row. The APPLY stage uses it."""

    def __init__(self, spec: ModelSpec) -> None:
        limits = spec.limits
        self._at = tuple(reserve((rows,), np.uint64) for rows in (limits.users_max, limits.items_max))

    def put(self, side: int, rows: np.ndarray, events: np.ndarray | int) -> None:
        """Rows uint32[n] were touched when the model had learned `events`, uint64[n] ascending or
        one number.
        """
        self._at[side][rows] = events

    def of(self, side: int, count: int) -> np.ndarray:
        """Those of the first `count` rows, uint64[count]. It is a view."""
        return self._at[side][:count]

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """Restores those of a snapshot."""
        for side, name in enumerate(NAMES):
            self._at[side][: len(sections[name])] = sections[name]

    def arrays(self, counts: tuple[int, int]) -> dict[str, np.ndarray]:
        """Copies for so many rows of each side, by the names of the sections of a snapshot."""
        return {name: self.of(side, counts[side]).copy() for side, name in enumerate(NAMES)}


def idle(backend: Backend, touches: Touches, events: int, idle_events: int) -> Kept:
    """Which published rows of users and of items may leave, bool[n] each."""
    found = []
    for side, count in enumerate(backend.published):
        at = touches.of(side, count)
        leaves = at < max(0, min(events - idle_events, int(at.max(initial=0))))
        found.append(_without_described(backend, side, leaves))
    return found[USERS], found[ITEMS]


def _without_described(backend: Backend, side: int, leaves: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(leaves).astype(np.uint32)
    names = [name for name in DESCRIPTIONS if name in backend.sections(side, 0)]
    if rows.size and names:
        for array in backend.read(side, rows, names).values():
            leaves[rows[array > 0]] = False
    return leaves


class Evicted(NamedTuple):
    """The backend and the touches without the rows, and the ids that left, uint64[any] each."""

    backend: Backend
    touches: Touches
    ids: tuple[np.ndarray, np.ndarray]


def evicted(
    spec: ModelSpec, backend_name: str, backend: Backend, touches: Touches, events: int, leaves: Kept
) -> Evicted:
    """A backend at the same revision without the rows that leave."""
    counts = backend.published
    rows = tuple(backend.sections(side, counts[side]) for side in (USERS, ITEMS))
    kept = ~leaves[USERS], ~leaves[ITEMS]
    left = compacted(spec, (rows[USERS], rows[ITEMS]), backend.state(), kept)
    made, told = create_backend(backend_name, spec), Touches(spec)
    for side in (USERS, ITEMS):
        made.load_sections(side, left.rows[side], len(left.rows[side]["keys"]))
    told.load({name: touches.of(side, counts[side])[kept[side]] for side, name in enumerate(NAMES)})
    made.load_state(left.beside | {"events": np.array([events], np.uint64)})
    made.advance(backend.revision, made.users.allocated, made.items.allocated)
    return Evicted(made, told, (rows[USERS]["keys"][~kept[USERS]], rows[ITEMS]["keys"][~kept[ITEMS]]))
