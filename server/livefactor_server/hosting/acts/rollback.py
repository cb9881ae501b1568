"""Decides which records a rollback skips, and carries it out.

`changes/history/rollback.py` says what that means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from livefactor_server.changes import Rollback
from livefactor_server.changes.history.quarantine import DECISIONS, decided
from livefactor_server.changes.history.rollback import SKIPPABLE, ranges_of
from livefactor_server.engine import promotion
from livefactor_server.hosting.earlier import Moment, revision_at
from livefactor_server.hosting.host import Hosted
from livefactor_server.log.store import Kind, Log, LogGap
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.records import between
from livefactor_server.snapshots.replay import skipped_at
from livefactor_server.statuses import later, precondition

CHECK_RECORDS = 10_000
"""Records between two calls of `check`."""


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of a producer with the sequences `first` to `last`."""

    producer: bytes
    first: int
    last: int


def to_moment(log: Log, moment: Moment) -> Rollback:
    """Skips every record after a moment, up to the last one of now.

    Raises:
        Refused: FAILED_PRECONDITION if there is nothing to skip. RESOURCE_EXHAUSTED if the log was
            not read yet.
    """
    _check_read(log)
    last = log.last_revision
    revision = moment.revision if moment.time_us is None else revision_at(log, moment.time_us)
    if not log.first_revision <= revision < last:
        raise precondition(
            f"rollback: expected a revision from {log.first_revision} on and below {last}, got {revision}"
        )
    skipped = ranges_of([*skipped_at(log, revision), (revision + 1, last)])
    return Rollback(skipped, skipped_at(log, last), revision)


def without(log: Log, batches: Sequence[Batches], check: Callable[[], None]) -> Rollback:
    """Skips the records of chosen batches. `check` is called again and again.

    Raises:
        Refused: FAILED_PRECONDITION if the log lacks one of the batches, or if nothing would
            change. RESOURCE_EXHAUSTED if the log was not read yet.
    """
    _check_read(log)
    last = log.last_revision
    wanted = {(each.producer, sequence) for each in batches for sequence in range(each.first, each.last + 1)}
    before = skipped_at(log, last)
    found: list[tuple[int, int]] = []
    held = set[int]()
    looked = 0
    first = log.first_revision if log.gap is None else log.gap.last
    try:
        for records in between(log, first, last):
            for record in records:
                is_wanted = record.kind in SKIPPABLE and (record.producer, record.sequence) in wanted
                # What was accepted from quarantine goes with its batch.
                is_decision = record.kind in DECISIONS and decided(record.body) in held
                if is_wanted or is_decision:
                    found.append((record.revision, record.revision))
                    wanted.discard((record.producer, record.sequence))
                if is_wanted and record.kind == Kind.HELD:
                    held.add(record.revision)
            looked += len(records)
            if looked >= CHECK_RECORDS:
                looked = 0
                check()
    except LogGap as gap:
        raise precondition(f"rollback: {gap}") from None
    if wanted:
        producer, sequence = min(wanted)
        missing = f"{producer.decode('utf-8', 'backslashreplace')}:{sequence}"
        raise precondition(f"rollback: the log has no batch {missing}, and {len(wanted)} are missing in all")
    skipped = ranges_of([*before, *found])
    if skipped == before:
        raise precondition("rollback: these batches are skipped already")
    return Rollback(skipped, before, None)


def roll_back(hosted: Hosted, rollback: Rollback, progress: promotion.Progress | None = None) -> int:
    """Skips records while the model serves. Returns the revision of the rollback.

    Raises:
        Refused: as `Engine.promote`, or FAILED_PRECONDITION if a challenger answers a share of the
            users, because it has learned the records, too.
    """
    if hosted.sharing is not None:
        raise precondition("model: a challenger answers a share of its users; settle the model first")
    engine = hosted.engine
    start = partial(
        replay.start_of, hosted.folder, engine.log, engine.state.backend_name, skipped=rollback.skipped
    )
    return engine.promote(engine.state.spec, start, progress, rollback)


def _check_read(log: Log) -> None:
    if log.switches_from:
        raise later("log: the server is still reading its earlier part after the start")
