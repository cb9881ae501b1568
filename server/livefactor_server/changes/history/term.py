"""Term: says that a follower took the place of its leader.

It changes no table. The terms of a log grow: each one is above the one before. A log without such a
record has term 0. Who has seen a term refuses updates from a leader with an earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from livefactor_server.changes.change import Change, Record
from livefactor_server.log.acts import term_of
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class TermChange(Change):
    """The body is JSON with the term and the address of the leader before."""

    body: bytes

    kind: ClassVar[Kind] = Kind.TERM

    @classmethod
    def of(cls, term: int, followed: str) -> TermChange:
        """The change that begins a term. `followed` is the leader before."""
        return cls(json.dumps({"term": term, "followed": followed}, sort_keys=True).encode())

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def from_log(cls, body: bytes) -> TermChange:
        """Keeps the logged body."""
        return cls(body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Does nothing. A term is about who may write the log."""

    def describe(self) -> str:
        """The term, and the leader before."""
        return f"term {term_of(self.body)} begins; the leader before was {json.loads(self.body)['followed']}"
