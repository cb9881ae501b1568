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
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import digest
from livefactor.snapshots import files as snapshot_files
from livefactor.snapshots import format as fmt
from livefactor.snapshots.files import Verification
from livefactor.snapshots.format import Layout, Manifest, Place, Tensor
from livefactor.snapshots.loaded import LoadedSnapshot
from livefactor_server.log.sealing import present
from livefactor_server.snapshots.safetensors_writer import TensorFiles, sync_folder
from livefactor_server.snapshots.sealed import SealedFiles, SealedSnapshot, is_sealed

USERS, ITEMS = 0, 1
PASS_BYTES = 4 << 20
"""Bytes of rows per read from the tables."""

FETCH_BYTES = 1 << 20
"""Maximum number of bytes per piece of `SnapshotStore.pieces`."""

_TEMPORARY = ".tmp-"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Function of (bytes done, total bytes), called after every piece.

If it raises an exception, the work ends with this exception.
"""


class SnapshotDiskFull(Exception):
    """The disk is too full for the snapshot. No part of it remains."""


class SnapshotNotFound(LookupError):
    """No snapshot has this id, or there are no snapshots."""


class RowReader(Protocol):
    """The part of a pin (`livefactor_kernels.backend`) that a snapshot needs: the rows at one
    revision.
    """

    @property
    def counts(self) -> tuple[int, int]:
        """(number of user rows, number of item rows)."""

    def read_rows(self, side: int, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """The sections of rows [start, stop) of a side, by name.

        For example keys uint64[n], factors [n, k or more] in their stored type (bfloat16 as
        uint16), bias float32[n].
        """


@dataclass(slots=True)
class FrozenState:
    """The whole state at one revision, which later updates do not change.

    Attributes:
        spec_body: the logged bytes of the spec.
        log_hash: chain hash of the log at `revision`, 32 bytes.
        created_us: microseconds since 1970 UTC.
        pin: the rows at `revision`.
        small: sections beside the tables, one-dimensional, with the names of
            `livefactor.snapshots.sections.small_sections`.
        remembered: numbers of remembered events of users and items, with `history.paged`; else 0.
    """

    revision: int
    lineage: uuid.UUID
    spec_body: bytes
    log_hash: bytes
    log_hash_name: str
    created_us: int
    kernel_semantics: int
    model: str
    pin: RowReader
    small: Mapping[str, np.ndarray]
    remembered: tuple[int, int] = (0, 0)

    @property
    def layout(self) -> Layout:
        """The place of every section.

        Raises:
            ValueError: the state does not fit the format.
        """
        users, items = self.pin.counts
        lengths = {name: len(array) for name, array in self.small.items()}
        return fmt.layout(self.spec_body, users, items, lengths, self.remembered)


class Piece(NamedTuple):
    """Consecutive bytes of one file of a snapshot."""

    file_name: str
    offset: int
    file_size: int
    data: bytes


Sink = Callable[[Place, int, memoryview], None]


def root_hash_of(state: FrozenState, progress: Progress | None = None) -> tuple[bytes, tuple[Tensor, ...]]:
    """(root hash, sections) of a state. It reads the state in pieces and keeps no copy."""
    tensors = _scan(state, state.layout, lambda place, offset, data: None, progress)
    return fmt.root_hash(state.revision, tensors), tensors


def _scan(state: FrozenState, layout: Layout, sink: Sink, progress: Progress | None) -> tuple[Tensor, ...]:
    """Hashes all sections in one pass over the rows.

    It passes each piece to `sink` (section, byte offset, bytes).
    """
    hashers = {place.name: digest.SectionHasher() for place in layout.places}
    places = {place.name: place for place in layout.places}
    offsets = dict.fromkeys(places, 0)
    total, done = layout.nbytes, 0
    for pieces in _pieces(state, places):
        for name, data in pieces:
            sink(places[name], offsets[name], data)
            hashers[name].update(data)
            offsets[name] += data.nbytes
            done += data.nbytes
        if progress is not None:
            progress(done, total)
    assert all(offsets[name] == place.nbytes for name, place in places.items()), offsets
    return tuple(Tensor(place, hashers[place.name].finish()) for place in layout.places)


def _pieces(state: FrozenState, places: dict[str, Place]) -> Iterator[list[tuple[str, memoryview]]]:
    for side, table in ((USERS, "users"), (ITEMS, "items")):
        mine = [place for place in places.values() if place.name.startswith(table + ".")]
        rows = state.pin.counts[side]
        step = max(1, PASS_BYTES * rows // max(1, sum(place.nbytes for place in mine)))
        for start in range(0, rows, step):
            columns = state.pin.read_rows(side, start, min(rows, start + step))
            yield [(place.name, _column(columns[place.name.split(".")[1]], place)) for place in mine]
    for name in sorted(state.small):
        array = state.small[name]
        place = places[name]
        if array.shape != place.shape:
            raise ValueError(f"{name}: expected shape {place.shape}, got {array.shape}")
        yield [(name, _bytes(array, place))]


def _column(column: np.ndarray, place: Place) -> memoryview:
    if column.ndim == 2:
        # Rows have padding in memory.
        column = column[:, : place.shape[1]]
    return _bytes(column, place)


def _bytes(array: np.ndarray, place: Place) -> memoryview:
    expected = np.dtype(fmt.NUMPY_DTYPES[place.dtype])
    if array.dtype != expected:
        raise ValueError(f"{place.name}: expected dtype {expected}, got {array.dtype}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


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
                _remove(entry)

    def take(self, state: FrozenState, progress: Progress | None = None) -> Manifest:
        """Writes a snapshot of `state`, which is durable on return.

        A damaged snapshot with the same id is replaced. A valid one with the same id stays.

        Raises:
            SnapshotDiskFull: the disk is too full. No part of the snapshot remains.
            ValueError: the state does not fit the format.
            OSError: the disk reports another error.
        """
        temporary = self._temporary()
        try:
            layout = state.layout
            temporary.mkdir()
            with _new_files(temporary, layout) as files:
                tensors = _scan(state, layout, files.write, progress)
                manifest = _manifest(state, tensors)
                files.finish(manifest.to_json())
            sync_folder(temporary)
            return self._publish(temporary, manifest)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise SnapshotDiskFull(f"no room for a snapshot at revision {state.revision}") from error
            raise
        finally:
            _remove(temporary)

    def _temporary(self) -> Path:
        return self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"

    def _publish(self, temporary: Path, manifest: Manifest) -> Manifest:
        final = self.folder / manifest.snapshot_id
        with self._lock:
            if os.path.lexists(final):
                with contextlib.suppress(SnapshotInvalid):
                    return verify(final, manifest.root_hash).manifest
                self._discard(final)
            os.rename(temporary, final)
            sync_folder(self.folder)
        return manifest

    def _discard(self, path: Path) -> None:
        """Removes a snapshot. After a crash it is complete or gone."""
        doomed = self._temporary()
        os.rename(path, doomed)
        sync_folder(self.folder)
        _remove(doomed)

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
        manifest = _read_manifest(path)
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
        """Removes all snapshots except the `keep` newest ones. Returns the removed ids.

        Raises:
            ValueError: `keep` is below 1.
        """
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        with self._lock:
            doomed = self.ids()[:-keep]
            for snapshot_id in doomed:
                self._discard(self.folder / snapshot_id)
        return doomed

    def keep(self, kept: Collection[str]) -> tuple[str, ...]:
        """Removes all snapshots except those with the ids `kept`. Returns the removed ids."""
        with self._lock:
            doomed = tuple(each for each in self.ids() if each not in kept)
            for snapshot_id in doomed:
                self._discard(self.folder / snapshot_id)
        return doomed

    def remove_before(self, revision: int) -> tuple[str, ...]:
        """Removes the snapshots with an earlier revision. Returns their ids."""
        with self._lock:
            doomed = tuple(each for each in self.ids() if int(each[:20]) < revision)
            for snapshot_id in doomed:
                self._discard(self.folder / snapshot_id)
        return doomed

    def pieces(self, snapshot_id: str = "") -> Iterator[Piece]:
        """Yields the files of a snapshot in pieces of at most `FETCH_BYTES`, the manifest first.

        It opens all files before the first piece, so that pruning does not affect it.

        Raises:
            SnapshotNotFound: the snapshot does not exist.
            SnapshotInvalid: the manifest is invalid.
        """
        _, path = self.open(snapshot_id)
        if is_sealed(path):
            yield from _sealed_pieces(path)
            return
        with contextlib.ExitStack() as stack:
            files = [(name, stack.enter_context(snapshot_files.open_file(path, name))) for name in fmt.FILES]
            for name, file in files:
                size = os.fstat(file.fileno()).st_size
                offset = 0
                while data := file.read(FETCH_BYTES):
                    yield Piece(name, offset, size, data)
                    offset += len(data)


def _new_files(folder: Path, layout: Layout) -> TensorFiles | SealedFiles:
    key = present()
    return TensorFiles(folder, layout) if key is None else SealedFiles(folder, key, layout)


def verify(path: Path, root_hash: bytes | None = None) -> Verification:
    """Checks every byte of the snapshot in a folder, also if it is encrypted with the present key.

    Raises:
        SnapshotInvalid: it does not verify, or it does not have the root hash.
    """
    return snapshot_files.verify(path, root_hash, _plain_files(path))


def _plain_files(path: Path) -> dict[str, io.FileIO] | None:
    """The files of an encrypted snapshot, in memory. None for a plain one."""
    if not is_sealed(path):
        return None
    with SealedSnapshot(path) as sealed:
        return sealed.files()


def _read_manifest(path: Path) -> Manifest:
    if not is_sealed(path):
        return snapshot_files.read_manifest(path)
    with SealedSnapshot(path) as sealed:
        try:
            return Manifest.from_json(sealed.manifest())
        except ValueError as error:
            raise SnapshotInvalid(fmt.MANIFEST_FILE, str(error)) from None


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


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
