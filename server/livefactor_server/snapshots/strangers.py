"""Ids of which a state has learned nothing, so that it needs no replay to be without them.

Each id of an event, a vector, features or factors gets a row, and labels and marks have ids of
their own. So a state that knows an id nowhere has learned nothing of it. This does not hold for a
spec under which rows leave (eviction), or under which events count before an id has a row
(admission). What was rolled back, or taken back by its sender, has no effect either way.

A batch in quarantine has its ids in the log alone, and its revision in the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes import WireChange, change_of
from livefactor_server.changes.history import erase
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.log.columns import KIND, Columns
from livefactor_server.log.store import Kind, Log, Record
from livefactor_server.model import producers
from livefactor_server.model.quarantine import Quarantine
from livefactor_server.snapshots.records import present

Naming = tuple[Record, WireChange, np.ndarray]
"""A record, its change, and which of its rows name a subject, int64[n] with n > 0."""


def naming(
    groups: Iterable[Sequence[Record]], subjects: Subjects, until: int, check: Callable[[], None]
) -> Iterator[Naming]:
    """Yields the records up to `until` that name a subject. `check` is called for each group."""
    for group in groups:
        check()
        for record in _candidates(group, subjects, until):
            change = change_in(record)
            rows = np.empty(0, np.int64) if change is None else erase.named(change, subjects)
            if change is not None and rows.size:
                yield record, change, rows


def change_in(record: Record) -> WireChange | None:
    """The change of a record that a client sent, if it has rows left."""
    if record.erased_at and not record.rows:
        return None
    change = change_of(record.kind, record.body)
    return change if isinstance(change, WireChange) else None


def _candidates(records: Sequence[Record], subjects: Subjects, until: int) -> Sequence[Record]:
    if not isinstance(records, Columns):
        return records
    names = erase.name_subjects(records, ((until + 1, subjects),))
    names |= records.fields[:, KIND] != Kind.INTERACTIONS
    return [records[number] for number in names.nonzero()[0].tolist()]


def known(spec: ModelSpec, sections: Mapping[str, np.ndarray], log: Log, subjects: Subjects) -> str:
    """Why the state of a snapshot may have learned of subjects; "" if it has not.

    `sections` are those of the snapshot, whose log is `log`.
    """
    if spec.eviction.idle_events:
        return "rows leave its tables, so it may have learned of ids that it does not know any more"
    if spec.admission.sightings:
        return "it counts ids before they have rows"
    for side, ids in zip(("user", "item"), subjects.sides, strict=True):
        for name in (f"{side}s.keys", f"labels.{side}.keys"):
            if count := int(np.isin(ids, sections[name]).sum()):
                return f"it knows {count} of {len(ids)} {side}s"
    if np.isin(subjects.sides[1], sections["unavailable"]).any():
        return "it has a mark of an item"
    _, waiting = producers.decode(sections["producers"].tobytes())
    if any(not _has(log, each.revision) for each in Quarantine.decode(waiting).list()):
        return "a batch waited in quarantine that the log does not have any more"
    return ""


def _has(log: Log, revision: int) -> bool:
    is_lost = log.gap is not None and log.gap.first <= revision <= log.gap.last
    return revision > log.first_revision and not is_lost


def first_naming(
    log: Log, subjects: Subjects, last: int, check: Callable[[], None] = lambda: None
) -> int | None:
    """The first revision up to `last` that names a subject, as far as the log has the records.

    `check` is called again and again.

    Raises:
        LogError: the log is damaged.
    """
    found = naming(present(log, last), subjects, last, check)
    return next((record.revision for record, _, _ in found), None)
