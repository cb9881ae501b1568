"""Cuts a log into steps. A step is judged by the models as they are before it, and then learned.

Where steps end follows from the log alone, so that the same log is always judged alike. A step ends
with the record that brings it to STEP_EVENTS events. Before judging begins, steps are larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from livefactor.wire.columns import BagColumns
from livefactor_kernels.solve.features import Bags
from livefactor_server.changes.bodies import decode_bodies
from livefactor_server.changes.content.bags import context_bags, joined_bags
from livefactor_server.changes.events import Events
from livefactor_server.changes.history.quarantine import LEARNED, learned
from livefactor_server.judging import choice
from livefactor_server.log.columns import COUNT, KIND, Columns
from livefactor_server.log.store import Kind, Record
from livefactor_server.model.state import Meanings

STEP_EVENTS, STEP_EVENTS_UNJUDGED = 512, 16_384
"""Events of a step, and of one before judging begins. A larger record is a step of its own."""


class Step(NamedTuple):
    """Consecutive records.

    Attributes:
        parts: the records, in order.
        before: number of events of the log before the step.
        after: number of events of the log up to its end.
    """

    parts: list[Sequence[Record]]
    before: int
    after: int

    @property
    def revision(self) -> int:
        """The last revision of the step."""
        return self.parts[-1][-1].revision


class Steps:
    """Cuts the records of one log, which come in order."""

    def __init__(self, judge_from: int) -> None:
        """Judging begins at the first step that `judge_from` events or more precede."""
        self._judge_from = judge_from
        self._parts: list[Sequence[Record]] = []
        self._before = self._events = 0

    def add(self, records: Sequence[Record]) -> Iterator[Step]:
        """Yields the steps that end in `records`. What is left over begins the next step."""
        totals = self._events + np.cumsum(_sizes(records))
        start = 0
        while start < len(records):
            end = int(np.searchsorted(totals, self._target())) + 1
            self._parts.append(records[start:end])
            self._events = int(totals[min(end, len(records)) - 1])
            if end > len(records):
                return
            yield Step(self._parts, self._before, self._events)
            self._parts, self._before, start = [], self._events, end

    def _target(self) -> int:
        """The number of events at which the present step ends."""
        if self._before >= self._judge_from:
            return self._before + STEP_EVENTS
        return min(self._before + STEP_EVENTS_UNJUDGED, self._judge_from)


def _sizes(records: Sequence[Record]) -> np.ndarray:
    """The number of events of each record, int64[n]."""
    if isinstance(records, Columns):
        is_events = np.isin(records.fields[:, KIND], list(LEARNED))
        return np.where(is_events, records.fields[:, COUNT], 0).astype(np.int64)
    return np.array([each.rows if each.kind in LEARNED else 0 for each in records], np.int64)


class Judged(NamedTuple):
    """The n judged events of a step: keys uint64[n], and values float32[n] after event types.

    `context` are their bags, None if no event has any.
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    context: Bags | None = None


def judged_events(step: Step, seed: int, share: float, meanings: Meanings, ranks: bool) -> Judged:
    """The events of a step that are judged, by lot (`judging/choice.py`).

    Args:
        step: the step.
        seed: the seed of the champion's spec.
        share: the share of the events.
        meanings: what values and types mean under the champion's spec.
        ranks: leave out events with values of 0 or below, which are nothing to rank.
    """
    found = [piece for part in step.parts for piece in _pieces(part)]
    if not found:
        return Judged(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.float32))
    parts = [_judged(piece, seed, share, meanings, ranks) for piece in found]
    *columns, bags = zip(*parts, strict=True)
    context = None
    if any(each is not None for each in bags):
        sizes = [part.users.size for part in parts]
        context = joined_bags(
            [Bags.empty(n) if own is None else own for n, own in zip(sizes, bags, strict=True)]
        )
    users, items, values = (np.concatenate(column) for column in columns)
    return Judged(users, items, values, context)


class _Piece(NamedTuple):
    """Events of consecutive records, the first of which has `revision`."""

    revision: int
    events: Events
    users: np.ndarray
    items: np.ndarray
    context: BagColumns | None = None


def _pieces(records: Sequence[Record]) -> Iterator[_Piece]:
    """Decodes the interactions among the records, many at a time where they are columns."""
    done = 0
    while isinstance(records, Columns) and done < len(records):
        others = np.flatnonzero(records.fields[done:, KIND] != Kind.INTERACTIONS)
        some = records[done : done + int(others[0])] if others.size else records[done:]
        if len(some):
            events, users, items = decode_bodies(some)
            if len(events.ends):
                yield _Piece(some.revision, events, users, items)
                done += len(events.ends)
        if done < len(records):
            # A record of another kind, or one with an unusual body.
            yield from _pieces([records[done]])
            done += 1
    for record in records if not isinstance(records, Columns) else ():
        change = learned(record.kind, record.body) if record.rows else None
        if change is not None:
            columns = change.columns
            ends = np.array([len(columns)])
            events = Events(ends, columns.values, columns.weights, columns.event_types, columns.times_us)
            yield _Piece(record.revision, events, columns.user_ids, columns.item_ids, columns.context)


def _judged(piece: _Piece, seed: int, share: float, meanings: Meanings, ranks: bool) -> Judged:
    revision, events, users, items, context = piece
    sizes = np.diff(events.ends, prepend=0)
    revisions = np.repeat(np.arange(revision, revision + sizes.size, dtype=np.uint64), sizes)
    places = np.arange(users.size) - np.repeat(events.ends - sizes, sizes)
    values, _ = meanings.applied(users.size, events.event_types, events.values, events.weights)
    values = np.ones(users.size, np.float32) if values is None else values
    chosen = choice.event_lots(seed, revisions, places) < share
    if ranks:
        chosen &= values > 0
    bags = None if context is None else context_bags(context.select(chosen))
    return Judged(users[chosen], items[chosen], values[chosen], bags)
