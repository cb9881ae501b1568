"""Checkpoints: signed statements of what a model was at a revision.

A checkpoint names a model, its lineage, a revision, and the two hashes there: the root hash of the
state, and the chain hash of the log, which covers all records up to the revision. So who keeps a
checkpoint can tell later whether the history before it was changed. The signature says who made it
(Ed25519). The server signs, and `livefactor verify` checks signatures.

A checkpoint is a JSON object with sorted keys. What is signed is the same text without the
signature, after the line `livefactor-checkpoint 1`.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.format import Manifest

FILE = "checkpoint"
BYTES_MAX = 4096
_HEAD = b"livefactor-checkpoint 1\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a model was at a revision, and who says so.

    Attributes:
        root_hash, log_hash: 32 bytes each. log_hash_name: the hash function of the log.
        created_us: when the snapshot was taken, microseconds since 1970 UTC.
        signature: 64 bytes.
    """

    model: str
    lineage: uuid.UUID
    revision: int
    root_hash: bytes
    log_hash: bytes
    log_hash_name: str
    created_us: int
    signature: bytes = b""

    @classmethod
    def of(cls, manifest: Manifest) -> Checkpoint:
        """An unsigned checkpoint of a snapshot."""
        return cls(
            manifest.model, manifest.lineage, manifest.revision, manifest.root_hash, manifest.log_hash,
            manifest.log_hash_name, manifest.created_us,
        )  # fmt: skip

    def _fields(self) -> dict[str, Any]:
        return {
            "created_us": self.created_us, "lineage": str(self.lineage), "log_hash": self.log_hash.hex(),
            "log_hash_name": self.log_hash_name, "model": self.model, "revision": self.revision,
            "root_hash": self.root_hash.hex(),
        }  # fmt: skip

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is of."""
        return _HEAD + json.dumps(self._fields(), sort_keys=True).encode()

    def to_json(self) -> bytes:
        """The bytes of the file."""
        return (
            json.dumps(self._fields() | {"signature": self.signature.hex()}, sort_keys=True).encode() + b"\n"
        )

    @classmethod
    def from_json(cls, data: bytes) -> Checkpoint:
        """Read the bytes of a file, which may be hostile. Raises SnapshotInvalid."""
        try:
            if len(data) > BYTES_MAX:
                raise ValueError(f"more than {BYTES_MAX} bytes")
            fields = json.loads(data)
            made = cls(
                fields["model"], uuid.UUID(fields["lineage"]), fields["revision"],
                bytes.fromhex(fields["root_hash"]), bytes.fromhex(fields["log_hash"]),
                fields["log_hash_name"], fields["created_us"], bytes.fromhex(fields["signature"]),
            )  # fmt: skip
            # One content has one text, so a field that nobody reads cannot be added.
            if made.to_json() != data:
                raise ValueError("its text is not the one of its content")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SnapshotInvalid(FILE, f"is no checkpoint: {error}") from None
        return made

    def check_fits(self, manifest: Manifest) -> None:
        """Check that it is about this snapshot. Raises SnapshotInvalid that names what differs."""
        other = Checkpoint.of(manifest)
        for name in ("lineage", "revision", "root_hash", "log_hash", "log_hash_name"):
            if getattr(self, name) != getattr(other, name):
                raise SnapshotInvalid(FILE, f"it is of another snapshot: its {name} differs")
