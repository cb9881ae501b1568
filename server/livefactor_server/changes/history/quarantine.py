"""Quarantine: a batch that is unlike the others waits for a decision.

Three records do it. HELD has a batch of interactions. It is durable, and it changes no table. It
settles its producer, so the next sequence follows, and a retry gets the same answer, which says
that the batch is held. ACCEPTED has the rows of a held batch once more, and the state learns them
there, as interactions of that revision. DROPPED says that the rows will not be learned. So a replay
needs no memory of what was held, and a held batch is learned once or never.

Which batch is held depends on figures of the live server (`judging/screening.py`). The kind of the
record says how it was decided, so a state depends on the log alone.

The body of HELD is the length of a note (u32), the note, and the body of the interactions. The note
is JSON: why the batch is held. The body of ACCEPTED is the revision of the HELD record (u64) and
the body of the interactions that are learned. The body of DROPPED is that revision.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes.change import Change, Record, Room, WireChange
from livefactor_server.changes.interactions import InteractionsChange
from livefactor_server.changes.rejects import Rejects
from livefactor_server.log.store import Kind
from livefactor_server.model.quarantine import HELD_BYTES, Held
from livefactor_server.model.state import ModelState

_LENGTH = struct.Struct("<I")
_REVISION = struct.Struct("<Q")


@dataclass(slots=True)
class HeldChange(WireChange):
    """A held batch. `batch` has its rows, and `note` says why it is held."""

    batch: InteractionsChange
    note: bytes
    body: bytes

    kind: ClassVar[Kind] = Kind.HELD
    is_wrapped: ClassVar[bool] = True

    @property
    def rows(self) -> int:
        """Number of events that wait."""
        return self.batch.rows

    @property
    def named_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """See `WireChange.named_ids`."""
        return self.batch.keys

    @property
    def reason(self) -> dict[str, Any]:
        """The note: the name of a figure, its value, and the bound that it passes."""
        found: dict[str, Any] = json.loads(self.note)
        return found

    @property
    def room(self) -> Room:
        """See `Change.room`."""
        return Room(nbytes=HELD_BYTES)

    @classmethod
    def of(cls, batch: InteractionsChange, note: bytes) -> HeldChange:
        """The change that holds a batch."""
        return cls(batch, note, _LENGTH.pack(len(note)) + note + batch.body)

    @classmethod
    def from_wire(cls, body: bytes, spec: ModelSpec, rows_max: int) -> tuple[HeldChange, Rejects]:
        """No client sends it."""
        raise AssertionError("a held batch is never received")

    @classmethod
    def from_log(cls, body: bytes) -> HeldChange:
        """Decodes a logged body."""
        if len(body) < _LENGTH.size or len(body) < _LENGTH.size + _LENGTH.unpack_from(body)[0]:
            raise ValueError("the body of a HELD record is cut off")
        end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
        return cls(InteractionsChange.from_log(body[end:]), body[_LENGTH.size : end], body)

    def without_rows(self, rows: np.ndarray | list[int]) -> HeldChange:
        """See `WireChange.without_rows`."""
        return self.of(self.batch.without_rows(rows), self.note)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Notes the batches as undecided. The caller settles the producers."""
        for header, change, _ in records:
            state.quarantine.put(Held(header.revision, change.rows, len(change.body)))

    def describe(self) -> str:
        """Why it is held."""
        found = self.reason
        return f"in quarantine: {found['figure']} {found['value']:.4g} is above {found['bound']:.4g}"


@dataclass(slots=True)
class AcceptedChange(InteractionsChange):
    """The rows of a held batch, which are learned now.

    `held` is the revision of the HELD record.
    """

    held: int = 0

    kind: ClassVar[Kind] = Kind.ACCEPTED
    field: ClassVar[str] = ""

    @classmethod
    def of(cls, batch: InteractionsChange, held: int) -> AcceptedChange:
        """The change that accepts the rows of a batch."""
        return cls(batch.columns, _REVISION.pack(held) + batch.body, held)

    @classmethod
    def from_log(cls, body: bytes) -> AcceptedChange:
        """Decodes a logged body."""
        held = decided(body)
        return cls(wire.decode_interactions(body[_REVISION.size :]), body, held)

    def without_rows(self, rows: np.ndarray | list[int]) -> AcceptedChange:
        """See `WireChange.without_rows`."""
        return self.of(InteractionsChange.without_rows(self, rows), self.held)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Learns the rows. The batches are decided."""
        InteractionsChange.apply(state, records)
        for record in records:
            assert isinstance(record.change, AcceptedChange)
            state.quarantine.decide(record.change.held)

    def describe(self) -> str:
        """Which batch is learned."""
        return f"the batch in quarantine at revision {self.held} is learned"


@dataclass(slots=True)
class DroppedChange(Change):
    """The body is the revision of the HELD record."""

    held: int
    body: bytes

    kind: ClassVar[Kind] = Kind.DROPPED

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def of(cls, held: int) -> DroppedChange:
        """The change that drops a batch."""
        return cls(held, _REVISION.pack(held))

    @classmethod
    def from_log(cls, body: bytes) -> DroppedChange:
        """Decodes a logged body."""
        return cls(decided(body), body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """The batches are decided."""
        for record in records:
            assert isinstance(record.change, DroppedChange)
            state.quarantine.decide(record.change.held)

    def describe(self) -> str:
        """Which batch is dropped."""
        return f"the batch in quarantine at revision {self.held} is dropped"


def decided(body: bytes | memoryview) -> int:
    """The revision of the HELD record that an ACCEPTED or DROPPED record decides.

    Raises:
        ValueError: the body is cut off.
    """
    if len(body) < _REVISION.size:
        raise ValueError("the body of a decision on a held batch is cut off")
    return int(_REVISION.unpack_from(body)[0])


def learned(kind: int, body: bytes | memoryview) -> InteractionsChange | None:
    """The events that a logged record of this kind teaches, or None if it teaches none."""
    if kind == Kind.INTERACTIONS:
        return InteractionsChange.from_log(bytes(body))
    return AcceptedChange.from_log(bytes(body)) if kind == Kind.ACCEPTED else None


DECISIONS = frozenset({Kind.ACCEPTED, Kind.DROPPED})
"""Kinds of records that decide a held batch."""

LEARNED = frozenset({Kind.INTERACTIONS, Kind.ACCEPTED})
"""Kinds of records with events that the model learns."""
