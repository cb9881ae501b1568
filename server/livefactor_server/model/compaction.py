"""Takes rows out of a model: the rows that are left move together and keep their order.

It works on the sections of both sides in their form outside the tables, and on the state beside
them (`livefactor_kernels.tables.state`). So it is the same for every backend: one backend gives its
sections, and a new one begins with the result. Row numbers in sections follow their rows.

    seen_rows of a user    events with an item that leaves are dropped. Those that are left take the
                           places from 0 on, oldest first, and seen_count is their number. A ring
                           without such an event stays as it is.
    seen_rows of an item   an event with a user that leaves names row 0, with value and weight 0, so
                           that it says nothing. seen_count stays: the item had the events.
    neighbor_rows          items that leave are dropped, and the others move up
    gram                   M = M - [x, 1] [x, 1]' for each row that leaves or has no event left, row
                           by row (`livefactor_kernels.tables.clearing`)
    mix                    the sums of popularity are added again, in the order of rows
    *.progress             the next row of a sweep follows its row

All else that the rows have given to others stays: other rows, the mean, weights of experts, and
context. If an item stays, a user stays, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from livefactor_kernels.reading import MIX, SQUARES, SUM
from livefactor_kernels.solve import GRAM
from livefactor_kernels.solve.prior import NEXT
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS, RINGS, USERS, ring_length
from livefactor_kernels.tables.clearing import clear_gram, rows_in_gram

_PROGRESS = {
    "prior.progress": ITEMS,
    "user_prior.progress": USERS,
    "features.item.progress": ITEMS,
    "features.user.progress": USERS,
}

Sections = dict[str, np.ndarray]
Kept = tuple[np.ndarray, np.ndarray]
"""Which rows of users and of items stay, bool[n] each."""


class Compacted(NamedTuple):
    """The sections of users and of items, and those beside the rows."""

    rows: tuple[Sections, Sections]
    beside: Sections


def compacted(
    spec: ModelSpec, rows: tuple[Sections, Sections], beside: Mapping[str, np.ndarray], kept: Kept
) -> Compacted:
    """The sections without the rows that do not stay.

    Args:
        spec: the spec, which has no replay.
        rows: the sections of users and of items (`Backend.sections`).
        beside: the state beside the rows (`Backend.state`).
        kept: which rows stay.
    """
    sides = [_side(spec, side, rows[side], kept) for side in (USERS, ITEMS)]
    left = {name: array.copy() for name, array in beside.items()}
    if GRAM in left:
        gram = left[GRAM].reshape(2, spec.k + 1, spec.k + 1)
        for side in (USERS, ITEMS):
            stays = kept[side].copy()
            stays[kept[side]] = _are_solved(sides[side])
            leaves = np.flatnonzero(~stays & _are_solved(rows[side]))
            clear_gram(gram, side, rows_in_gram(spec, rows[side].__getitem__, leaves))
    if MIX in left:
        items = sides[ITEMS]
        popularity = np.append(0.0, items["bias"][_are_solved(items)].astype(np.float64))
        left[MIX][SUM], left[MIX][SQUARES] = np.cumsum(popularity)[-1], np.cumsum(popularity**2)[-1]
    for name, side in _PROGRESS.items():
        if name in left:
            left[name][NEXT] = np.count_nonzero(kept[side][: left[name][NEXT]])
    return Compacted((sides[USERS], sides[ITEMS]), left)


def _side(spec: ModelSpec, side: int, rows: Sections, kept: Kept) -> Sections:
    found = {name: array[kept[side]] for name, array in rows.items() if name not in RINGS}
    if "seen_rows" in rows:
        found |= _rings(spec, side, rows, kept)
    if "neighbor_rows" in rows:
        found |= _followers(found["neighbor_rows"], found["neighbor_counts"], kept[ITEMS])
    return {name: np.ascontiguousarray(found[name]) for name in rows}


def _are_solved(rows: Sections) -> np.ndarray:
    """Which rows are part of the Gram matrix and of the sums of popularity, bool[n]."""
    solved: np.ndarray = rows["seen_count"] > 0
    return solved | (rows["start_events"] > 0) if "start_events" in rows else solved


def _numbers(kept: np.ndarray) -> np.ndarray:
    """The new number of each row that stays, uint32[n]; any number for the others."""
    numbers: np.ndarray = (np.cumsum(kept) - kept).astype(np.uint32)
    return numbers


def _followers(rows: np.ndarray, counts: np.ndarray, kept: np.ndarray) -> Sections:
    stays = (counts > 0) & kept[rows]
    order = np.argsort(~stays, axis=1, kind="stable")
    rows = np.where(stays, _numbers(kept)[rows], np.uint32(0))
    counts = np.where(stays, counts, np.float32(0.0))
    return {
        "neighbor_rows": np.take_along_axis(rows, order, axis=1),
        "neighbor_counts": np.take_along_axis(counts, order, axis=1),
    }


def _rings(spec: ModelSpec, side: int, rows: Sections, kept: Kept) -> Sections:
    """The rings of the rows that stay, and their seen_count."""
    length = ring_length(spec, side)
    own, other = kept[side], kept[1 - side]
    seen = rows["seen_count"]
    # The events of all rows end to end, with their rows and places.
    sizes = np.minimum(seen, np.uint32(length)).astype(np.int64)
    of = np.repeat(np.arange(len(seen)), sizes)
    places = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    names = [name for name in RINGS if name in rows]
    events = {name: _flat(rows[name], sizes, spec.history.paged)[own[of]] for name in names}
    of, places, seen = (np.cumsum(own) - 1)[of[own[of]]], places[own[of]], seen[own]
    stays = other[events["seen_rows"]]
    events["seen_rows"] = np.where(stays, _numbers(other)[events["seen_rows"]], np.uint32(0))
    if side == ITEMS:
        for name in ("seen_values", "seen_weights"):
            events[name] = np.where(stays, events[name], np.float32(0.0))
    elif not stays.all():
        loses = np.zeros(len(seen), bool)
        loses[of[~stays]] = True
        # A ring that was filled begins at its oldest event.
        begins = np.where(seen > length, seen % np.uint32(length), 0).astype(np.int64)
        ages = np.where(loses[of], (places - begins[of]) % length, places)
        order = np.lexsort((ages, of))
        order = order[stays[order]]
        events, of = {name: column[order] for name, column in events.items()}, of[order]
        seen = np.where(loses, np.bincount(of, minlength=len(seen)), seen).astype(np.uint32)
    sizes = np.minimum(seen, np.uint32(length)).astype(np.int64)
    return {"seen_count": seen} | {
        name: _outside(column, sizes, length, spec.history.paged) for name, column in events.items()
    }


def _flat(ring: np.ndarray, sizes: np.ndarray, is_paged: bool) -> np.ndarray:
    """The events of all rows, in the order of rows and places."""
    return ring if is_paged else ring[np.arange(ring.shape[1]) < sizes[:, None]]


def _outside(column: np.ndarray, sizes: np.ndarray, length: int, is_paged: bool) -> np.ndarray:
    """Events of all rows in the form that sections have outside the tables."""
    if is_paged:
        return column
    ring = np.zeros((len(sizes), length), column.dtype)
    ring[np.arange(length) < sizes[:, None]] = column
    return ring
