"""The events of a log, and the spec at its end."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes import InteractionsChange, Rollback
from livefactor_server.changes.history.quarantine import learned
from livefactor_server.changes.history.rollback import Ranges
from livefactor_server.log.disk import FileIO
from livefactor_server.log.errors import LogMissing
from livefactor_server.log.recovery import cursor_at
from livefactor_server.log.store import Kind, Record
from livefactor_server.log.walk import Walk, list_segments
from livefactor_server.model import spec_codec


class Logged(NamedTuple):
    """The n events of a log that may train an encoder, in its order.

    Attributes:
        users, items: ids, uint64[n].
        revisions: the record of each event, int64[n].
        spec: the spec in force at the end.
        lineage: the uuid of the model's history.
        revision: the last revision.
    """

    users: np.ndarray
    items: np.ndarray
    revisions: np.ndarray
    spec: ModelSpec
    lineage: str
    revision: int


def log_events(folder: Path) -> Logged:
    """Reads a log, which a server may be writing.

    Events with a value of 0 or below are left out, as are those of negative types and those that a
    rollback took back. Records that a retention policy deleted are missing.

    Raises:
        LogMissing: the folder has no log.
        LogDamaged: a record is damaged.
        ValueError: a record cannot be decoded.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    changes: list[tuple[int, InteractionsChange]] = []
    spec_body = rollback = lineage = b""
    revision = 0
    for record in _records(folder):
        lineage, revision = lineage or bytes(record.previous[:16]), record.revision
        if (change := learned(record.kind, record.body)) is not None:
            changes.append((revision, change))
        elif record.kind in (Kind.SPEC, Kind.SWITCH):
            spec_body = bytes(record.body)
        elif record.kind == Kind.ROLLBACK:
            rollback = bytes(record.body)
    spec = spec_codec.decode(spec_body)
    parts = [_positive(change, at, spec) for at, change in changes]
    empty = np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64)
    users, items, revisions = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    kept = ~_are_skipped(revisions, Rollback.from_body(rollback).skipped if rollback else ())
    uuid_of = str(uuid.UUID(bytes=lineage))
    return Logged(users[kept], items[kept], revisions[kept], spec, uuid_of, revision)


def _records(folder: Path) -> Iterator[Record]:
    io = FileIO()
    segments = list_segments(io, folder)
    if not segments:
        raise LogMissing(f"no log in {folder}")
    index, cursor = cursor_at(io, segments, segments[0].first)
    for group in Walk(io, segments, cursor, index, holes=[]).groups():
        yield from group.records


def _positive(change: InteractionsChange, revision: int, spec: ModelSpec) -> tuple[np.ndarray, ...]:
    """The users, the items and the revision of the events of a change that are no dislikes."""
    columns = change.columns
    kept = np.ones(len(columns), bool)
    if columns.values is not None:
        kept &= columns.values > 0
    if columns.event_types is not None:
        kept &= ~np.isin(columns.event_types, [each.type for each in spec.event_types if each.negative])
    users, items = columns.user_ids[kept], columns.item_ids[kept]
    return users, items, np.full(len(users), revision, np.int64)


def _are_skipped(revisions: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Which of the ascending revisions are in ranges, bool[n]."""
    found = np.zeros(len(revisions), bool)
    for first, last in ranges:
        found[np.searchsorted(revisions, first) : np.searchsorted(revisions, last, "right")] = True
    return found
