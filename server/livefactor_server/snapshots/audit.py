"""Audit: computes the state of a model from its log alone, and compares it with the model's
snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from livefactor.snapshots.format import Manifest
from livefactor_server.log.store import Log
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import Progress, follow, log_folder, replay, snapshot_store
from livefactor_server.snapshots.store import root_hash_of


@dataclass(slots=True)
class ReplayReport:
    """The result of an audit.

    Attributes:
        revision: the last revision of the log.
        log_hash: chain hash of the log at `revision`, 32 bytes.
        root_hash: root hash of the state at `revision`, 32 bytes.
        snapshots: id of a snapshot -> whether its root hash and its log hash equal those of the
            replayed state.
    """

    revision: int
    log_hash: bytes
    root_hash: bytes
    snapshots: dict[str, bool] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether every snapshot equals the replayed state."""
        return all(self.snapshots.values())

    def fields(self) -> dict[str, Any]:
        """The report as plain values, with hashes in hex."""
        return {
            "revision": self.revision,
            "log_hash": self.log_hash.hex(),
            "root_hash": self.root_hash.hex(),
            "snapshots": self.snapshots,
            "good": self.good,
        }


def root_of(state: ModelState) -> bytes:
    """The root hash of a state that does not change any more."""
    return root_hash_of(freeze_idle("replay", state, "sha256"))[0]


def replay_model(model_folder: Path, backend: str = "cpu", progress: Progress | None = None) -> ReplayReport:
    """Replays a model's log from its beginning, and compares the state with each snapshot.

    After a switch of the spec it begins again, because the later states are those of the new spec.

    A server may use the folder meanwhile. The audit changes nothing, and it ignores records that
    are not synced yet.

    Raises:
        LogError: the log is missing or damaged.
        ReplayError: a record does not fit the state before it.
        SpecError: the spec in the log is invalid.
    """
    with Log.open(log_folder(model_folder), read_only=True) as log:
        manifests = [
            m
            for m in snapshot_store(model_folder).list()
            if m.lineage == log.lineage and m.revision <= log.last_revision
        ]
        state: ModelState | None = None
        equal = {}
        stops: list[tuple[int, Manifest | None]] = [(each.revision, each) for each in manifests]
        for spec_body, group in groupby(
            [*stops, (log.last_revision, None)], lambda stop: log.spec_at(stop[0])
        ):
            for revision, manifest in group:
                if state is None or state.spec_body != spec_body:
                    state = replay(model_folder, log, backend, revision, progress)
                follow(state, log, revision, progress)
                if manifest is not None:
                    equal[manifest.snapshot_id] = (
                        root_of(state) == manifest.root_hash and state.log_hash == manifest.log_hash
                    )
        assert state is not None
        return ReplayReport(state.revision, state.log_hash, root_of(state), equal)
