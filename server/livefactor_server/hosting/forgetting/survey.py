"""Counts the records of a log that name users or items, and estimates the cost of forgetting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from livefactor_server.changes.history import erase
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.changes.history.quarantine import LEARNED
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.metrics import REPLAY_RECORD_S
from livefactor_server.hosting.forgetting.archive import Archived
from livefactor_server.log.erasing import Left
from livefactor_server.log.store import Log, Record
from livefactor_server.snapshots import strangers
from livefactor_server.snapshots.records import present

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
        since: the revision of the snapshot with which the replay begins; 0 if it is the beginning.
        put_back: bytes of archived segments that are put back into the log.
    """

    records: int
    rows: int
    events: int
    revisions: int
    segments: int
    nbytes: int
    snapshots: int
    seconds: float
    since: int = 0
    put_back: int = 0


def survey(
    log: Log,
    subjects: Subjects,
    until: int,
    check: Callable[[], None],
    archived: Archived | None = None,
) -> Survey:
    """Counts up to the revision `until`. `check` is called again and again.

    `archived` has the records that the log lacks.

    Raises:
        LogError: the log or the archive is damaged.
    """
    records = rows = events = 0
    firsts, segments = [segment.first for segment in log.segments], set[int]()
    firsts += archived.firsts if archived is not None else []
    groups = chain(present(log, until), archived.groups() if archived else ())
    for record, _, found in strangers.naming(groups, subjects, until, check):
        records, rows = records + 1, rows + len(found)
        events += len(found) if record.kind in LEARNED else 0
        segments.add(max(each for each in firsts if each <= record.revision))
    return Survey(records, rows, events, tuple(sorted(segments)))


def left_of(record: Record, subjects: Subjects, erased_at: int) -> Left | None:
    """What an erasure at a revision leaves of a record. None if it takes nothing."""
    if record.revision == erased_at:
        return Left(b"", 0)
    change = strangers.change_in(record) if record.revision < erased_at else None
    rows = np.empty(0) if change is None else erase.named(change, subjects)
    if change is None or not rows.size:
        return None
    left = erase.without(change, rows)
    return Left(left.body, left.rows)


def cost(
    engine: Engine, found: Survey, snapshots: int, since: int = 0, archived: Archived | None = None
) -> Cost:
    """What it costs to forget what was found, if the replay begins at the revision `since`."""
    log, state = engine.log, engine.state
    learned, learned_s = engine.metrics.learned
    event_s = learned_s / learned if learned >= _KNOWN_EVENTS else EVENT_S
    put_back = archived.nbytes if archived is not None else 0
    sizes = {each.first: each.end or each.size for each in log.segments}
    sizes |= archived.sizes if archived is not None else {}
    nbytes = sum(size for first, size in sizes.items() if first in found.segments)
    revisions = log.last_revision - max(since, log.first_revision)
    # About so much of what the model has learned came with these revisions.
    events = state.events * revisions / max(1, log.last_revision)
    seconds = revisions * REPLAY_RECORD_S + events * event_s + (nbytes + put_back) / REWRITE_BYTES_S
    return Cost(
        found.records, found.rows, found.events, revisions, len(found.segments), nbytes, snapshots,
        round(seconds, 3), since, put_back,
    )  # fmt: skip
