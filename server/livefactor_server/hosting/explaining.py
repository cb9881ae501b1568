"""Explains a score of a model: at its present revision, or at an earlier one by a replay.

It adds the last records that touched the row of the user or of the item. They are searched in the
log backwards, because the log has no index by id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from livefactor_server.changes import KeyedChange, change_of
from livefactor_server.changes.history.quarantine import LEARNED
from livefactor_server.engine.explaining import Explainer, Explanation
from livefactor_server.hosting.earlier import state_at
from livefactor_server.hosting.host import Hosted
from livefactor_server.log.store import Kind, Log, LogError, LogGap
from livefactor_server.snapshots.records import between
from livefactor_server.statuses import no_memory, unavailable

WINDOW = 4096
"""Records that are searched at a time."""

SEARCHED_MAX = 200_000
"""Maximum number of records that are searched for updates: a few seconds."""


_TOUCHING = *LEARNED, Kind.EMBEDDINGS, Kind.FACTORS, Kind.FACTOR_DELTAS


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be explained.

    Attributes:
        revision: None means the present one.
        events_max: maximum number of the user's events whose effects are computed.
        updates_max: maximum number of updates.
    """

    user_id: int
    item_id: int
    revision: int | None
    events_max: int
    updates_max: int


@dataclass(frozen=True, slots=True)
class Touch:
    """A record that touched a row: how many of its rows name the user, the item, and both."""

    revision: int
    kind: str
    producer: bytes
    epoch: int
    sequence: int
    time_us: int
    user_rows: int
    item_rows: int
    both_rows: int


@dataclass(frozen=True, slots=True)
class Explained:
    """An explanation with the updates, newest first, and the labels.

    Attributes:
        touches: the last updates.
        searched_from: the revision from which on the log was searched.
        labels: texts of items by key.
        user_label: text of the user, "" for none.
    """

    explanation: Explanation
    lineage: bytes
    touches: tuple[Touch, ...]
    searched_from: int
    labels: dict[int, str]
    user_label: str


def explain(hosted: Hosted, question: Question, check: Callable[[], None]) -> Explained:
    """Explains a score. `check` is called again and again; its exception ends the work.

    Raises:
        Refused: FAILED_PRECONDITION if the revision was not reached yet, or the log cannot give it
            any more. RESOURCE_EXHAUSTED if the memory does not suffice, or if the server is busy
            with another replay. UNAVAILABLE if the model has stopped.
    """
    engine = hosted.engine
    if engine.torn:
        raise unavailable("model: stopped by an internal error until a restart")
    try:
        if question.revision is None or question.revision == engine.revision:
            state = engine.state
            with engine.gate.reading():
                pin = state.backend.pin()
            with pin:
                found = Explainer(state, pin, check).explain(
                    question.user_id, question.item_id, question.events_max
                )
        else:
            earlier = state_at(hosted.folder, engine, question.revision, check)
            with earlier as state, state.backend.pin() as pin:
                found = Explainer(state, pin, check).explain(
                    question.user_id, question.item_id, question.events_max
                )
    except MemoryError:
        raise no_memory("the explanation") from None
    touches, searched_from = _touches(engine.log, question, found.revision, check)
    texts = engine.state.labels
    items = {question.item_id, *(each.item_id for each in found.events)}
    labels = {item: text for item in items if (text := texts[1].get(item))}
    return Explained(
        found, engine.state.lineage.bytes, touches, searched_from, labels, texts[0].get(question.user_id)
    )


def _touches(
    log: Log, question: Question, until: int, check: Callable[[], None]
) -> tuple[tuple[Touch, ...], int]:
    """The last updates up to revision `until` that name the user or the item, newest first."""
    found: list[Touch] = []
    high, oldest = until, max(log.first_revision + 1, until - SEARCHED_MAX + 1)
    while high >= oldest and len(found) < question.updates_max:
        check()
        low = max(oldest, high - WINDOW + 1)
        try:
            some = list(_touches_in(log, question, low, high))
        except LogGap:
            # A retention policy deleted older records, which may end inside this window.
            gap = log.gap
            if gap is None or not low <= gap.last < high:
                break
            low = oldest = gap.last + 1
            some = list(_touches_in(log, question, low, high))
        except LogError as error:
            raise unavailable(f"log: {error}") from None
        found += reversed(some)
        high = low - 1
    searched = high + 1 if len(found) <= question.updates_max else found[question.updates_max - 1].revision
    return tuple(found[: question.updates_max]), searched


def _touches_in(log: Log, question: Question, low: int, high: int) -> Iterator[Touch]:
    keys = [int(key).to_bytes(8, "little") for key in (question.user_id, question.item_id)]
    for records in between(log, low - 1, high):
        for record in records:
            if record.kind not in _TOUCHING:
                continue
            body = bytes(record.body)
            # A column of ids has their bytes as they are. So most records need no decoding.
            if keys[0] not in body and keys[1] not in body:
                continue
            change = change_of(record.kind, body)
            assert isinstance(change, KeyedChange)
            users, items = (
                np.asarray(ids) == np.uint64(key)
                for ids, key in zip(change.keys, (question.user_id, question.item_id), strict=True)
            )
            both = int((users & items).sum()) if users.size == items.size else 0
            if users.any() or items.any():
                yield Touch(
                    record.revision, Kind(record.kind).name, record.producer, record.epoch, record.sequence,
                    record.time_us, int(users.sum()), int(items.sum()), both,
                )  # fmt: skip
