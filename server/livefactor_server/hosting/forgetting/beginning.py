"""Finds the snapshot with which the replay of an erasure begins, if the log lacks its beginning."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.format import Manifest
from livefactor_server.changes.history.erase import Subjects
from livefactor_server.log.store import Log
from livefactor_server.model.spec_codec import decode as decode_spec
from livefactor_server.snapshots import strangers
from livefactor_server.snapshots.replay import base_store, candidates, erasures_at, skipped_at, skips
from livefactor_server.snapshots.store import SnapshotNotFound, SnapshotStore

logger = logging.getLogger(__name__)


def beginning_without(
    model_folder: Path, log: Log, spec_body: bytes, subjects: Subjects, check: Callable[[], None]
) -> tuple[Manifest | None, str]:
    """The newest snapshot with which a log that lacks its beginning is replayed without subjects.

    `check` is called again and again.

    Returns the snapshot, or None and why there is none.

    Raises:
        LogError: the log is damaged.
    """
    last = log.last_revision
    skipped = skipped_at(log, last)
    named_at = strangers.first_naming(log, subjects, last, check)
    found = candidates(model_folder, log, spec_body, last, erasures_at(log, last))
    if log.first_revision:
        found += [(each, store) for store in [base_store(model_folder)] for each in store.list()]
    reason = "no snapshot can be used"
    for info, store in found:
        check()
        if info.revision > log.first_revision and not skips(log, info.revision, skipped):
            continue
        try:
            reason = _known(store, info.snapshot_id, log, subjects, named_at)
        except (SnapshotInvalid, SnapshotNotFound, OSError) as error:
            logger.warning("snapshot %s is ignored: %s", info.snapshot_id, error)
            continue
        if not reason:
            return info, ""
        reason = f"of the snapshot at revision {info.revision}: {reason}"
    return None, reason


def _known(store: SnapshotStore, snapshot_id: str, log: Log, subjects: Subjects, named_at: int | None) -> str:
    loaded = store.load(snapshot_id)
    manifest = loaded.manifest
    if named_at is not None and named_at <= manifest.revision:
        return f"the record of revision {named_at} names them"
    return strangers.known(decode_spec(manifest.spec), loaded.tensors, log, subjects)
