"""Places and applies records. Live records, recovery and audit use the same two functions.

Both take any number of consecutive records. The grouping of records changes no bit. Larger groups
need fewer calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from livefactor_kernels.backend import RowTable
from livefactor_server.changes.change import Change, KeyedChange, Placement, Record
from livefactor_server.model.producers import Outcome
from livefactor_server.model.state import ModelState


def place(state: ModelState, changes: Sequence[Change]) -> list[Placement | None]:
    """Allocates table rows for the keys of `changes`, in order of first appearance.

    Returns None for changes without keys. The LOG stage calls it after admission has checked that
    the new rows fit.
    """
    keyed = [change for change in changes if isinstance(change, KeyedChange)]
    placements = iter(_place(state, keyed) if keyed else ())
    return [next(placements) if isinstance(change, KeyedChange) else None for change in changes]


def _place(state: ModelState, changes: Sequence[KeyedChange]) -> list[Placement]:
    columns = zip(*(change.keys for change in changes), strict=True)
    tables = state.backend.users, state.backend.items
    users, items = (_place_side(*each) for each in zip(tables, columns, strict=True))
    return [
        Placement(user_rows, item_rows, user_count, item_count)
        for (user_rows, user_count), (item_rows, item_count) in zip(users, items, strict=True)
    ]


def _place_side(table: RowTable, keys: Sequence[np.ndarray]) -> list[tuple[np.ndarray, int]]:
    """The rows of each change's keys, and the size of the table after the change."""
    ends = np.cumsum([len(each) for each in keys])
    starts = np.concatenate(([0], ends[:-1]))
    rows, sizes = allocate(table, np.concatenate(keys) if len(keys) > 1 else keys[0], starts, ends)
    places = zip(starts.tolist(), ends.tolist(), sizes.tolist(), strict=True)
    return [(rows[start:end], size) for start, end, size in places]


def allocate(
    table: RowTable, keys: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the keys, uint32[n], and the size of the table after each record, int64[m].

    Record r has the keys from `starts[r]` to `ends[r]`.
    """
    before = table.allocated
    rows = table.allocate(keys)
    sizes = np.full(len(ends), before)
    # A batch whose rows were all rejected is empty.
    filled = starts < ends
    if rows.size:
        sizes[filled] = np.maximum.reduceat(rows, starts[filled]).astype(np.int64) + 1
    return rows, np.maximum(np.maximum.accumulate(sizes), before)


def apply(state: ModelState, records: Sequence[Record]) -> None:
    """Applies consecutive records, which continue the revision and the hash chain of the state.

    The APPLY stage calls it under the gate, so that no reader sees a state between two records.

    Raises:
        ReplayError: a record does not fit the state before it.
    """
    _check_order(state, records)
    for kind, group in groupby(records, lambda record: type(record.change)):
        run = list(group)
        kind.apply(state, run)
        if not issubclass(kind, KeyedChange):
            state.backend.advance(run[-1].header.revision)
        state.marks.publish()
        for record in run:
            _settle(state, record)


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
            accepted=change.rows,
            rejected_count=header.rejects.count,
            rejects=header.rejects.listed,
            salt=header.salt,
            received_hash=header.received_hash,
        )
        state.producers.record(header.producer, outcome)
    state.revision, state.log_hash = header.revision, header.hash
