"""Engine: records the backend, and the snapshot with which a restored model began.

It changes no table.
"""

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
    """The body is JSON with the fields kernel_semantics, backend, and base.

    `base` has the lineage, the revision and the root hash of the snapshot.
    """

    body: bytes

    kind: ClassVar[Kind] = Kind.ENGINE

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def restored(cls, base: Manifest, kernel_semantics: int, backend: str) -> EngineChange:
        """The change of a model that begins with the snapshot `base`."""
        origin = {"lineage": str(base.lineage), "revision": base.revision, "root_hash": base.root_hash.hex()}
        fields = {"kernel_semantics": kernel_semantics, "backend": backend, "base": origin}
        return cls(json.dumps(fields, sort_keys=True).encode())

    @classmethod
    def from_log(cls, body: bytes) -> EngineChange:
        """Decodes a logged body."""
        return cls(body)

    @property
    def fields(self) -> dict[str, Any]:
        """The decoded JSON of the body."""
        values: dict[str, Any] = json.loads(self.body)
        return values

    @property
    def base_root_hash(self) -> bytes:
        """Root hash of the snapshot with which the model began, 32 bytes."""
        return bytes.fromhex(self.fields["base"]["root_hash"])

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Checks that the record and the spec have the same kernel semantics.

        Raises:
            ReplayError: they differ.
        """
        for record in records:
            change = record.change
            assert isinstance(change, EngineChange)
            semantics = change.fields["kernel_semantics"]
            if semantics != state.spec.kernel_semantics:
                raise ReplayError(
                    f"kernel_semantics {semantics} begins at revision {record.header.revision}: "
                    "replay from the snapshot of that revision"
                )

    def describe(self) -> str:
        """Backend, kernel semantics and the revision of the base."""
        fields = self.fields
        return (
            f"backend {fields['backend']}, kernel_semantics {fields['kernel_semantics']}, "
            f"from a snapshot at revision {fields['base']['revision']}"
        )
