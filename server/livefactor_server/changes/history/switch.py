"""Switch: gives the model another spec, from this revision on.

Let s be the spec of the last SWITCH record up to revision r, else that of the first record. Then
state(r) = apply(s, log[1..r]), as if s had been the spec from the beginning. So a switch does not
change a state step by step. Whoever wants the state at or after it makes one with the new spec from
the whole log, and a state with any spec passes a SWITCH record as one without effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from livefactor_server.changes.change import Change, Record
from livefactor_server.log.store import Kind
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class SwitchChange(Change):
    """The body is a ModelSpec message with all fields, as in the first record."""

    body: bytes

    kind: ClassVar[Kind] = Kind.SWITCH

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def from_log(cls, body: bytes) -> SwitchChange:
        """Keeps the logged body."""
        return cls(body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Does nothing, because the spec of a state never changes."""

    def describe(self) -> str:
        """The id, the rule, the loss and the number of factors of the new spec."""
        spec = spec_codec.decode(self.body)
        name = spec_codec.id_of(self.body)
        return f"switch to spec {name}: rule {spec.rule.name}, loss {spec.loss.name}, k {spec.k}"
