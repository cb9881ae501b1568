"""Computes `state(r)` from a log, at a restart and in an audit.

A restart loads the newest snapshot and applies the rest of the log. An audit applies the whole log.
Like the live engine, both use `changes.place` and `changes.apply`, so a record always has the same
effect. A state is that of one spec from the beginning of the log on
(`changes/history/switch.py`). So after a switch only snapshots with the new spec help, whoever took
them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby, pairwise
from pathlib import Path

import numpy as np

from livefactor.snapshots.format import Manifest
from livefactor_server import changes
from livefactor_server.changes import (
    Change,
    EngineChange,
    EvictChange,
    Header,
    bodies,
    change_of,
    decode_rejects,
)
from livefactor_server.changes import ReplayError as ReplayError
from livefactor_server.changes.history import erase
from livefactor_server.changes.history.erase import Erased, Erasures, Subjects
from livefactor_server.changes.history.rollback import (
    SKIPPABLE,
    Ranges,
    Rollback,
    SkippedChange,
    are_in,
    is_in,
    up_to,
)
from livefactor_server.log import columns
from livefactor_server.log.columns import KIND, Columns
from livefactor_server.log.format import SALT_BYTES
from livefactor_server.log.store import Entry, Kind, Log, Record
from livefactor_server.model.spec_codec import decode as decode_spec
from livefactor_server.model.state import ModelState, restored
from livefactor_server.snapshots import strangers
from livefactor_server.snapshots.records import between
from livefactor_server.snapshots.safetensors_writer import sync_folder
from livefactor_server.snapshots.store import SnapshotStore, copy_whole

Progress = Callable[[int, int], None]
"""Function of (reached revision, last revision)."""

RUN_EVENTS, RUN_RECORDS = 65_536, 1024
"""Maximum numbers of events and of records per run of records that are decoded one by one.

`progress` is called after about `RUN_RECORDS` records, at the end of a run.
"""

COLUMNS_MIN = 64
"""Fewer records than this are decoded one by one, which costs less than calls for a few records."""

_CHALLENGERS = "challengers"

SNAPSHOT_FOLDERS = ("base", _CHALLENGERS, "snapshots")
"""The folders of a model that hold snapshots. A model may lack the first two."""

NOBODY = Subjects()

logger = logging.getLogger(__name__)


def log_folder(model_folder: Path) -> Path:
    """The folder of a model's log."""
    return model_folder / "log"


def snapshot_store(model_folder: Path) -> SnapshotStore:
    """The snapshots that the model has taken."""
    return SnapshotStore(model_folder / "snapshots")


def base_store(model_folder: Path) -> SnapshotStore:
    """The snapshot with which a restored model began. The store of any other model is empty."""
    return SnapshotStore(model_folder / "base")


def challenger_store(model_folder: Path) -> SnapshotStore:
    """Snapshots of the model's challengers: states of its log with other specs."""
    return SnapshotStore(model_folder / _CHALLENGERS)


class BeginningLost(ReplayError):
    """The log lacks its beginning, so the state without the subjects of an erasure is unknown."""


def recover(model_folder: Path, log: Log, backend: str, progress: Progress | None = None) -> ModelState:
    """The state at the end of the log, from the newest snapshot with its spec that verifies.

    Raises:
        ReplayError: the log and the snapshots contradict each other, or a record does not fit the
            state before it. BeginningLost if no state is without whom an erasure named.
        SpecError: the spec in the log is invalid.
    """
    own, gap = snapshot_store(model_folder).list(), log.gap
    for info in reversed(own):
        if info.lineage != log.lineage:
            raise ReplayError(
                f"snapshot {info.snapshot_id} has lineage {info.lineage}, but the log has lineage {log.lineage}: "
                "it is the log of another model"
            )
        if info.revision > log.last_revision:
            raise ReplayError(
                f"the log ends at revision {log.last_revision}, but a snapshot has revision {info.revision}: "
                "synced records are missing"
            )
        if gap is not None and gap.first <= info.revision <= gap.last:
            # Its record is gone, and so are the records after it.
            continue
        if next(log.read(info.revision)).hash != info.log_hash:
            raise ReplayError(
                f"snapshot {info.snapshot_id} and the log have different records up to revision {info.revision}"
            )
    spec_body = log.spec_at(log.last_revision)
    if own and log.switches_from and not log.switches:
        # The last switch is before the part of the log that was read. The newest snapshot has its
        # spec.
        spec_body = own[-1].spec
    try:
        start = start_of(model_folder, log, backend, spec_body)
    except ReplayError as error:
        if log.lacks and log.acts.erased:
            raise BeginningLost(str(error)) from error
        raise
    return follow(start, log, progress=progress)


def start_of(
    model_folder: Path,
    log: Log,
    backend: str,
    spec_body: bytes,
    until: int | None = None,
    skipped: Ranges | None = None,
    erasures: Erasures | None = None,
) -> ModelState:
    """A state with the spec `spec_body` at an early revision of the log, from which to follow it.

    It is that of the newest snapshot with this spec that verifies, or of the beginning of the log.
    `until` is the revision that it may not pass; None means the end of the log. The state skips the
    revisions `skipped`; None means those that are skipped at `until`. It is without the subjects of
    `erasures`; None means those that are in force at `until`. A snapshot without them is one from
    after the ERASED record. If the log lacks its beginning, it may be one that never knew them.

    Raises:
        ReplayError: the base snapshot of a restored model is missing, or the log lacks its
            beginning, or no snapshot stands in for it.
        SpecError: the spec is invalid.
    """
    last = log.last_revision if until is None else until
    skipped = skipped_at(log, last) if skipped is None else skipped
    erasures = erasures_at(log, last) if erasures is None else erasures
    for info, store in candidates(model_folder, log, spec_body, last, erasures):
        try:
            if next(log.read(info.revision)).hash != info.log_hash:
                raise ReplayError(f"its records up to revision {info.revision} are not those of the log")
            if not skips(log, info.revision, skipped):
                continue
            state = from_snapshot(store, info.snapshot_id, log, backend, _strangers(log, info, erasures))
            state.skipped, state.erasures = skipped, erasures
        except Exception as error:
            # The log has all data of the snapshot, so an older snapshot is sufficient.
            logger.warning("snapshot %s is ignored: %s", info.snapshot_id, error)
            continue
        logger.info("snapshot %s loaded and verified", info.snapshot_id)
        return state
    if log.gap is not None and last >= log.gap.first:
        raise ReplayError(f"{log.gap}, and no snapshot after them can be used")
    return _beginning(model_folder, log, backend, spec_body, skipped, erasures)


def candidates(
    model_folder: Path, log: Log, spec_body: bytes, last: int, erasures: Erasures
) -> list[tuple[Manifest, SnapshotStore]]:
    """Those with which a replay may begin, as far as their manifests tell, the newest first."""
    since = max((at for at in log.acts.erased if at <= last), default=0)
    if erasures != erasures_at(log, last):
        since = last + 1
    if log.lacks:
        # The subjects of a finished erasure are not known any more.
        since = max((at for at in log.acts.erased if at <= last and not _subjects(log, at)), default=0)
    stores = [snapshot_store(model_folder)]
    if (model_folder / _CHALLENGERS).is_dir():
        stores.append(challenger_store(model_folder))
    found = [
        (info, store)
        for store in stores
        for info in store.list()
        if info.spec == spec_body
        and info.lineage == log.lineage
        and since <= info.revision <= last
        and (log.gap is None or info.revision > log.gap.last)
    ]
    return sorted(found, key=lambda each: each[0].revision, reverse=True)


def _subjects(log: Log, erased_at: int) -> Subjects:
    """Whom the ERASED record of a revision is about, as far as the log still says it."""
    return Subjects.from_body(log.acts.erases.get(Erased.from_body(log.acts.erased[erased_at]).erase, b""))


def _strangers(log: Log, info: Manifest, erasures: Erasures) -> Subjects:
    """The subjects of erasures of whom a state from a snapshot may not have learned yet."""
    done = {at for at, _ in erasures_at(log, info.revision)}
    left = [subjects for at, subjects in erasures if at not in done]
    return Subjects(
        tuple(sorted({each for one in left for each in one.users})),
        tuple(sorted({each for one in left for each in one.items})),
    )


def erasures_at(log: Log, revision: int) -> Erasures:
    """What a state at `revision` is without, as far as the log still has the rows."""
    return erase.in_force(log.acts.erases, log.acts.erased, revision)


def skipped_at(log: Log, revision: int) -> Ranges:
    """The revisions that a state at `revision` skips.

    Of a log that was not read from its beginning, it lacks those that no record after it needs.
    """
    before = [at for at in log.rollbacks if at <= revision]
    if before:
        return Rollback.from_body(log.rollbacks[max(before)]).skipped
    later = min(log.rollbacks, default=None)
    return () if later is None else Rollback.from_body(log.rollbacks[later]).before


def skips(log: Log, revision: int, skipped: Ranges) -> bool:
    """Whether a snapshot at `revision` has the state that skips `skipped`."""
    if revision < log.switches_from:
        # Only the part of the log that was not read yet tells.
        for _ in log.check_earlier():
            pass
    return up_to(skipped_at(log, revision), revision) == up_to(skipped, revision)


def replay(
    model_folder: Path, log: Log, backend: str, until: int | None = None, progress: Progress | None = None
) -> ModelState:
    """The state at revision `until` from the log alone. None means the end of the log.

    The log was read from its beginning when it was opened.

    Raises:
        ReplayError: a record does not fit the state before it.
        SpecError: the spec in the log is invalid.
    """
    last = log.last_revision if until is None else until
    beginning = _beginning(
        model_folder, log, backend, log.spec_at(last), skipped_at(log, last), erasures_at(log, last)
    )
    return follow(beginning, log, until, progress)


def origin(log: Log, backend: str, spec_body: bytes) -> ModelState:
    """The empty state with the spec `spec_body`, of a log that begins at revision 0.

    Raises:
        SpecError: the spec is invalid.
    """
    first = next(log.read())
    return ModelState.empty(decode_spec(spec_body), spec_body, log.lineage, backend, first.hash)


def _beginning(
    model_folder: Path, log: Log, backend: str, spec_body: bytes, skipped: Ranges, erasures: Erasures
) -> ModelState:
    if not log.first_revision:
        state = origin(log, backend, spec_body)
        state.skipped, state.erasures = skipped, erasures
        return state
    records = log.read()
    first = next(records)
    root = EngineChange.from_log(bytes(next(records).body)).base_root_hash
    base = base_store(model_folder)
    for manifest in base.list():
        if manifest.root_hash == root:
            without = _strangers(log, manifest, erasures)
            state = from_snapshot(base, manifest.snapshot_id, log, backend, without)
            state.log_hash, state.skipped, state.erasures = first.hash, skipped, erasures
            return state
    raise ReplayError(
        f"the log begins at revision {first.revision}, and its base snapshot ({root.hex()}) is missing"
    )


def from_snapshot(
    store: SnapshotStore, snapshot_id: str, log: Log, backend: str, without: Subjects = NOBODY
) -> ModelState:
    """The state that a snapshot of this log has, verified.

    It has learned nothing of the subjects `without`.

    Raises:
        ReplayError: it may have.
        SnapshotInvalid: the snapshot does not verify.
    """
    loaded = store.load(snapshot_id)
    manifest = loaded.manifest
    if without:
        named_at = strangers.first_naming(log, without, manifest.revision)
        if named_at is not None:
            raise ReplayError(f"the record of revision {named_at} names whom the state is without")
        if reason := strangers.known(decode_spec(manifest.spec), loaded.tensors, log, without):
            raise ReplayError(reason)
    return restored(
        decode_spec(manifest.spec),
        manifest.spec,
        log.lineage,
        backend,
        manifest.revision,
        manifest.log_hash,
        loaded.tensors,
    )


def follow(
    state: ModelState,
    log: Log,
    until: int | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> ModelState:
    """Applies the records after `state.revision` up to `until`. None means the end of the log.

    `check` is called after every run of records. If it raises an exception, the work ends with this
    exception.

    Raises:
        ReplayError: the log ends earlier, or a record does not fit the state before it.
    """
    last = log.last_revision if until is None else until
    reported = state.revision
    for _ in _apply(state, _parts(between(log, state.revision, last), state)):
        check()
        if progress and state.revision - reported >= RUN_RECORDS:
            reported = state.revision
            progress(state.revision, last)
    if state.revision != last:
        raise ReplayError(f"the log ends at revision {state.revision}, expected {last}")
    if progress:
        progress(last, last)
    return state


def _parts(groups: Iterable[Sequence[Record]], state: ModelState) -> Iterator[Sequence[Record]]:
    """Splits columns where the kind changes. Parts with many interactions stay columns.

    A part is skipped as a whole or not at all. Records that name a subject are no columns.
    """
    for records in groups:
        if not isinstance(records, Columns):
            yield records
            continue
        is_events = records.fields[:, KIND] == Kind.INTERACTIONS
        sorts = is_events + 2 * are_in(state.skipped, records.revision, len(records))
        names = erase.name_subjects(records, state.erasures)
        sorts, is_events = sorts + 4 * names, is_events & ~names
        cuts = (np.flatnonzero(np.diff(sorts)) + 1).tolist()
        for start, end in pairwise((0, *cuts, len(records))):
            part = records[start:end]
            yield part if is_events[start] and len(part) >= COLUMNS_MIN else list(part)


def _apply(state: ModelState, parts: Iterable[Sequence[Record]]) -> Iterator[None]:
    """Applies consecutive records, and yields after each run. Their grouping changes no bit."""
    for is_columns, some in groupby(parts, lambda part: isinstance(part, Columns)):
        if not is_columns:
            yield from _apply_singly(state, chain.from_iterable(some))
            continue
        for part in some:
            done = 0
            assert isinstance(part, Columns)
            if is_in(state.skipped, part.revision):
                changes.skip_columns(state, part)
                yield
                continue
            while done < len(part):
                rest = part[done:]
                assert isinstance(rest, Columns)
                done += changes.apply_columns(state, rest)
                yield
                # The next record has an unusual body.
                yield from _apply_singly(state, part[done : done + 1])
                done += 1


def apply_groups(state: ModelState, groups: Iterable[Sequence[Record]]) -> None:
    """Applies consecutive records, which continue the revision of the state, many at a time."""
    for _ in _apply(state, _parts(groups, state)):
        pass


def _apply_singly(state: ModelState, records: Iterable[Record]) -> Iterator[None]:
    for run in _runs(records, state.skipped, state.erasures):
        placements = changes.place(state, [change for _, change in run])
        changes.apply(
            state, [changes.Record(*pair, rows) for pair, rows in zip(run, placements, strict=True)]
        )
        yield


def _runs(
    records: Iterable[Record], skipped: Ranges, erasures: Erasures = ()
) -> Iterator[list[tuple[Header, Change]]]:
    """Decodes the records, and yields them in runs of about `RUN_EVENTS` events.

    The grouping changes no bit.
    """
    run: list[tuple[Header, Change]] = []
    events = 0
    for record in records:
        header, change = _decoded(record)
        left = erase.left_of(change, record.revision, erasures)
        if left is not change:
            header = erase.settling(header, record.count)
        if record.kind in SKIPPABLE and is_in(skipped, record.revision):
            left = SkippedChange(change.body, change.rows)
        change = left
        if isinstance(change, EvictChange):
            # The rows of other records are placed before it is applied, or after it.
            if run:
                yield run
            yield [(header, change)]
            run, events = [], 0
            continue
        run.append((header, change))
        events += change.rows
        if events >= RUN_EVENTS or len(run) == RUN_RECORDS:
            yield run
            run, events = [], 0
    if run:
        yield run


def _decoded(record: Record) -> tuple[Header, Change]:
    if record.erased_at and not record.rows:
        change: Change = SkippedChange(b"", 0)
    else:
        change = change_of(record.kind, record.body)
    rejects, received_hash = decode_rejects(bytes(record.rejects), record.commitment)
    header = Header(
        revision=record.revision,
        producer=record.producer,
        epoch=record.epoch,
        sequence=record.sequence,
        salt=record.salt,
        received_hash=received_hash,
        rejects=rejects,
        hash=record.hash,
        previous=record.previous,
        time_us=record.time_us,
        is_held=record.kind == Kind.HELD,
    )
    return (erase.settling(header, record.count) if record.erased_at else header), change


def compile_kernels() -> None:
    """Compiles the kernels that read a log, or loads them from Numba's cache."""
    columns.compile_kernels()
    bodies.compile_kernels()


def adopt(snapshot: Path, model_folder: Path) -> None:
    """Copies a snapshot to be the base of a new model. The copy is whole and durable."""
    target = model_folder / "base" / snapshot.name
    target.mkdir(parents=True)
    copy_whole(snapshot, target)
    for path in (target, target.parent):
        sync_folder(path)


def engine_entry(log: Log, base: Manifest, kernel_semantics: int, backend: str) -> Entry:
    """An ENGINE record with the backend and the snapshot with which the model begins."""
    change = EngineChange.restored(base, kernel_semantics, backend)
    salt = os.urandom(SALT_BYTES)
    return Entry(
        change.kind,
        log.last_revision + 1,
        time_us=time.time_ns() // 1000,
        body=change.body,
        salt=salt,
        commitment=log.seal(salt, b"", change.body),
    )
