"""Evict: rows that no event has touched for long leave the tables (`model/eviction.py`).

A server writes the record when an eighth of the rows of a side is idle by the spec. The record says
after how many idle events rows leave. So its effect follows from the log alone, whenever it was
written. The tables begin anew with the rows that are left (`model/compaction.py`), and the ids that
left have no labels. An id that comes back is new. A state whose spec has no `eviction.idle_events`
passes the record without effect, as does one that skips the record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from livefactor_server.changes.change import Change, Record
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class EvictChange(Change):
    """The body has the number of idle events."""

    idle_events: int
    body: bytes

    kind: ClassVar[Kind] = Kind.EVICT

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def of(cls, idle_events: int) -> EvictChange:
        """The change of rows that had no event for `idle_events` events."""
        return cls(idle_events, json.dumps({"idle_events": idle_events}).encode())

    @classmethod
    def from_log(cls, body: bytes) -> EvictChange:
        """Decodes a logged body."""
        try:
            return cls(int(json.loads(body)["idle_events"]), body)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the body of an EVICT record is damaged: {error}") from None

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Takes the rows and their labels out of the state.

        The live engine has prepared a state without the rows, so that readers need not wait for it.
        """
        for record in records:
            assert isinstance(record.change, EvictChange)
            state.evict(record.header.revision, record.change.idle_events)
            for labels, ids in zip(state.labels, state.evicted[1], strict=True):
                labels.drop(ids)

    def describe(self) -> str:
        """How long the rows were idle."""
        return f"rows without an event among the last {self.idle_events} leave"
