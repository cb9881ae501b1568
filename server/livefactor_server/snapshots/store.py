"""Snapshots of one model: takes, lists, opens, verifies and prunes them.

    <folder>/<revision, 20 digits>-<8 hex digits of the root hash>/   a snapshot
    <folder>/.tmp-*                  unfinished or being removed; deleted at start

`livefactor.snapshots.format` defines the format. A snapshot reads the rows once, a few MiB at a
time, and hashes and writes each piece. After all files and the folder are synced, one rename
publishes the snapshot. So a name that exists is a complete snapshot.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import files as snapshot_files
from livefactor.snapshots import format as fmt
from livefactor.snapshots.files import Verification
from livefactor.snapshots.format import Manifest, Tensor
from livefactor.snapshots.loaded import LoadedSnapshot
from livefactor_server.log.sealing import present
from livefactor_server.snapshots import chains
from livefactor_server.snapshots.increments import ChangesWriter, Seen, TooMuch
from livefactor_server.snapshots.removal import remove
from livefactor_server.snapshots.safetensors_writer import (
    ChangesFile,
    TensorFiles,
    sync_file,
    sync_folder,
    write_file,
)
from livefactor_server.snapshots.scanning import FrozenState as FrozenState
from livefactor_server.snapshots.scanning import Progress, scan
from livefactor_server.snapshots.scanning import RowReader as RowReader
from livefactor_server.snapshots.scanning import root_hash_of as root_hash_of
from livefactor_server.snapshots.sealed import SealedChanges, SealedFiles, SealedSnapshot, is_sealed

FETCH_BYTES = 1 << 20
"""Maximum number of bytes per piece of `SnapshotStore.pieces`."""

SIGNED = ".signed"
"""What the name of a checkpoint has after the id of its snapshot."""

_TEMPORARY = ".tmp-"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class SnapshotDiskFull(Exception):
    """The disk is too full for the snapshot. No part of it remains."""


class SnapshotNotFound(LookupError):
    """No snapshot has this id, or there are no snapshots."""


class Piece(NamedTuple):
    """Consecutive bytes of one file of a snapshot."""

    file_name: str
    offset: int
    file_size: int
    data: bytes


class SnapshotStore:
    """The snapshots in one folder, which it creates if it does not exist. Thread-safe."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Guards renames of snapshot folders.
        self._lock = threading.Lock()

    def clean(self) -> None:
        """Removes the unfinished files of an earlier process. Call it before all other methods."""
        for entry in self.folder.iterdir():
            if entry.name.startswith(_TEMPORARY):
                remove(entry, in_steps=False)

    def take(self, state: FrozenState, progress: Progress | None = None, chain_max: int = 0) -> Manifest:
        """Writes a snapshot of `state`, which is durable on return.

        With `chain_max` it is incremental, and the newest snapshot is its parent, if that one
        verifies, has the same spec and fewer parents, and not too much has changed. A damaged
        snapshot with the same id is replaced. A valid one with the same id stays.

        Raises:
            SnapshotDiskFull: the disk is too full. No part of the snapshot remains.
            ValueError: the state does not fit the format.
            OSError: the disk reports another error.
        """
        temporary = self._temporary()
        try:
            ids = self.ids() if chain_max else ()
            manifest = self._increment(state, temporary, ids[-1], chain_max, progress) if ids else None
            if manifest is None:
                remove(temporary)
                manifest = _whole(state, temporary, progress)
            sync_folder(temporary)
            return self._publish(temporary, manifest)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise SnapshotDiskFull(f"no room for a snapshot at revision {state.revision}") from error
            raise
        finally:
            remove(temporary)

    def _increment(
        self, state: FrozenState, temporary: Path, parent: str, chain_max: int, progress: Progress | None
    ) -> Manifest | None:
        """Writes an incremental snapshot. None if a whole one is better."""
        try:
            chain = chains.open_chain(self._path(parent))
        except (SnapshotInvalid, SnapshotNotFound) as error:
            log.warning("a whole snapshot follows, because snapshot %s cannot be read: %s", parent, error)
            return None
        layout, before = state.layout, chain.manifest
        room = min(layout.nbytes // 2, layout.nbytes - chain.chain_bytes)
        is_same = (before.spec, before.lineage) == (state.spec_body, state.lineage)
        if not is_same or room <= 0 or chain.depth >= chain_max or before.revision > state.revision:
            return None
        users, items = state.pin.counts
        if users < before.users or items < before.items:
            return None
        temporary.mkdir()
        with _new_changes(temporary) as files:
            writer = ChangesWriter(files, room)
            seen = Seen(chain, writer)
            try:
                tensors = scan(state, layout, lambda place, offset, data: None, progress, seen.take)
            except TooMuch:
                return None
            except chains.MISFITS as error:
                # Of a damaged chain. If it was the state, writing it whole says so.
                log.warning("a whole snapshot follows, because snapshot %s does not fit: %s", parent, error)
                return None
            if not seen.verifies():
                log.warning("a whole snapshot follows, because snapshot %s does not verify", parent)
                return None
            writer.finish(before, chain.depth + 1, chain.chain_bytes)
            manifest = _manifest(state, tensors)
            files.finish(manifest.to_json())
        return manifest

    def detach(self, snapshot_id: str) -> None:
        """Makes an incremental snapshot a whole one, which needs no parents.

        Raises:
            SnapshotInvalid: it does not verify.
            SnapshotDiskFull: the disk is too full. The snapshot stays incremental.
        """
        path = self._path(snapshot_id)
        if not chains.is_incremental(path):
            return
        temporary = self._temporary()
        try:
            manifest = verify(path).manifest
            temporary.mkdir()
            copy_whole(path, temporary)
            sync_folder(temporary)
            signed = self.checkpoint(snapshot_id)
            with self._discarding() as discard:
                discard(path)
                os.rename(temporary, self.folder / manifest.snapshot_id)
                sync_folder(self.folder)
            if signed:
                self.put_checkpoint(snapshot_id, signed)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise SnapshotDiskFull(f"no room for the whole snapshot {snapshot_id}") from error
            raise
        finally:
            remove(temporary)

    def _temporary(self) -> Path:
        return self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"

    def _publish(self, temporary: Path, manifest: Manifest) -> Manifest:
        final = self.folder / manifest.snapshot_id
        with self._discarding() as discard:
            if os.path.lexists(final):
                with contextlib.suppress(SnapshotInvalid):
                    return verify(final, manifest.root_hash).manifest
                discard(final)
            os.rename(temporary, final)
            sync_folder(self.folder)
        return manifest

    @contextlib.contextmanager
    def _discarding(self) -> Iterator[Callable[[Path], None]]:
        """Holds the lock, and yields a function that removes a snapshot.

        After a crash the snapshot is complete or gone. Its space is free on exit.
        """
        doomed: list[Path] = []

        def discard(path: Path) -> None:
            doomed.append(self._temporary())
            os.rename(path, doomed[-1])
            path.with_name(path.name + SIGNED).unlink(missing_ok=True)
            sync_folder(self.folder)

        try:
            with self._lock:
                yield discard
        finally:
            for each in doomed:
                remove(each)

    def checkpoint(self, snapshot_id: str) -> bytes:
        """The signed checkpoint of a snapshot. Empty if there is none."""
        try:
            return (self.folder / f"{snapshot_id}{SIGNED}").read_bytes()
        except FileNotFoundError:
            return b""

    def put_checkpoint(self, snapshot_id: str, data: bytes) -> None:
        """Stores the signed checkpoint of a snapshot, durably. Raises OSError."""
        draft = self._temporary()
        write_file(draft, [data])
        with self._lock:
            os.replace(draft, self.folder / f"{snapshot_id}{SIGNED}")
            sync_folder(self.folder)

    def ids(self) -> tuple[str, ...]:
        """Ids of the snapshots in order of revision. It opens no file."""
        return tuple(sorted(entry.name for entry in self.folder.iterdir() if fmt.is_snapshot_id(entry.name)))

    def list(self) -> tuple[Manifest, ...]:
        """Manifests in order of revision. An unreadable one is logged and ignored."""
        manifests = []
        for snapshot_id in self.ids():
            try:
                manifests.append(self.open(snapshot_id)[0])
            except (SnapshotInvalid, SnapshotNotFound) as error:
                log.warning("snapshot %s is ignored: %s", snapshot_id, error)
        return tuple(manifests)

    def open(self, snapshot_id: str = "") -> tuple[Manifest, Path]:
        """(manifest, folder) of a snapshot, "" for the newest.

        It checks the manifest and not the tensors.

        Raises:
            SnapshotNotFound: the snapshot does not exist.
            SnapshotInvalid: the manifest is invalid.
        """
        path = self._path(snapshot_id)
        manifest = chains.read_manifest(path)
        _check_name(path, manifest)
        return manifest, path

    def _path(self, snapshot_id: str) -> Path:
        if not snapshot_id:
            snapshot_id = next(reversed(self.ids()), "")
        if not fmt.is_snapshot_id(snapshot_id) or not (self.folder / snapshot_id).is_dir():
            raise SnapshotNotFound("the snapshot does not exist")
        return self.folder / snapshot_id

    def load(self, snapshot_id: str = "") -> LoadedSnapshot:
        """The tensors of a snapshot, verified and mapped read-only. "" means the newest.

        Raises:
            SnapshotNotFound: the snapshot does not exist.
            SnapshotInvalid: the snapshot does not verify.
        """
        path = self._path(snapshot_id)
        loaded = snapshot_files.load(path, files=_plain_files(path))
        _check_name(path, loaded.manifest)
        return loaded

    def verify(self, snapshot_id: str = "") -> Verification:
        """Checks every byte of a snapshot. "" means the newest.

        Raises:
            SnapshotNotFound: the snapshot does not exist.
            SnapshotInvalid: the snapshot does not verify.
        """
        path = self._path(snapshot_id)
        verification = verify(path)
        _check_name(path, verification.manifest)
        return verification

    def prune(self, keep: int) -> tuple[str, ...]:
        """Removes all snapshots except the `keep` newest ones and their parents.

        Returns the removed ids.

        Raises:
            ValueError: `keep` is below 1.
        """
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        with self._discarding() as discard:
            ids = self.ids()
            needed = {parent for each in ids[-keep:] for parent in chains.parents_of(self.folder / each)}
            doomed = tuple(each for each in ids[:-keep] if each not in needed)
            for snapshot_id in doomed:
                discard(self.folder / snapshot_id)
        return doomed

    def keep(self, kept: Collection[str]) -> tuple[str, ...]:
        """Removes all snapshots except those with the ids `kept`. Returns the removed ids."""
        with self._discarding() as discard:
            doomed = tuple(each for each in self.ids() if each not in kept)
            for snapshot_id in doomed:
                discard(self.folder / snapshot_id)
        return doomed

    def remove_before(self, revision: int, kept: Collection[str] = ()) -> tuple[str, ...]:
        """Removes the snapshots with an earlier revision, except those with the ids `kept`.

        Those that stay and need a removed one become whole before.

        Returns the ids of the removed ones.

        Raises:
            SnapshotInvalid, SnapshotDiskFull: as `detach`.
        """
        doomed = {each for each in self.ids() if int(each[:20]) < revision and each not in kept}
        for each in self.ids():
            if each not in doomed and doomed.intersection(chains.parents_of(self.folder / each)):
                self.detach(each)
        with self._discarding() as discard:
            gone = tuple(each for each in self.ids() if each in doomed)
            for snapshot_id in gone:
                discard(self.folder / snapshot_id)
        return gone

    def pieces(self, snapshot_id: str = "") -> Iterator[Piece]:
        """Yields the files of a snapshot in pieces of at most `FETCH_BYTES`, the manifest first.

        It opens all files before the first piece, so that pruning does not affect it.

        Raises:
            SnapshotNotFound: the snapshot does not exist.
            SnapshotInvalid: the manifest is invalid.
        """
        _, path = self.open(snapshot_id)
        if is_sealed(path) and not chains.is_incremental(path):
            yield from _sealed_pieces(path)
            return
        with contextlib.ExitStack() as stack:
            made = chains.whole_files(path) if chains.is_incremental(path) else None
            files = [
                (name, stack.enter_context(made[name] if made else snapshot_files.open_file(path, name)))
                for name in fmt.FILES
            ]
            for name, file in files:
                file.seek(0)
                size = os.fstat(file.fileno()).st_size
                offset = 0
                while data := file.read(FETCH_BYTES):
                    yield Piece(name, offset, size, data)
                    offset += len(data)


def _whole(state: FrozenState, folder: Path, progress: Progress | None) -> Manifest:
    """Writes a whole snapshot to a new folder, without a sync of the folder."""
    layout = state.layout
    folder.mkdir()
    key = present()
    with TensorFiles(folder, layout) if key is None else SealedFiles(folder, key, layout) as files:
        manifest = _manifest(state, scan(state, layout, files.write, progress))
        files.finish(manifest.to_json())
    return manifest


def _new_changes(folder: Path) -> ChangesFile | SealedChanges:
    key = present()
    return ChangesFile(folder) if key is None else SealedChanges(folder, key)


def _read_all(file: io.FileIO) -> Iterator[bytes]:
    while data := file.read(FETCH_BYTES):
        yield data


def copy_whole(path: Path, target: Path) -> None:
    """Writes the files of a snapshot to a folder, whole if it is incremental, and syncs them.

    Raises:
        SnapshotInvalid: it is damaged.
    """
    if not chains.is_incremental(path):
        for each in sorted(path.iterdir()):
            copied = target / each.name
            shutil.copyfile(each, copied)
            sync_file(copied)
        return
    key, files = present(), chains.whole_files(path)
    with contextlib.ExitStack() as stack:
        for file in files.values():
            stack.enter_context(file)
            file.seek(0)
        if key is None:
            for name, file in files.items():
                write_file(target / name, _read_all(file))
            return
        sealed = stack.enter_context(SealedFiles(target, key))
        for name, file in files.items():
            at = 0
            while data := file.read(FETCH_BYTES):
                sealed.add(name, at, data)
                at += len(data)
        sealed.end()


def verify(path: Path, root_hash: bytes | None = None) -> Verification:
    """Checks every byte of the snapshot in a folder, also if it is encrypted with the present key.

    Raises:
        SnapshotInvalid: it does not verify, or it does not have the root hash.
    """
    return snapshot_files.verify(path, root_hash, _plain_files(path))


def _plain_files(path: Path) -> dict[str, io.FileIO] | None:
    """The files of an encrypted snapshot, in memory, or of an incremental one. None for others."""
    if chains.is_incremental(path):
        return chains.whole_files(path)
    if not is_sealed(path):
        return None
    with SealedSnapshot(path) as sealed:
        return sealed.files()


def _sealed_pieces(path: Path) -> Iterator[Piece]:
    with SealedSnapshot(path) as sealed:
        for name in fmt.FILES:
            size = sealed.size(name)
            for offset, data in sealed.pieces(name):
                for start in range(0, len(data), FETCH_BYTES):
                    yield Piece(name, offset + start, size, data[start : start + FETCH_BYTES])


def _check_name(path: Path, manifest: Manifest) -> None:
    if path.name != manifest.snapshot_id:
        raise SnapshotInvalid(
            "", f"the folder is named {path.name}, but its manifest belongs to {manifest.snapshot_id}"
        )


def _manifest(state: FrozenState, tensors: tuple[Tensor, ...]) -> Manifest:
    manifest = Manifest(
        model=state.model,
        lineage=state.lineage,
        revision=state.revision,
        kernel_semantics=state.kernel_semantics,
        log_hash=state.log_hash,
        log_hash_name=state.log_hash_name,
        created_us=state.created_us,
        spec=state.spec_body,
        tensors=tensors,
        root_hash=fmt.root_hash(state.revision, tensors),
    )
    # The round trip ensures that readers accept every published manifest.
    return Manifest.from_json(manifest.to_json())
