"""Changes: the contents of log records. `state(r) = apply(spec at r, log[1..r])`.

    wire message ── from_wire ─▶ change, rejects ── body ─▶ log record
                                                               │
    state(r) ◀── apply ── place (keys → rows) ◀── from_log ────┘

Each kind of change has one file. The file defines the columns, the check of a received message, the
bytes in the log, the effect on a state, the text in `log show`, and the memory that admission
reserves. `CHANGES` maps the kind in a record's header to the class. To add a kind, write its file,
give it the next `Kind` of the log, and add it to `_ALL`.

The `body` of a change is the received message. If rows of the message were rejected, it is a
message with the remaining rows. The record also has the list of rejected rows, so that a retry gets
the first answer even after a replay.
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
from livefactor_server.changes.columns import apply_columns, skip_columns
from livefactor_server.changes.content.embeddings import EmbeddingsChange
from livefactor_server.changes.content.factors import FactorsChange
from livefactor_server.changes.content.features import DroppedFeaturesChange, FeaturesChange
from livefactor_server.changes.content.map_sums import MapSumsChange
from livefactor_server.changes.content.release import ReleaseChange
from livefactor_server.changes.deltas import DeltasChange
from livefactor_server.changes.engine import EngineChange
from livefactor_server.changes.history.erase import EraseChange, ErasedChange, EvidenceChange
from livefactor_server.changes.history.evict import EvictChange
from livefactor_server.changes.history.quarantine import AcceptedChange, DroppedChange, HeldChange
from livefactor_server.changes.history.retention import RetentionChange
from livefactor_server.changes.history.rollback import Rollback, RollbackChange, SkippedChange
from livefactor_server.changes.history.switch import SwitchChange
from livefactor_server.changes.history.term import TermChange
from livefactor_server.changes.interactions import InteractionsChange
from livefactor_server.changes.labels import LabelsChange
from livefactor_server.changes.open_producer import OpenProducerChange
from livefactor_server.changes.rejects import NO_REJECTS, Rejects, decode_rejects, encode_rejects
from livefactor_server.changes.short_updates import ShortUpdate
from livefactor_server.changes.spec import SpecChange

__all__ = [
    "CHANGES",
    "NO_REJECTS",
    "NO_ROOM",
    "REJECT_TEXTS",
    "WIRE_CHANGES",
    "AcceptedChange",
    "AvailabilityChange",
    "Change",
    "DeltasChange",
    "DroppedChange",
    "DroppedFeaturesChange",
    "EmbeddingsChange",
    "EngineChange",
    "EraseChange",
    "ErasedChange",
    "EvictChange",
    "EvidenceChange",
    "FactorsChange",
    "FeaturesChange",
    "Header",
    "HeldChange",
    "InteractionsChange",
    "KeyedChange",
    "LabelsChange",
    "MapSumsChange",
    "OpenProducerChange",
    "Placement",
    "Record",
    "Rejects",
    "ReleaseChange",
    "ReplayError",
    "RetentionChange",
    "Rollback",
    "RollbackChange",
    "ShortUpdate",
    "SkippedChange",
    "SpecChange",
    "SwitchChange",
    "TermChange",
    "WireChange",
    "apply",
    "apply_columns",
    "change_of",
    "decode_rejects",
    "encode_rejects",
    "place",
    "skip_columns",
]

_ALL: tuple[type[Change], ...] = (
    SpecChange,
    InteractionsChange,
    LabelsChange,
    AvailabilityChange,
    OpenProducerChange,
    EngineChange,
    SwitchChange,
    EmbeddingsChange,
    FeaturesChange,
    DroppedFeaturesChange,
    RetentionChange,
    RollbackChange,
    EraseChange,
    ErasedChange,
    EvidenceChange,
    TermChange,
    FactorsChange,
    DeltasChange,
    ReleaseChange,
    EvictChange,
    HeldChange,
    AcceptedChange,
    DroppedChange,
    MapSumsChange,
)

CHANGES: dict[int, type[Change]] = {kind.kind: kind for kind in _ALL}
"""Kind of a record -> class of its change."""

WIRE_CHANGES: dict[str, type[WireChange]] = {
    kind.field: kind for kind in _ALL if issubclass(kind, WireChange) and kind.field
}
"""Field of an ApplyUpdatesRequest -> class of its change."""

REJECT_TEXTS: dict[int, str] = {reason: text for kind in _ALL for reason, text in kind.reject_texts.items()}
"""Reason of a rejection -> text for people."""


def change_of(kind: int, body: bytes | memoryview) -> Change:
    """Decodes the change of a logged record.

    Raises:
        ValueError: the body is damaged, or a later version of livefactor wrote the kind. It may be
            a subclass.
    """
    if kind not in CHANGES:
        raise ValueError(f"kind {kind}: a later version of livefactor wrote this record")
    return CHANGES[kind].from_log(bytes(body))
