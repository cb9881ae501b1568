"""Engine: who computes from here on, and from which snapshot a restored model began. It changes no table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from livefactor.snapshots.format import Manifest
from livefactor_server.changes.change import Change, Record, ReplayError
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState


@dataclass(slots=True)
class EngineChange(Change):
    """body: JSON of kernel_semantics, backend, and base (lineage, revision and root hash of the snapshot)."""

    body: bytes

    kind: ClassVar[Kind] = Kind.ENGINE

    @property
    def rows(self) -> int:
        """It has no rows."""
        return 0

    @classmethod
    def restored(cls, base: Manifest, kernel_semantics: int, backend: str) -> EngineChange:
        """The change of a model that begins with the snapshot `base`."""
        origin = {"lineage": str(base.lineage), "revision": base.revision, "root_hash": base.root_hash.hex()}
        fields = {"kernel_semantics": kernel_semantics, "backend": backend, "base": origin}
        return cls(json.dumps(fields, sort_keys=True).encode())

    @classmethod
    def from_log(cls, body: bytes) -> EngineChange:
        """The change of a logged body."""
        return cls(body)

    @property
    def fields(self) -> dict[str, Any]:
        """The body as values."""
        values: dict[str, Any] = json.loads(self.body)
        return values

    @property
    def base_root_hash(self) -> bytes:
        """Root hash of the snapshot that the model began with, 32 bytes."""
        return bytes.fromhex(self.fields["base"]["root_hash"])

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Check that the state is computed by the record's semantics. Raises ReplayError."""
        for record in records:
            change = record.change
            assert isinstance(change, EngineChange)
            semantics = change.fields["kernel_semantics"]
            if semantics != state.spec.kernel_semantics:
                raise ReplayError(
                    f"kernel_semantics {semantics} begins at revision {record.header.revision}: "
                    "replay from its snapshot"
                )

    def describe(self) -> str:
        """Backend, semantics and base."""
        fields = self.fields
        return (
            f"backend {fields['backend']}, kernel_semantics {fields['kernel_semantics']}, "
            f"from a snapshot at revision {fields['base']['revision']}"
        )
