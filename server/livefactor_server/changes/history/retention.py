"""Retention: says which revisions are deleted from the log, before the first one is deleted.

It changes no table. `log/gaps.py` defines its body and what it vouches for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from livefactor_server.changes.change import Change, Record
from livefactor_server.log.gaps import Retained
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class RetentionChange(Change):
    """The body is that of `Retained`."""

    body: bytes

    kind: ClassVar[Kind] = Kind.RETENTION

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def from_log(cls, body: bytes) -> RetentionChange:
        """Keeps the logged body."""
        return cls(body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Does nothing, because the state has what the deleted records did."""

    def describe(self) -> str:
        """The deleted revisions, and the snapshot that stands in for them."""
        found = Retained.from_body(self.body)
        done = "archived" if found.archived else "deleted"
        return (
            f"revisions {found.first} to {found.last} are {done}; the snapshot at revision "
            f"{found.snapshot_revision} has root hash {found.root_hash.hex()}"
        )
