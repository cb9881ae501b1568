"""Places and applies records. Live records, recovery and audit use the same two functions.

Both take any number of consecutive records. The grouping of records changes no bit. Larger groups
need fewer calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, groupby

import numpy as np

from livefactor_kernels.backend import RowTable
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_kernels.tables.pairs import known_rows
from livefactor_server.changes.change import Change, KeyedChange, Placement, Places, Record
from livefactor_server.model.producers import Outcome
from livefactor_server.model.sightings import Sightings
from livefactor_server.model.state import ModelState


def place(state: ModelState, changes: Sequence[Change]) -> list[Placement | None]:
    """Allocates table rows for the keys of `changes`, in order of first appearance.

    Returns None for changes without keys. The LOG stage calls it after admission has checked that
    the new rows fit.
    """
    keyed = [change for change in changes if isinstance(change, KeyedChange)]
    runs = [keyed] if state.placed is None else [[*run] for _, run in groupby(keyed, _is_sighting)]
    placements = chain.from_iterable(_place(state, run) for run in runs if run)
    return [next(placements) if isinstance(change, KeyedChange) else None for change in changes]


def _place(state: ModelState, changes: Sequence[KeyedChange]) -> list[Placement]:
    keys = [change.keys for change in changes]
    if len(keys) == 1:
        users, items = keys[0]
        ends = np.array([users.size]), np.array([items.size])
        places = place_keys(state, users, items, *ends, _is_sighting(changes[0]))
        return [Placement(places, 0, slice(0, users.size), slice(0, items.size))]
    user_ends, item_ends = (list(accumulate(each[side].size for each in keys)) for side in (USERS, ITEMS))
    users, items = (np.concatenate([each[side] for each in keys]) for side in (USERS, ITEMS))
    ends = np.array(user_ends), np.array(item_ends)
    places = place_keys(state, users, items, *ends, _is_sighting(changes[0]))
    spans = zip(_spans(user_ends), _spans(item_ends), strict=True)
    return [Placement(places, number, *span) for number, span in enumerate(spans)]


def _is_sighting(change: KeyedChange) -> bool:
    return change.is_sighting


def _spans(ends: list[int]) -> list[slice]:
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def place_keys(
    state: ModelState,
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    user_ends: np.ndarray,
    item_ends: np.ndarray,
    is_sighting: bool,
) -> Places:
    """Allocates table rows for the keys of m consecutive records.

    Args:
        state: the state.
        user_ids, item_ids: the keys, uint64[any] each.
        user_ends, item_ends: numbers of keys up to and with each record, int64[m].
        is_sighting: whether new keys may have to wait for their rows (`KeyedChange`).
    """
    users, items = state.backend.users, state.backend.items
    if (rows := known_rows(users, items, user_ids, item_ids)) is not None:
        user_counts, item_counts = (np.full(len(user_ends), table.allocated) for table in (users, items))
        return Places(user_ends, item_ends, *rows, user_counts, item_counts)
    if is_sighting and state.placed is not None:
        user_rows, user_counts = _admit(state.placed, USERS, users, user_ids, user_ends)
        item_rows, item_counts = _admit(state.placed, ITEMS, items, item_ids, item_ends)
        ids = user_ids, item_ids
        return Places(user_ends, item_ends, user_rows, item_rows, user_counts, item_counts, ids)
    user_rows, user_counts = _allocate(users, user_ids, user_ends)
    item_rows, item_counts = _allocate(items, item_ids, item_ends)
    return Places(user_ends, item_ends, user_rows, item_rows, user_counts, item_counts)


def _allocate(table: RowTable, keys: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the keys, uint32[n], and the size of the table after each record, int64[m]."""
    before = table.allocated
    rows = table.allocate(keys)
    return rows, _sizes(table, before, rows, ends)


def _admit(
    placed: Sightings, side: int, table: RowTable, keys: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `_allocate`, but new keys get rows only when they were seen often enough, else NO_ROW."""
    before = table.allocated
    rows = table.find(keys, before)
    unknown = np.flatnonzero(rows == NO_ROW)
    new = unknown[placed.admit(side, keys[unknown])]
    if new.size:
        rows[new] = table.allocate(keys[new])
    return rows, _sizes(table, before, rows, ends)


def _sizes(table: RowTable, before: int, rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The size of a table after each record, int64[m]. `rows` uint32[n] may have `NO_ROW`."""
    sizes = np.full(len(ends), before)
    if table.allocated > before:
        needed = np.where(rows == NO_ROW, 0, rows.astype(np.int64) + 1)
        # A batch whose rows were all rejected is empty.
        starts = np.concatenate(([0], ends[:-1]))
        filled = starts < ends
        sizes[filled] = np.maximum.reduceat(needed, starts[filled])
        sizes = np.maximum(np.maximum.accumulate(sizes), before)
    return sizes


def apply(state: ModelState, records: Sequence[Record]) -> None:
    """Applies consecutive records, which continue the revision and the hash chain of the state.

    The APPLY stage calls it under the gate, so that no reader sees a state between two records.

    Raises:
        ReplayError: a record does not fit the state before it.
    """
    _check_order(state, records)
    for kind, run in _by_kind(records):
        kind.apply(state, run)
        if state.touches is not None:
            _touch(state, run)
        if not issubclass(kind, KeyedChange):
            state.backend.advance(run[-1].header.revision)
        state.marks.publish()
        for record in run:
            _settle(state, record)


def _touch(state: ModelState, records: Sequence[Record]) -> None:
    """Rows of records without events count as touched by the last event before them."""
    for _, change, placement in records:
        if placement is not None and not change.has_events and state.touches is not None:
            for side, rows in ((USERS, placement.user_rows), (ITEMS, placement.item_rows)):
                state.touches.put(side, rows[rows != NO_ROW], state.events)


def _by_kind(records: Sequence[Record]) -> Iterator[tuple[type[Change], Sequence[Record]]]:
    """Consecutive records of one kind each, with their kind."""
    if len(records) == 1:
        yield type(records[0].change), records
        return
    for kind, group in groupby(records, lambda record: type(record.change)):
        yield kind, list(group)


def _check_order(state: ModelState, records: Sequence[Record]) -> None:
    revision, chain = state.revision, state.log_hash
    for record in records:
        header = record.header
        assert header.revision == revision + 1, (header.revision, revision)
        assert header.previous == chain, (header.revision, header.previous, chain)
        revision, chain = header.revision, header.hash


def _settle(state: ModelState, record: Record) -> None:
    """Stores the outcome of the record for retries, and sets the revision of the state."""
    header, change = record.header, record.change
    if header.producer and not change.opens_producer:
        outcome = Outcome(
            sequence=header.sequence,
            revision=header.revision,
            accepted=change.rows if header.accepted is None else header.accepted,
            rejected_count=header.rejects.count,
            rejects=header.rejects.listed,
            salt=header.salt,
            received_hash=header.received_hash,
            is_held=header.is_held,
        )
        state.producers.record(header.producer, outcome)
    state.revision, state.log_hash = header.revision, header.hash
