"""Segment files. They are preallocated and synced together with their folder before they are used.

Zeros are written ahead for speed. A direct write into blocks that are only reserved (`fallocate`)
makes the next sync commit the file system's journal. On ext4, 4 KiB with fdatasync took 0.31 ms in
reserved blocks and 0.15 ms in zeroed blocks; a group of 1.3 MB took 4.9 ms and 3.0 ms. Writing
zeros costs disk bandwidth, so a background thread does it. The thread pauses while a group is
written, and it stops when the segment is needed. A log under full load therefore gets reserved
blocks, and any other log gets zeroed blocks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from livefactor_server.log.disk import BLOCK_BYTES, DISK_FULL_ERRORS, FileIO, aligned_buffer, write_all
from livefactor_server.log.errors import LogFailed, LogFull

SPARE_NAME = "next.preallocated"
_ZERO_PIECE_BYTES = 512 * 1024
_STEP_ASIDE_S = 0.0005


class Preallocator:
    """Makes the next segment. With `ahead`, a background thread makes it in advance.

    It creates the file `next.preallocated`, reserves its blocks, syncs it and fills it with zeros.
    `take` renames it to the name of the segment and syncs the folder. `take` also handles all
    errors of the background thread.
    """

    def __init__(self, io: FileIO, folder: Path, ahead: bool) -> None:
        self._io, self._folder, self._ahead = io, folder, ahead
        self._path = folder / SPARE_NAME
        self._thread: threading.Thread | None = None
        self._size = 0
        self._error: OSError | None = None
        self._wanted = threading.Event()
        self.busy = False
        """The log sets this while it writes. The background thread then pauses."""

    def prepare(self, size: int) -> None:
        """Starts to make a spare file of `size` bytes, unless one exists or is being made."""
        if not self._ahead or self._thread is not None or self._size:
            return
        self._thread = threading.Thread(
            target=self._make_ahead, args=(size,), name="log-preallocate", daemon=True
        )
        self._thread.start()

    def take(self, path: Path, size: int, zeroed: int = 0) -> None:
        """Makes a segment of at least `size` bytes durable at `path`.

        Args:
            path: the segment file.
            size: its size in bytes.
            zeroed: bytes to fill with zeros, if the segment is not made in advance.

        Raises:
            LogFull: the disk has no room. The new file is removed.
            LogFailed: the disk reported any other error.
        """
        try:
            self._join()
            if self._size < size:
                self.discard()
                self._make(size, zeroed)
            self._io.rename(self._path, path)
            self._size = 0
            self._io.fsync_dir(self._folder)
        except OSError as error:
            # If this fails, too, the file is removed before the next one is made.
            with contextlib.suppress(OSError):
                self.discard()
            if error.errno in DISK_FULL_ERRORS:
                raise LogFull(
                    f"no room for a segment of {size} bytes in {self._folder}: {error.strerror}"
                ) from error
            raise LogFailed(f"could not make a segment in {self._folder}: {error}") from error

    def close(self) -> None:
        """Ends the background thread and removes the spare file.

        If that fails, the next open removes it.
        """
        with contextlib.suppress(OSError):
            self._join()
            self.discard()

    def discard(self) -> None:
        """Removes the spare file, complete or not."""
        self._size = 0
        if SPARE_NAME in self._io.names(self._folder):
            self._io.unlink(self._path)

    def _join(self) -> None:
        if self._thread is not None:
            self._wanted.set()
            self._thread.join()
            self._thread = None
            self._wanted.clear()
        if self._error is not None:
            self._error = None
            self.discard()

    def _make_ahead(self, size: int) -> None:
        try:
            self._make(size, size)
        except OSError as error:
            self._error = error

    def _make(self, size: int, zeroed: int) -> None:
        if SPARE_NAME in self._io.names(self._folder):
            self._io.unlink(self._path)
        fd = self._io.open(self._path, create=True)
        try:
            self._io.fallocate(fd, size)
            self._io.fdatasync(fd)
            if zeroed:
                self._write_zeros(fd, min(size, zeroed))
                self._io.fdatasync(fd)
        finally:
            self._io.close(fd)
        self._size = size

    def _write_zeros(self, fd: int, size: int) -> None:
        zeros = memoryview(aligned_buffer(min(size, _ZERO_PIECE_BYTES)))
        for offset in range(0, size, len(zeros)):
            while self.busy and not self._wanted.is_set():
                time.sleep(_STEP_ASIDE_S)
            if self._wanted.is_set():
                return
            write_all(self._io, fd, zeros[: min(len(zeros), size - offset)], offset)


def zero_range(io: FileIO, fd: int, start: int, end: int) -> None:
    """Overwrites [start, end) with zeros and syncs.

    Both are multiples of BLOCK_BYTES. Raises OSError.
    """
    zeros = memoryview(aligned_buffer(min(max(end - start, BLOCK_BYTES), 1 << 20)))
    for offset in range(start, end, len(zeros)):
        write_all(io, fd, zeros[: min(len(zeros), end - offset)], offset)
    io.fdatasync(fd)
