"""Open producer: gives a producer a new epoch, which fences senders with an older epoch.

The header has the producer and the epoch. The body is the note that the client leaves, or empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from livefactor_server.changes.change import Change, Record
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class OpenProducerChange(Change):
    """A new epoch of a producer. The request is an OpenProducerRequest. Admission chooses the
    epoch.

    Attributes:
        body: the note, at most `NOTE_BYTES_MAX` bytes (livefactor.wire.limits). An empty one keeps
            the present note.
    """

    body: bytes = b""

    kind: ClassVar[Kind] = Kind.OPEN_PRODUCER
    opens_producer: ClassVar[bool] = True

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def from_log(cls, body: bytes) -> OpenProducerChange:
        """The change of a logged body."""
        return cls(bytes(body))

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Sets the epoch and the note of each producer."""
        for record in records:
            state.producers.open(record.header.producer, record.header.epoch, record.change.body)

    def describe(self) -> str:
        """Whether the producer leaves a note. The header has the producer and the epoch."""
        note = f" and leaves a note of {len(self.body)} bytes" if self.body else ""
        return f"producer opens an epoch{note}"
