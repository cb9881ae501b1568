"""Spec: the first record of a log. The initial state contains it, so its application only checks
it.
"""

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
    """The body is a ModelSpec message. Hashes use the logged bytes, which are never serialised
    again.
    """

    body: bytes

    kind: ClassVar[Kind] = Kind.SPEC

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def from_log(cls, body: bytes) -> SpecChange:
        """Keeps the logged body."""
        return cls(body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Checks that the state was made from this spec.

        Raises:
            ReplayError: the state has another spec.
        """
        if any(record.change.body != state.spec_body for record in records):
            raise ReplayError("the specs of the log and of the state differ")

    def describe(self) -> str:
        """Rule, loss and number of factors."""
        spec = spec_codec.decode(self.body)
        return f"spec: rule {spec.rule.name}, loss {spec.loss.name}, k {spec.k}"
