"""Counts the records of a log that name users or items, and estimates the cost of forgetting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from livefactor_server.changes import WireChange, change_of
from livefactor_server.changes.history import erase
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.changes.history.quarantine import LEARNED
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.metrics import REPLAY_RECORD_S
from livefactor_server.log.columns import KIND, Columns
from livefactor_server.log.erasing import Left
from livefactor_server.log.store import Kind, Log, Record
from livefactor_server.snapshots.replay import between

EVENT_S = 1e-6
"""Seconds that a replay takes for an event, before the server has learned enough to know."""

REWRITE_BYTES_S = 200e6
"""Bytes of a log that are rewritten in a second, about."""

_KNOWN_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class Survey:
    """What names the subjects.

    Attributes:
        records: number of records that name a subject.
        rows: number of rows in them that do.
        events: number of those rows that are events.
        segments: the first revisions of the segments with such records.
    """

    records: int
    rows: int
    events: int
    segments: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What it costs to forget.

    Attributes:
        records, rows, events: see `Survey`.
        revisions: number of revisions that are replayed.
        segments, nbytes: number and bytes of the segments that are rewritten.
        snapshots: number of snapshots that are removed.
        seconds: estimated time until the work is done.
    """

    records: int
    rows: int
    events: int
    revisions: int
    segments: int
    nbytes: int
    snapshots: int
    seconds: float


def survey(log: Log, subjects: Subjects, until: int, check: Callable[[], None]) -> Survey:
    """Counts up to the revision `until`. `check` is called again and again.

    Raises:
        LogError: the log is damaged, or it lacks records.
    """
    records = rows = events = 0
    firsts = [segment.first for segment in log.segments]
    segments = set[int]()
    for group in between(log, log.first_revision - 1, until):
        check()
        for record in _candidates(group, subjects, until):
            change = _change(record)
            found = 0 if change is None else len(erase.named(change, subjects))
            if found:
                records, rows = records + 1, rows + found
                events += found if record.kind in LEARNED else 0
                segments.add(max(each for each in firsts if each <= record.revision))
    return Survey(records, rows, events, tuple(sorted(segments)))


def left_of(record: Record, subjects: Subjects, erased_at: int) -> Left | None:
    """What an erasure at a revision leaves of a record. None if it takes nothing."""
    if record.revision == erased_at:
        return Left(b"", 0)
    change = _change(record) if record.revision < erased_at else None
    rows = np.empty(0) if change is None else erase.named(change, subjects)
    if change is None or not rows.size:
        return None
    left = erase.without(change, rows)
    return Left(left.body, left.rows)


def _candidates(records: Sequence[Record], subjects: Subjects, until: int) -> Sequence[Record]:
    if not isinstance(records, Columns):
        return records
    names = erase.name_subjects(records, ((until + 1, subjects),))
    names |= records.fields[:, KIND] != Kind.INTERACTIONS
    return [records[number] for number in names.nonzero()[0].tolist()]


def _change(record: Record) -> WireChange | None:
    if record.erased_at and not record.rows:
        return None
    change = change_of(record.kind, record.body)
    return change if isinstance(change, WireChange) else None


def cost(engine: Engine, found: Survey, snapshots: int) -> Cost:
    """What it costs to forget what was found."""
    log, state = engine.log, engine.state
    learned, learned_s = engine.metrics.learned
    event_s = learned_s / learned if learned >= _KNOWN_EVENTS else EVENT_S
    nbytes = sum(each.end or each.size for each in log.segments if each.first in found.segments)
    seconds = log.last_revision * REPLAY_RECORD_S + state.events * event_s + nbytes / REWRITE_BYTES_S
    revisions = log.last_revision - log.first_revision
    return Cost(
        found.records, found.rows, found.events, revisions, len(found.segments), nbytes, snapshots,
        round(seconds, 3),
    )  # fmt: skip
