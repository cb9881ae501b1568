"""Audit: computes the state of a model from its log alone, and compares it with the model's
snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from livefactor.snapshots.format import Manifest
from livefactor_server.log.gaps import Gap
from livefactor_server.log.store import Log
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots import erasures
from livefactor_server.snapshots.erasures import Report
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import (
    Progress,
    ReplayError,
    erasures_at,
    follow,
    from_snapshot,
    log_folder,
    replay,
    skipped_at,
    snapshot_store,
    start_of,
)
from livefactor_server.snapshots.store import root_hash_of, verify


@dataclass(slots=True)
class ReplayReport:
    """The result of an audit.

    Attributes:
        revision: the last revision of the log.
        log_hash: chain hash of the log at `revision`, 32 bytes.
        root_hash: root hash of the state at `revision`, 32 bytes.
        snapshots: id of a snapshot -> whether its root hash and its log hash equal those of the
            replayed state.
        gap: what the log lacks, or None if the replay began with its first record.
        begins_with: ids of the snapshots with which the replay began, if the log lacks records.
        lost: ids of the snapshots whose records are missing. They were not compared.
        erasures: revision of an erasure -> what is wrong with its report; "" if nothing is. The
            hashes of a report are compared unless a later erasure came, or the log lacks records
            and the snapshot with which the erasure began is gone.
    """

    revision: int
    log_hash: bytes
    root_hash: bytes
    snapshots: dict[str, bool] = field(default_factory=dict)
    gap: Gap | None = None
    begins_with: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    erasures: dict[int, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether every snapshot equals the replayed state, and the reports of erasures as well."""
        return all(self.snapshots.values()) and not any(self.erasures.values())

    def fields(self) -> dict[str, Any]:
        """The report as plain values, with hashes in hex."""
        return {
            "revision": self.revision,
            "log_hash": self.log_hash.hex(),
            "root_hash": self.root_hash.hex(),
            "snapshots": self.snapshots,
            "good": self.good,
            "missing": str(self.gap) if self.gap else None,
            "begins_with": list(self.begins_with),
            "not_compared": list(self.lost),
            "erasures": {str(revision): wrong for revision, wrong in self.erasures.items()},
        }


def root_of(state: ModelState) -> bytes:
    """The root hash of a state that does not change any more."""
    return root_hash_of(freeze_idle("replay", state, "sha256"))[0]


def replay_model(model_folder: Path, backend: str = "cpu", progress: Progress | None = None) -> ReplayReport:
    """Replays a model's log from its beginning, and compares the state with each snapshot.

    After a switch of the spec it begins again, because the later states are those of the new spec.
    So it does after a rollback or an erasure.
    If a retention policy deleted records, it begins with the first snapshot after them.

    A server may use the folder meanwhile. The audit changes nothing, and it ignores records that
    are not synced yet.

    Raises:
        LogError: the log is missing or damaged.
        ReplayError: a record does not fit the state before it, or the log lacks records and no
            snapshot stands in for them.
        SnapshotInvalid: the snapshot that stands in for them does not verify.
        SpecError: the spec in the log is invalid.
    """
    with Log.open(log_folder(model_folder), read_only=True) as log:
        manifests = [
            m
            for m in snapshot_store(model_folder).list()
            if m.lineage == log.lineage and m.revision <= log.last_revision
        ]
        lost = [m for m in manifests if log.gap is not None and m.revision <= log.gap.last]
        kept = [m for m in manifests if m not in lost]
        state: ModelState | None = None
        equal, begins_with = {}, list[str]()
        reports = erasures.check(model_folder, log)
        wrong = {at: text for at, (_, text) in reports.items()}
        stops: list[tuple[int, Manifest | Report | None]] = [(each.revision, each) for each in kept]
        stops += [(each.revision, each) for each, _ in reports.values() if each and _is_comparable(each, log)]
        stops.sort(key=lambda stop: stop[0])
        for key, group in groupby(
            [*stops, (log.last_revision, None)],
            lambda stop: (log.spec_at(stop[0]), skipped_at(log, stop[0]), erasures_at(log, stop[0])),
        ):
            for revision, manifest in group:
                if state is None or (state.spec_body, state.skipped, state.erasures) != key:
                    if log.gap is not None:
                        assert not isinstance(manifest, Report)
                        state = _trusted(model_folder, log, backend, manifest)
                        begins_with.append(manifest.snapshot_id if manifest else "")
                        continue
                    state = replay(model_folder, log, backend, revision, progress)
                follow(state, log, revision, progress)
                if isinstance(manifest, Report):
                    if not erasures.fits(manifest, state):
                        wrong[manifest.erase] = "the replayed state has other hashes"
                elif manifest is not None:
                    equal[manifest.snapshot_id] = (
                        root_of(state) == manifest.root_hash and state.log_hash == manifest.log_hash
                    )
        for report, _ in reports.values() if log.gap is not None else ():
            if report and _is_last(report, log) and report.began_with in {each.snapshot_id for each in kept}:
                begins_with.append(report.began_with)
                if not erasures.fits(report, _without_subjects(model_folder, log, backend, report)):
                    wrong[report.erase] = f"the state from snapshot {report.began_with} on has other hashes"
        assert state is not None
        return ReplayReport(
            state.revision, state.log_hash, root_of(state), equal, log.gap, tuple(begins_with),
            tuple(each.snapshot_id for each in lost), wrong,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SnapshotReplay:
    """The result of a replay from the snapshot before a given one.

    Attributes:
        parent: the id of the snapshot before; empty if the replay began with the log.
        since, revision: where the replay began, and where it ended.
        equal: whether the given snapshot has the hashes of the replayed state.
    """

    parent: str
    since: int
    revision: int
    equal: bool

    def fields(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "parent": self.parent, "since": self.since, "revision": self.revision, "equal": self.equal,
        }  # fmt: skip


def replay_snapshot(path: Path, backend: str = "cpu", progress: Progress | None = None) -> SnapshotReplay:
    """Restores the snapshot before a given one, replays the log up to it, and compares.

    `path` is the folder of a snapshot in the folder of its model. If no snapshot before it has its
    spec and what was skipped and erased, the replay begins with the log.

    Raises:
        LogError: the log is missing or damaged.
        ReplayError: a record does not fit the state before it, or its records are missing.
        SnapshotInvalid: the snapshot does not verify.
        SpecError: the spec in the log is invalid.
    """
    manifest = verify(path).manifest
    folder, at = path.resolve().parent.parent, manifest.revision
    with Log.open(log_folder(folder), read_only=True) as log:
        if manifest.lineage != log.lineage or at > log.last_revision:
            raise ReplayError(
                f"the log does not reach snapshot {manifest.snapshot_id}, or is another model's"
            )
        before = at - 1 if at > log.first_revision else at
        state = start_of(
            folder, log, backend, manifest.spec, before, skipped_at(log, at), erasures_at(log, at)
        )
        since = state.revision
        used = [m.snapshot_id for m in snapshot_store(folder).list() if m.revision == since]
        follow(state, log, at, progress)
        equal = root_of(state) == manifest.root_hash and state.log_hash == manifest.log_hash
        return SnapshotReplay(used[-1] if used else "", since, at, equal)


def _is_comparable(report: Report, log: Log) -> bool:
    """Whether a replay of the log gives the state of a report."""
    return log.gap is None and _is_last(report, log)


def _is_last(report: Report, log: Log) -> bool:
    """Whether no erasure came after the one of a report."""
    return max(log.acts.erased, default=0) <= report.revision <= log.last_revision


def _without_subjects(model_folder: Path, log: Log, backend: str, report: Report) -> ModelState:
    """The state of a report, from the snapshot with which the erasure began."""
    state = from_snapshot(snapshot_store(model_folder), report.began_with, log, backend)
    state.skipped, state.erasures = skipped_at(log, report.revision), erasures_at(log, report.revision)
    return follow(state, log, report.revision)


def _trusted(model_folder: Path, log: Log, backend: str, manifest: Manifest | None) -> ModelState:
    """The state of a snapshot with which a replay begins, because the records before it are gone.

    The snapshot verifies, and the log has its chain hash. A snapshot that the log's RETENTION
    record names has its root hash, too.

    Raises:
        ReplayError: there is no such snapshot, or it differs from what the log says.
        SnapshotInvalid: it does not verify.
    """
    if manifest is None:
        raise ReplayError(f"{log.gap}, and no snapshot after them has the spec in force")
    note = log.gap.note if log.gap is not None else None
    if next(log.read(manifest.revision)).hash != manifest.log_hash:
        raise ReplayError(f"snapshot {manifest.snapshot_id} does not have the chain hash of the log")
    if note and note.snapshot_revision == manifest.revision and note.root_hash != manifest.root_hash:
        raise ReplayError(
            f"snapshot {manifest.snapshot_id} is not the one that the log names: its root hash is "
            f"{manifest.root_hash.hex()}, and the log has {note.root_hash.hex()}"
        )
    state = from_snapshot(snapshot_store(model_folder), manifest.snapshot_id, log, backend)
    state.skipped, state.erasures = skipped_at(log, manifest.revision), erasures_at(log, manifest.revision)
    return state
