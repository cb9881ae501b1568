"""Spec: the first record of a log. The state begins with it, so there is nothing left to apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from livefactor_server.changes.change import Change, Record, ReplayError
from livefactor_server.log.store import Kind
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class SpecChange(Change):
    """body: a ModelSpec message. It is hashed as it was logged and is never serialised again."""

    body: bytes

    kind: ClassVar[Kind] = Kind.SPEC

    @property
    def rows(self) -> int:
        """It has no rows."""
        return 0

    @classmethod
    def from_log(cls, body: bytes) -> SpecChange:
        """The spec of a logged body."""
        return cls(body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Check that the state was made from this spec. Raises ReplayError."""
        if any(record.change.body != state.spec_body for record in records):
            raise ReplayError("the log has another spec than the state")

    def describe(self) -> str:
        """Rule, loss and number of factors."""
        spec = spec_codec.decode(self.body)
        return f"spec: rule {spec.rule.name}, loss {spec.loss.name}, k {spec.k}"
