"""Backups of a data folder, while a server uses it.

A backup is a data folder itself: a server can serve it, and `restore` copies it. A further backup
to the same folder copies only what is new. The order of the steps keeps the backup whole at any
moment, also if a crash interrupts it:

    segments of the log, oldest first ─▶ is the log readable up to what was synced? ─▶ snapshots
    up to its last revision ─▶ other files of the model ─▶ backup.json

Only the last segment of a log changes, and those that an erasure rewrites. So a segment is copied
if it is new, if it was the last one at the backup before, or if it was written since then.
Snapshots never change. Files and snapshots that are gone leave the backup, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from livefactor.wire.limits import MODEL_NAME
from livefactor_server.log.store import Log, LogDamaged, LogError
from livefactor_server.snapshots.replay import SNAPSHOT_FOLDERS, log_folder
from livefactor_server.snapshots.safetensors_writer import sync_folder
from livefactor_server.snapshots.store import SIGNED, SnapshotStore

MANIFEST = "backup.json"
TEMPORARY = ".tmp-"
TRIES = 20
"""How often the last segment is copied, if the server writes it meanwhile."""

COPY_BYTES = 4 << 20


class BackupError(Exception):
    """A backup cannot be made or restored. The text says why."""


@dataclass(frozen=True)
class ModelBackup:
    """What a backup has of one model.

    Attributes:
        model: its name.
        revision: the last revision of the log in the backup.
        snapshot: id of the newest snapshot; "" without one.
        copied_bytes: bytes that this backup wrote.
        copied_files: files that it wrote.
    """

    model: str
    revision: int
    snapshot: str
    copied_bytes: int
    copied_files: int


class _Copies:
    """Copies files durably, and counts them. A file appears with its whole contents."""

    def __init__(self) -> None:
        self.bytes = self.files = 0

    def file(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY}{target.name}")
        size = source.stat().st_size
        with source.open("rb") as read, temporary.open("wb") as write:
            while piece := read.read(COPY_BYTES):
                if piece.count(0) == len(piece):
                    # The rest of a segment is zeros, which need no room.
                    write.seek(len(piece), os.SEEK_CUR)
                    continue
                write.write(piece)
                self.bytes += len(piece)
            write.truncate(size)
            write.flush()
            os.fsync(write.fileno())
        self.files += 1
        os.replace(temporary, target)
        sync_folder(target.parent)

    def folder(self, source: Path, target: Path) -> None:
        """Copies a folder of files. It appears whole."""
        temporary = target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}")
        try:
            for path in sorted(source.iterdir()):
                self.file(path, temporary / path.name)
            os.replace(temporary, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def back_up(data: Path, backup: Path) -> list[ModelBackup]:
    """Copies what is new in the data folder to the backup. A server may use the data folder.

    A model that was deleted stays in the backup.

    Raises:
        BackupError: there is no data folder, the backup is another one's, or a log is damaged.
        OSError: the system reports an error.
    """
    made = _models(data, backup, _manifest(backup))
    draft = backup / f"{TEMPORARY}{MANIFEST}"
    draft.write_bytes(_encoded({"time": time.time(), "models": [asdict(each) for each in made]}))
    os.replace(draft, backup / MANIFEST)
    sync_folder(backup)
    return made


def _models(data: Path, to: Path, before: dict[str, int]) -> list[ModelBackup]:
    folders = model_folders(data)
    (to / "models").mkdir(parents=True, exist_ok=True)
    return [_model(folder, to / "models" / folder.name, before.get(folder.name, 0)) for folder in folders]


def model_folders(data: Path) -> list[Path]:
    """The folders of the models of a data folder or of a backup, in order of their names.

    Raises:
        BackupError: there is no data folder.
    """
    models = data / "models"
    if not models.is_dir():
        raise BackupError(f"{data} is no data folder: it has no folder models")
    return [
        folder
        for folder in sorted(models.iterdir())
        if MODEL_NAME.fullmatch(folder.name) and log_folder(folder).is_dir()
    ]


def _encoded(fields: dict[str, Any]) -> bytes:
    """The bytes of backup.json: the fields, and their hash."""
    digest = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    return json.dumps(fields | {"sha256": digest}, indent=1).encode() + b"\n"


def _manifest(backup: Path) -> dict[str, int]:
    """The revisions of the models in a backup. Empty if there is none.

    Raises:
        BackupError: the file is damaged, or the folder is a server's.
    """
    try:
        data = (backup / MANIFEST).read_bytes()
        fields = {name: each for name, each in json.loads(data).items() if name != "sha256"}
        # An earlier version wrote no hash.
        if data not in (_encoded(fields), json.dumps(fields, indent=1).encode() + b"\n"):
            raise ValueError("it was changed")
        return {str(each["model"]): int(each["revision"]) for each in fields["models"]}
    except FileNotFoundError:
        if backup.exists() and (backup / "lock").exists():
            raise BackupError(f"{backup} is the data folder of a server, and no backup") from None
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackupError(f"{backup / MANIFEST} is damaged; make the backup in a new folder") from None


def _model(source: Path, target: Path, before: int) -> ModelBackup:
    """`before` is the last revision of the backup before."""
    copies = _Copies()
    _clean(target)
    _check_lineage(source, target)
    revision = _log(source, target, before, copies)
    newest = ""
    for name in SNAPSHOT_FOLDERS:
        # The store would make a folder that is missing.
        if (source / name).is_dir():
            theirs, ours = SnapshotStore(source / name), SnapshotStore(target / name)
            newest = _snapshots(theirs, ours, revision, copies) or newest
    for path in sorted(source.iterdir()):
        if path.is_file():
            copies.file(path, target / path.name)
    for path in sorted(target.iterdir()):
        if path.is_file() and not (source / path.name).exists():
            path.unlink()
    return ModelBackup(source.name, revision, newest, copies.bytes, copies.files)


def copy_model(source: Path, target: Path) -> None:
    """Copies the folder of one model to a new folder, while a server uses it.

    Raises:
        BackupError, LogError, OSError: no whole copy can be made.
    """
    _model(source, target, 0)


def _check_lineage(source: Path, target: Path) -> None:
    if log_folder(target).is_dir():
        with Log.open(log_folder(source), read_only=True) as one, suppress(LogError):
            with Log.open(log_folder(target), read_only=True) as other:
                if one.lineage == other.lineage:
                    return
            raise BackupError(
                f"model {source.name}: the backup holds another model of this name; take a new folder"
            )


def _log(source: Path, target: Path, before: int, copies: _Copies) -> int:
    """Copies the log. Returns its last revision in the backup."""
    theirs, ours = log_folder(source), log_folder(target)
    with Log.open(theirs, read_only=True, since=before) as log:
        synced = log.last_revision
    for attempt in range(TRIES):
        segments = sorted(path for path in theirs.iterdir() if path.suffix == ".log")
        known = {path.name for path in ours.iterdir()} if ours.is_dir() else set()
        last = max((name for name in known if name.endswith(".log")), default="")
        try:
            for path in segments:
                if path.name >= last or path.name not in known or _was_rewritten(path, ours / path.name):
                    copies.file(path, ours / path.name)
            with Log.open(ours, read_only=True, since=before) as log:
                if log.last_revision >= synced:
                    return log.last_revision
        except (LogDamaged, FileNotFoundError):
            # A retention policy may delete a segment before it is copied.
            if attempt == TRIES - 1:
                raise
        time.sleep(0.05)
    raise BackupError(f"{theirs}: the copy lacks records up to revision {synced}")


def _was_rewritten(source: Path, copy: Path) -> bool:
    """Whether a segment was replaced after it was copied (`log/erasing.py`)."""
    theirs, ours = source.stat(), copy.stat()
    return theirs.st_size != ours.st_size or theirs.st_mtime_ns > ours.st_mtime_ns


def _snapshots(theirs: SnapshotStore, ours: SnapshotStore, until: int, copies: _Copies) -> str:
    """Copies new snapshots up to revision `until`, removes those that are gone, and returns the
    newest one's id.
    """
    wanted = [info.snapshot_id for info in theirs.list() if info.revision <= until]
    for name in wanted:
        if not (ours.folder / name).is_dir():
            # The server may delete an old one meanwhile.
            with suppress(FileNotFoundError):
                copies.folder(theirs.folder / name, ours.folder / name)
        signed = theirs.checkpoint(name)
        if signed and signed != ours.checkpoint(name):
            ours.put_checkpoint(name, signed)
    there = {info.snapshot_id for info in ours.list()}
    for name in there - set(wanted):
        shutil.rmtree(ours.folder / name)
        (ours.folder / f"{name}{SIGNED}").unlink(missing_ok=True)
    kept = [name for name in wanted if (ours.folder / name).is_dir()]
    return kept[-1] if kept else ""


def _clean(target: Path) -> None:
    """Removes what an interrupted backup left."""
    for path in _unfinished(target):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _unfinished(target: Path) -> Iterator[Path]:
    yield from sorted(target.rglob(f"{TEMPORARY}*"), reverse=True) if target.is_dir() else ()


def restore(backup: Path, data: Path) -> list[ModelBackup]:
    """Copies a backup to a data folder that has no models yet.

    Raises:
        BackupError: there is no backup, or the data folder has models.
        LogError: a log in the backup is damaged.
        OSError: the system reports an error.
    """
    if not (backup / MANIFEST).is_file():
        raise BackupError(f"{backup} is no backup: it has no file {MANIFEST}")
    _manifest(backup)
    if (data / "models").is_dir() and any((data / "models").iterdir()):
        raise BackupError(f"{data} has models already; name another folder")
    return _models(backup, data, {})
