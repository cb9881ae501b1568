"""Every touch of the disk the log makes, in one small class, so that tests can plant faults in its place.

Nothing above this file calls `os` for a file of the log. `tests/kit/crash_io.py` implements the same verbs
over a simulated disk that loses what was not synced.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

BLOCK_BYTES = 4096
"""Alignment of every direct write: offset, length and address are multiples of it."""

DISK_FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})


class FileIO:
    """The operating system's files. Every method raises OSError as the system reports it."""

    def open(self, path: Path, create: bool = False) -> int:
        """Opens for writing, with O_DIRECT where the file system takes it. `create` demands a new file."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        if create:
            os.close(os.open(path, flags, 0o640))
            flags &= ~(os.O_CREAT | os.O_EXCL)
        try:
            return os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.open(path, flags)

    def close(self, fd: int) -> None:
        """Lets go of the file; makes nothing durable."""
        os.close(fd)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """Bytes written, possibly fewer than given. A file system that took O_DIRECT at open and refuses it
        here (EINVAL) is written through the page cache from then on."""
        try:
            return os.pwrite(fd, data, offset)
        except OSError as error:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        """When it returns, the file's bytes and length are durable; after an error nothing is known."""
        os.fdatasync(fd)

    def fsync_dir(self, folder: Path) -> None:
        """When it returns, the names in the folder are durable."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def fallocate(self, fd: int, size: int) -> None:
        """Makes the file `size` bytes long with every block reserved, reading as zeros."""
        os.posix_fallocate(fd, 0, size)

    def map(self, path: Path) -> memoryview:
        """The whole file, read-only, as long as any view of it lives. Its `obj` has `find(bytes, start)`."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else b"")
        finally:
            os.close(fd)

    def size(self, path: Path) -> int:
        """Bytes in the file."""
        return os.stat(path).st_size

    def names(self, folder: Path) -> list[str]:
        """Names in the folder; empty if there is no such folder."""
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []

    def make_folder(self, folder: Path) -> None:
        """Makes the folder, and those above it, if they are missing."""
        os.makedirs(folder, mode=0o750, exist_ok=True)

    def rename(self, old: Path, new: Path) -> None:
        """Gives the file its new name, in place of a file that has it."""
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """Removes the name."""
        os.unlink(path)


def write_all(io: FileIO, fd: int, data: memoryview, offset: int) -> None:
    """Writes all of `data` (page aligned, a multiple of BLOCK_BYTES long) at `offset`, over short writes.

    A short write may end inside a block, where a direct write cannot start: it goes on from that block's
    beginning.
    """
    done = 0
    while done < len(data):
        written = io.pwrite(fd, data[done:], offset + done)
        if written <= 0:
            raise OSError(errno.EIO, "the file system wrote nothing and gave no reason")
        done += written
        if done < len(data):
            done -= done % BLOCK_BYTES


def aligned_buffer(size: int) -> mmap.mmap:
    """Anonymous zeroed memory, page aligned as direct writes need, `size` rounded up to whole blocks."""
    return mmap.mmap(-1, max(size + -size % BLOCK_BYTES, BLOCK_BYTES))
