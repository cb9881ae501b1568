"""Signs snapshots, and compares checkpoints with snapshots and logs.

A checkpoint (`livefactor.snapshots.checkpoint`) stands beside the folder of its snapshot, in the
file <id>.signed. It is made when the snapshot is taken, so that a snapshot that somebody changes
later has none.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.checkpoint import FILE, Checkpoint
from livefactor_server.log.store import Log
from livefactor_server.snapshots.replay import log_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class SigningKeyError(Exception):
    """The key cannot be used. The text says why."""


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """The key in a file, which others must not be able to read.

    Raises:
        SigningKeyError: the file cannot be read, others can read it, or it holds another key.
    """
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SigningKeyError(f"{path}: others can read it; run chmod 600 {path}")
        return signing_key_of(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SigningKeyError(f"{path}: {error}") from None


def signing_key_of(data: bytes) -> Ed25519PrivateKey:
    """An Ed25519 private key in PEM form without a password. Raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, None)
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("the key is not one of Ed25519")
    return key


def public_key_of(data: bytes) -> Ed25519PublicKey:
    """An Ed25519 public key in PEM form. Raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(data)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("the key is not one of Ed25519")
    return key


def signed(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> Checkpoint:
    """The checkpoint with the signature of a key."""
    return replace(checkpoint, signature=key.sign(checkpoint.signed_bytes))


def check_signature(checkpoint: Checkpoint, key: Ed25519PublicKey) -> None:
    """Checks that a key signed the checkpoint.

    Raises:
        SnapshotInvalid: it did not.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(checkpoint.signature, checkpoint.signed_bytes)
    except InvalidSignature:
        raise SnapshotInvalid(FILE, "its signature is not one of the given key") from None


def check_log(model_folder: Path, checkpoints: Iterable[Checkpoint], key: Ed25519PublicKey) -> list[int]:
    """Checks that checkpoints are of one history: that of the log of a model.

    Every record is verified. Returns the revisions of the checkpoints that could not be compared,
    because a retention policy deleted their records.

    Raises:
        LogError: the log is damaged.
        SnapshotInvalid: a checkpoint is not signed by the key, or the log has other hashes.
    """
    missing = []
    with Log.open(log_folder(model_folder), read_only=True) as log:
        for each in sorted(checkpoints, key=lambda one: one.revision):
            check_signature(each, key)
            if each.lineage != log.lineage:
                raise SnapshotInvalid(FILE, f"revision {each.revision}: it is of another model")
            if each.revision > log.last_revision:
                raise SnapshotInvalid(
                    FILE, f"revision {each.revision}: the log ends at revision {log.last_revision}"
                )
            gap = log.gap
            if (
                gap is not None and gap.first <= each.revision <= gap.last
            ) or each.revision < log.first_revision:
                missing.append(each.revision)
            elif next(log.read(each.revision)).hash != each.log_hash:
                raise SnapshotInvalid(FILE, f"revision {each.revision}: the log has another chain hash")
    return missing
