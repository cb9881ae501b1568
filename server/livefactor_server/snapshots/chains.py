"""Reads incremental snapshots: their parents, and the whole files that they stand for.

`increments.py` has the format. A snapshot of the folder may be plain or encrypted.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from pathlib import Path

import numpy as np

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import files as snapshot_files
from livefactor.snapshots import format as fmt
from livefactor.snapshots.files import CHANGES_FILE
from livefactor.snapshots.format import Manifest
from livefactor_server.snapshots.increments import Chain, Changes, Level
from livefactor_server.snapshots.sealed import SealedSnapshot, is_sealed

_PIECE_ROWS = 1 << 15
MISFITS = (IndexError, KeyError, TypeError, ValueError, OverflowError, StopIteration, MemoryError)
"""What an index raises that is not of its parents, although its hash is right."""


def is_incremental(path: Path) -> bool:
    """Whether a folder holds an incremental snapshot.

    Raises:
        SnapshotInvalid: it is encrypted, and damaged or with another key.
    """
    if is_sealed(path):
        with SealedSnapshot(path) as sealed:
            return sealed.size(CHANGES_FILE) > 0
    return os.path.lexists(path / CHANGES_FILE)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a snapshot of any form. The tensors and changes are not read.

    Raises:
        SnapshotInvalid: it is damaged.
    """
    if not is_sealed(path):
        return _plain_manifest(path) if is_incremental(path) else snapshot_files.read_manifest(path)
    with SealedSnapshot(path) as sealed:
        return _parsed(sealed.manifest())


def _plain_manifest(path: Path) -> Manifest:
    if names := sorted(set(os.listdir(path)) - {fmt.MANIFEST_FILE, CHANGES_FILE}):
        raise SnapshotInvalid("", f"holds {names[0][:64]!r}, which is not a file of an incremental snapshot")
    with snapshot_files.open_file(path, fmt.MANIFEST_FILE) as file:
        return _parsed(file.read(fmt.MANIFEST_BYTES_MAX) or b"")


def _parsed(data: bytes) -> Manifest:
    try:
        return Manifest.from_json(data)
    except ValueError as error:
        raise SnapshotInvalid(fmt.MANIFEST_FILE, str(error)) from None


def _mapped(file: io.FileIO) -> np.ndarray:
    if not os.fstat(file.fileno()).st_size:
        return np.empty(0, np.uint8)
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _changes(path: Path, is_checked: bool = True) -> Changes:
    if not is_sealed(path):
        with snapshot_files.open_file(path, CHANGES_FILE) as file:
            return Changes(_mapped(file), is_checked)
    with SealedSnapshot(path) as sealed:
        return Changes(np.frombuffer(b"".join(data for _, data in sealed.pieces(CHANGES_FILE)), np.uint8))


def open_chain(path: Path) -> Chain:
    """The state of a snapshot, whole or incremental. Its files are mapped: pruning stops nothing.

    Tensors are not verified: compare what is read with the manifest.

    Raises:
        SnapshotInvalid: a file of the chain is damaged or missing.
    """
    levels: list[Level] = []
    while is_incremental(path):
        level = Level(read_manifest(path), _changes(path))
        if levels and level.changes.depth != levels[-1].changes.depth - 1:
            raise SnapshotInvalid(CHANGES_FILE, "its parents are out of order")
        levels.append(level)
        path = path.parent / level.changes.parent
        if not fmt.is_snapshot_id(level.changes.parent) or not path.is_dir():
            raise SnapshotInvalid(CHANGES_FILE, f"its parent {level.changes.parent[:64]!r} is missing")
        if read_manifest(path).root_hash != level.changes.parent_root:
            raise SnapshotInvalid(CHANGES_FILE, f"its parent {level.changes.parent} is another one")
    return Chain(read_manifest(path), _tensors(path), levels[::-1])


def _tensors(path: Path) -> dict[str, np.ndarray]:
    with contextlib.ExitStack() as stack:
        if is_sealed(path):
            files = stack.enter_context(SealedSnapshot(path)).files()
        else:
            files = {name: snapshot_files.open_file(path, name) for name in fmt.TENSOR_FILES}
        for file in files.values():
            stack.enter_context(file)
        return {name: _mapped(files[name]) for name in fmt.TENSOR_FILES}


def parents_of(path: Path) -> list[str]:
    """The ids of the snapshots without which an incremental one cannot be read.

    The list ends early where one of them cannot be read.
    """
    found: list[str] = []
    with contextlib.suppress(SnapshotInvalid, OSError, ValueError, KeyError):
        while is_incremental(path):
            # The names alone are read. Who reads the rows checks all bytes.
            parent = _changes(path, is_checked=False).parent
            if not fmt.is_snapshot_id(parent) or parent in found:
                break
            found.append(parent)
            path = path.parent / parent
    return found


def whole_files(path: Path) -> dict[str, io.FileIO]:
    """The files of the whole snapshot that an incremental one stands for, by name.

    They have no name on the disk, and are gone when they are closed. Those of an encrypted snapshot
    are in memory.

    Raises:
        SnapshotInvalid: a file of the chain is damaged or missing.
    """
    made: dict[str, io.FileIO] = {}
    try:
        chain = open_chain(path)
        layout = chain.manifest.layout
        for name in fmt.FILES:
            made[name] = _scratch(path.parent, is_sealed(path))
        _write(made[fmt.MANIFEST_FILE], chain.manifest.to_json(), 0)
        for name, header in layout.headers.items():
            made[name].truncate(layout.sizes[name])
            _write(made[name], header, 0)
        for place, at, data in chain.pieces(_PIECE_ROWS):
            _write(made[place.file], data.data, place.offset + at)
    except BaseException as error:
        for file in made.values():
            file.close()
        if isinstance(error, MISFITS) and not isinstance(error, SnapshotInvalid):
            raise SnapshotInvalid(CHANGES_FILE, f"its index does not fit its parents: {error}") from None
        raise
    return made


def _scratch(folder: Path, in_memory: bool) -> io.FileIO:
    if not in_memory:
        # The folder may be read-only, or its file system may lack files without a name.
        with contextlib.suppress(OSError):
            return io.FileIO(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+b")
    return io.FileIO(os.memfd_create("snapshot", os.MFD_CLOEXEC), "r+b")


def _write(file: io.FileIO, data: bytes | memoryview, at: int) -> None:
    left = memoryview(data)
    while left.nbytes:
        written = os.pwrite(file.fileno(), left, at)
        left, at = left[written:], at + written
