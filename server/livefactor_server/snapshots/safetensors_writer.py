"""Writes the files of a snapshot in pieces, without a copy of a tensor in memory.

The layout is known before the first byte (`livefactor.snapshots.format.layout`). So the writer
reserves the space first, and a full disk is found before any other work. It writes each piece to
its place, in any order of the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from livefactor.snapshots.files import CHANGES_FILE
from livefactor.snapshots.format import MANIFEST_FILE, Layout, Place

SYNC_BYTES = 4 << 20
"""Number of written bytes after which the files are synced.

A sync of the log waits for the one of a snapshot, so an acknowledgement is late by the time that
the disk takes for so many bytes.
"""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class TensorFiles:
    """The safetensors files of a layout in `folder`, open for writing.

    It is a context manager. Call `finish` before it exits.

    Raises:
        OSError: as the file system reports it, with ENOSPC if the space cannot be reserved.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        self._unsynced = 0
        try:
            for name, size in layout.sizes.items():
                self._files[name] = os.open(folder / name, _CREATE, 0o644)
                os.posix_fallocate(self._files[name], 0, size)
                _write_at(self._files[name], memoryview(layout.headers[name]), 0)
        except BaseException:
            self._close()
            raise

    def write(self, place: Place, offset: int, data: memoryview) -> None:
        """Writes bytes of a section, `offset` bytes after its beginning."""
        assert offset + data.nbytes <= place.nbytes, (place, offset, data.nbytes)
        _write_at(self._files[place.file], data, place.offset + offset)
        self._unsynced += data.nbytes
        if self._unsynced >= SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        """Makes all written bytes durable."""
        for file in self._files.values():
            os.fsync(file)
        self._unsynced = 0

    def finish(self, manifest: bytes) -> None:
        """Writes the manifest, and makes everything durable."""
        self.sync()
        write_file(self._folder / MANIFEST_FILE, [manifest])

    def _close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


class ChangesFile:
    """The file of an incremental snapshot in `folder`, open for writing.

    It is a context manager.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = os.open(folder / CHANGES_FILE, _CREATE, 0o644)
        self._end = self._unsynced = 0

    def append(self, data: bytes | memoryview) -> None:
        """Writes the next bytes. Raises OSError."""
        view = memoryview(data)
        _write_at(self._file, view, self._end)
        self._end += view.nbytes
        self._unsynced += view.nbytes
        if self._unsynced >= SYNC_BYTES:
            os.fsync(self._file)
            self._unsynced = 0

    def finish(self, manifest: bytes) -> None:
        """Writes the manifest, and makes everything durable."""
        os.fsync(self._file)
        write_file(self._folder / MANIFEST_FILE, [manifest])

    def __enter__(self) -> ChangesFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def sync_file(path: Path) -> None:
    """Makes the bytes of a file durable."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def write_file(path: Path, parts: Iterable[bytes]) -> None:
    """Creates `path` with these bytes and syncs it."""
    file = os.open(path, _CREATE, 0o644)
    try:
        end = 0
        for part in parts:
            _write_at(file, memoryview(part), end)
            end += len(part)
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_at(file: int, data: memoryview, offset: int) -> None:
    while data.nbytes:
        written = os.pwrite(file, data, offset)
        data = data[written:]
        offset += written
