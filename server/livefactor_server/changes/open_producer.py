"""Open producer: a producer takes a new epoch, which fences whoever sends with an older one. All of it is in the header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from livefactor_server.changes.change import Change, Record
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class OpenProducerChange(Change):
    """The request is an OpenProducerRequest; admission chooses the epoch."""

    body: bytes = b""

    kind: ClassVar[Kind] = Kind.OPEN_PRODUCER
    opens_producer: ClassVar[bool] = True

    @property
    def rows(self) -> int:
        """It has no rows."""
        return 0

    @classmethod
    def from_log(cls, body: bytes) -> OpenProducerChange:
        """The body is empty."""
        return cls(body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Set each producer's epoch."""
        for record in records:
            state.producers.open(record.header.producer, record.header.epoch)

    def describe(self) -> str:
        """The header says who and which epoch."""
        return "producer opens an epoch"
