"""Open producer: gives a producer a new epoch, which fences senders with an older epoch.

All data are in the record's header.
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
        """Decodes a logged body, which is empty."""
        return cls(body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Sets the epoch of each producer."""
        for record in records:
            state.producers.open(record.header.producer, record.header.epoch)

    def describe(self) -> str:
        """A fixed text. The header has the producer and the epoch."""
        return "producer opens an epoch"
