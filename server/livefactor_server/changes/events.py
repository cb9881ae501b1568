"""The events of consecutive interactions records, joined to one set of columns, and learning them.

Live records and replayed ones are joined before they are learned (`join`, `bodies.decode_bodies`).
From then on they take the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from livefactor.wire.columns import Columns
from livefactor_kernels.backend import Update
from livefactor_kernels.spec.model import Loss
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_kernels.update import UpdateRun
from livefactor_server.changes.change import Placement, Places
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class Events:
    """The events of m records, without their ids. A column that no record has is None.

    Attributes:
        ends: number of events up to and with each record, int64[m].
        values, weights: float32[n], 1 for the events of a record that has none.
        event_types: uint32[n], 0 for the events of a record that has none.
        times_us: int64[n], 0 for the events of a record that has none.
    """

    ends: np.ndarray
    values: np.ndarray | None
    weights: np.ndarray | None
    event_types: np.ndarray | None
    times_us: np.ndarray | None


def join(columns: Sequence[Columns], placements: Sequence[Placement]) -> tuple[Events, Places]:
    """Joins the columns and the placements of consecutive records. One record is not copied.

    The records were placed together, one after the other.
    """
    first, last = placements[0], placements[-1]
    assert last.places is first.places and last.number - first.number == len(placements) - 1
    whole, numbers = first.places, slice(first.number, last.number + 1)
    # An event has one user and one item.
    places = (
        whole
        if len(placements) == len(whole.user_ends)
        else Places(
            whole.user_ends[numbers] - first.users.start,
            whole.item_ends[numbers] - first.items.start,
            whole.user_rows[first.users.start : last.users.stop],
            whole.item_rows[first.items.start : last.items.stop],
            whole.user_counts[numbers],
            whole.item_counts[numbers],
            None
            if whole.ids is None
            else (
                whole.ids[USERS][first.users.start : last.users.stop],
                whole.ids[ITEMS][first.items.start : last.items.stop],
            ),
        )
    )
    sizes = [len(each) for each in columns]
    events = Events(
        places.user_ends,
        _joined([each.values for each in columns], sizes, np.float32(1)),
        _joined([each.weights for each in columns], sizes, np.float32(1)),
        _joined([each.event_types for each in columns], sizes, np.uint32(0)),
        _joined([each.times_us for each in columns], sizes, np.int64(0)),
    )
    return events, places


def _joined(columns: list[np.ndarray | None], sizes: list[int], default: np.generic) -> np.ndarray | None:
    if len(columns) == 1:
        return columns[0]
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [
            np.full(size, default) if column is None else column
            for column, size in zip(columns, sizes, strict=True)
        ]
    )


def learn(state: ModelState, revision: int, events: Events, places: Places) -> None:
    """Learns the events of consecutive records in one call of the backend.

    `revision` is that of the first record. The bits are those of one call per record.
    """
    if places.ids is not None:
        events, places = _admitted(state, events, places, places.ids)
    spec, ends, n = state.spec, events.ends, places.user_rows.size
    values = None if spec.loss == Loss.BPR else events.values
    values, weights = state.meanings.applied(n, events.event_types, values, events.weights)
    whole = Update(
        revision=revision + len(ends) - 1,
        user_rows=places.user_rows,
        item_rows=places.item_rows,
        values=values,
        weights=weights,
        user_count=int(places.user_counts[-1]),
        item_count=int(places.item_counts[-1]),
        times=events.times_us if spec.history.users else None,
    )
    if len(ends) == 1:
        state.backend.apply_all([whole])
    else:
        state.backend.apply_all(UpdateRun(whole, revision, ends, places.user_counts, places.item_counts))
    if state.touches is not None:
        at = state.events + np.repeat(ends, np.diff(ends, prepend=0))
        state.touches.put(USERS, places.user_rows, at)
        state.touches.put(ITEMS, places.item_rows, at)
    state.events += n


def _admitted(
    state: ModelState, events: Events, places: Places, ids: tuple[np.ndarray, np.ndarray]
) -> tuple[Events, Places]:
    """The events whose user and item have rows. The others count as sightings."""
    assert state.sightings is not None
    keep = np.ones(len(places.user_rows), bool)
    for side, rows in ((USERS, places.user_rows), (ITEMS, places.item_rows)):
        waits = rows == NO_ROW
        state.sightings.count(side, ids[side][waits])
        keep &= ~waits
    ends = np.concatenate(([0], np.cumsum(keep)))[places.user_ends]
    columns = (events.values, events.weights, events.event_types, events.times_us)
    left = (None if column is None else column[keep] for column in columns)
    users, items = places.user_rows[keep], places.item_rows[keep]
    return Events(ends, *left), Places(ends, ends, users, items, places.user_counts, places.item_counts)
