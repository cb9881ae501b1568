"""A model's state at an earlier revision, which is built beside the live one.

It comes from the nearest snapshot before and the records after it. Both states count as memory of
the model. While one is built, no promotion runs and no segment of the log is deleted.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from livefactor.snapshots.format import Manifest
from livefactor_kernels.backend import create_backend
from livefactor_server.changes import ReplayError
from livefactor_server.engine.engine import Engine
from livefactor_server.log.store import Log, LogGap
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.store import SnapshotDiskFull, SnapshotStore
from livefactor_server.statuses import later, precondition


@dataclass(frozen=True, slots=True)
class Moment:
    """A revision, or a time in microseconds since 1970, which then counts."""

    revision: int = 0
    time_us: int | None = None


@contextmanager
def state_at(
    folder: Path, engine: Engine, revision: int, check: Callable[[], None] = lambda: None
) -> Iterator[ModelState]:
    """The state of the model in `folder` at a revision before the present one.

    `check` is called again and again. If it raises an exception, the work ends with it.

    Raises:
        Refused: FAILED_PRECONDITION if the model has not reached the revision, or if the log lacks
            the records that lead there. RESOURCE_EXHAUSTED if the memory does not suffice, or if a
            promotion or another replay is in progress.
    """
    log = engine.log
    if revision > engine.revision:
        raise precondition(f"revision: the model is at revision {engine.revision}, got {revision}")
    if revision < log.first_revision:
        raise precondition(f"revision: the model began at revision {log.first_revision}, got {revision}")
    spec_body = _spec_at(engine, revision)
    backend = "cpu" if engine.state.backend_name == "cuda" else engine.state.backend_name
    made: list[ModelState] = []

    def page_bytes() -> int:
        return sum(side.page_bytes for each in made for side in (each.backend.users, each.backend.items))

    def tick() -> None:
        check()
        engine.admission.check_second_state()

    empty = create_backend(backend, spec_codec.decode(spec_body))
    row_bytes = empty.users.row_bytes, empty.items.row_bytes
    with engine.no_promotion() as alone:
        if not alone:
            raise later("model: a promotion or another replay is in progress")
        with engine.admission.with_second_state(row_bytes, page_bytes):
            try:
                made.append(replay.start_of(folder, log, backend, spec_body, revision))
                state = replay.follow(made[0], log, revision, check=tick)
            except (ReplayError, LogGap) as error:
                raise precondition(f"revision {revision}: it cannot be replayed: {error}") from None
            yield state


def _spec_at(engine: Engine, revision: int) -> bytes:
    """The bytes of the spec in force at a revision."""
    log = engine.log
    if not log.switches_from or any(at <= revision for at in log.switches):
        return log.spec_at(revision)
    if revision >= log.switches_from and not log.switches:
        return engine.state.spec_body
    raise later("log: the server is still reading its earlier part after the start")


@contextmanager
def snapshot_at(
    folder: Path, engine: Engine, moment: Moment, check: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """The folder of a snapshot of the model at an earlier moment. It is removed at the end.

    Raises:
        Refused: as `state_at`, or RESOURCE_EXHAUSTED if the disk is full.
    """
    revision = moment.revision if moment.time_us is None else revision_at(engine.log, moment.time_us)
    # The next start removes a folder with this name after a crash (`folders.py`).
    place = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        with state_at(folder, engine, revision, check) as state:
            store = SnapshotStore(place)
            frozen = freeze_idle(engine.name, state, engine.log.hash_name)
            manifest = store.take(frozen, lambda done, total: check())
        yield place / manifest.snapshot_id
    except SnapshotDiskFull:
        raise later("disk: it is full; the model was not restored") from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def revision_at(log: Log, time_us: int) -> int:
    """The last revision whose record arrived up to a time, in microseconds since 1970.

    Arrival times are information: a clock that was set back can make them fall. Then it is the last
    record before the first later one.

    Raises:
        Refused: FAILED_PRECONDITION if the model has no record from so early.
    """
    found, segments = None, log.segments
    for segment in reversed(segments):
        # A segment that was just begun may have no record yet.
        if segment.first > log.last_revision:
            continue
        if next(log.read(segment.first)).time_us <= time_us:
            found = segment
            break
    if found is None:
        raise precondition("time: the model has no record from so early")
    revision = found.first
    for record in log.read(found.first):
        if record.time_us > time_us:
            break
        revision = record.revision
    return revision


def begin_with(folder: Path, snapshot: Path, manifest: Manifest, lineage: uuid.UUID, backend: str) -> None:
    """Writes the log of a new model that begins with a verified snapshot, and the snapshot itself.

    Raises:
        OSError, LogError: they cannot be written.
    """
    semantics = spec_codec.decode(manifest.spec).kernel_semantics
    replay.adopt(snapshot, folder)
    log = Log.create(
        replay.log_folder(folder), manifest.spec, manifest.revision, lineage, time_us=time.time_ns() // 1000
    )
    log.append([replay.engine_entry(log, manifest, semantics, backend)])
    log.close()
