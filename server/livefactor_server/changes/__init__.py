"""Changes: what a record of the log asks of a model. `state(r) = apply(spec, log[1..r])`.

    wire message ── from_wire ─▶ change, rejects ── body ─▶ log record
                                                               │
    state(r) ◀── apply ── place (keys → rows) ◀── from_log ────┘

A kind of change is one file: its columns, the check of a received message, the bytes that the log keeps, what it does
to a state, what `log show` says of it, and what admission reserves for it. `CHANGES` is the one table of them, by the
kind in a record's header. To add a kind, write its file, give it the next `Kind` of the log, and add it to `_ALL`.

A change's `body` is the message as it was received, unless rows of it were rejected; then it is the message of the
rows that are left. The list of rejected rows is in the record too, so that a retry gets the first answer even after
a replay. Marks (`Kind.MARK`) ask nothing: they take no revision and are outside the chain.
"""

from __future__ import annotations

from livefactor_server.changes.apply import apply, place
from livefactor_server.changes.availability import AvailabilityChange
from livefactor_server.changes.change import (
    NO_ROOM,
    Change,
    Header,
    KeyedChange,
    Placement,
    Record,
    ReplayError,
    WireChange,
)
from livefactor_server.changes.engine import EngineChange
from livefactor_server.changes.interactions import InteractionsChange
from livefactor_server.changes.labels import LabelsChange
from livefactor_server.changes.open_producer import OpenProducerChange
from livefactor_server.changes.rejects import NO_REJECTS, Rejects, decode_rejects, encode_rejects
from livefactor_server.changes.spec import SpecChange

__all__ = [
    "CHANGES",
    "NO_REJECTS",
    "NO_ROOM",
    "REJECT_TEXTS",
    "WIRE_CHANGES",
    "AvailabilityChange",
    "Change",
    "EngineChange",
    "Header",
    "InteractionsChange",
    "KeyedChange",
    "LabelsChange",
    "OpenProducerChange",
    "Placement",
    "Record",
    "Rejects",
    "ReplayError",
    "SpecChange",
    "WireChange",
    "apply",
    "change_of",
    "decode_rejects",
    "encode_rejects",
    "place",
]

_ALL: tuple[type[Change], ...] = (
    SpecChange,
    InteractionsChange,
    LabelsChange,
    AvailabilityChange,
    OpenProducerChange,
    EngineChange,
)

CHANGES: dict[int, type[Change]] = {kind.kind: kind for kind in _ALL}
"""Kind of a record -> its change."""

WIRE_CHANGES: dict[str, type[WireChange]] = {
    kind.field: kind for kind in _ALL if issubclass(kind, WireChange) and kind.field
}
"""Field of an ApplyUpdatesRequest -> its change."""

REJECT_TEXTS: dict[int, str] = {reason: text for kind in _ALL for reason, text in kind.reject_texts.items()}
"""Reject reason -> what it means, for people."""


def change_of(kind: int, body: bytes | memoryview) -> Change:
    """The change of a logged record. Raises ValueError or a subclass for a damaged body or a kind of a later version."""
    if kind not in CHANGES:
        raise ValueError(f"records of kind {kind} are of a later version of livefactor")
    return CHANGES[kind].from_log(bytes(body))
