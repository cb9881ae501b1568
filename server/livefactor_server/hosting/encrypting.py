"""Makes an encrypted copy of a data folder, or one with another key.

Records keep their revisions, times, salts and hashes, so the copy has the same chain and the same
models. Only the places of the groups differ.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from livefactor_server.hosting.backup import BackupError, model_folders
from livefactor_server.log import sealing
from livefactor_server.log.disk import FileIO
from livefactor_server.log.erasing import entry_of, groups_of
from livefactor_server.log.format import DATA_START, hash_function, hash_name_of, new_id
from livefactor_server.log.recovery import Contents
from livefactor_server.log.sealing import Key
from livefactor_server.log.store import SEGMENT_BYTES, Log
from livefactor_server.log.walk import Cursor, StreamEnd
from livefactor_server.log.writer import StreamWriter
from livefactor_server.snapshots.replay import SNAPSHOT_FOLDERS, log_folder
from livefactor_server.snapshots.safetensors_writer import sync_folder
from livefactor_server.snapshots.sealed import SealedFiles
from livefactor_server.snapshots.store import SnapshotStore


def encrypt(source: Path, target: Path, old: Key | None, new: Key) -> list[tuple[str, int]]:
    """Copies a data folder, or a backup, to a new data folder that is encrypted with `new`.

    `old` is the key of the source, None if it is plain. The source must not change meanwhile.

    Returns:
        The name of each model, and its last revision.

    Raises:
        BackupError: the source is no data folder, or the target has models.
        LogError: a log is damaged, or it needs another key.
        OSError: the system reports an error.
    """
    if (target / "models").is_dir() and any((target / "models").iterdir()):
        raise BackupError(f"{target} has models already; name another folder")
    made = []
    for folder in model_folders(source):
        to = target / "models" / folder.name
        revision = _copy_log(log_folder(folder), log_folder(to), old, new)
        for name in SNAPSHOT_FOLDERS:
            if (folder / name).is_dir():
                _copy_snapshots(folder / name, to / name, old, new)
        for path in sorted(folder.iterdir()):
            if path.is_file():
                shutil.copyfile(path, to / path.name)
        sync_folder(to)
        made.append((folder.name, revision))
    return made


def _copy_log(source: Path, target: Path, old: Key | None, new: Key) -> int:
    """Writes the records of a log again, in the same groups. Returns the last revision."""
    io = FileIO()
    sealing.use(old)
    with Log.open(source, read_only=True) as log:
        groups = groups_of(log.read_groups())
        group = next(groups)
        first, hash_id = group[0], group[0].group.hash_id
        cursor = Cursor(
            first.revision - 1, first.previous, 1, new_id(), hash_id, hash_function(hash_name_of(hash_id))
        )
        io.make_folder(target)
        end = StreamEnd(DATA_START, b"", 1)
        contents = Contents([], cursor, log.lineage.bytes, log.spec_body, end, None)
        sealing.use(new)
        writer = StreamWriter(io, target, contents, SEGMENT_BYTES, ahead=True)
        sealing.use(old)
        try:
            while group:
                hashes, _ = writer.write([entry_of(record) for record in group])
                if hashes != [record.hash for record in group]:
                    raise BackupError(f"{source}: the copy of revision {group[0].revision} has another hash")
                cursor.revision, cursor.hash = group[-1].revision, hashes[-1]
                group = next(groups, [])
            writer.mark()
        finally:
            writer.close()
        return log.last_revision


def _copy_snapshots(source: Path, target: Path, old: Key | None, new: Key) -> None:
    sealing.use(old)
    store = SnapshotStore(source)
    target.mkdir(parents=True)
    for manifest in store.list():
        to = target / manifest.snapshot_id
        to.mkdir()
        with SealedFiles(to, new) as files:
            for piece in store.pieces(manifest.snapshot_id):
                files.add(piece.file_name, piece.offset, piece.data)
            files.end()
        sync_folder(to)
        if signed := store.checkpoint(manifest.snapshot_id):
            SnapshotStore(target).put_checkpoint(manifest.snapshot_id, signed)
    sync_folder(target)
