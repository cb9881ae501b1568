"""All disk operations of the log, in one small class that tests can replace to inject faults.

No other file of this package calls `os` for a file of the log. `tests/kit/crash_io.py`
implements the same methods over a simulated disk that loses unsynced data.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

BLOCK_BYTES = 4096
"""Alignment of direct writes in bytes: offset, length and address are multiples of it."""

DISK_FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Values of `errno` that mean that the disk or the quota is full."""


class FileIO:
    """The files of the operating system.

    Every method passes on the OSError that the system reports.
    """

    def open(self, path: Path, create: bool = False) -> int:
        """Opens a file for writing and returns its descriptor.

        The file is opened with O_DIRECT if the file system supports it. With `create`, the file
        must not exist yet.
        """
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
        """Closes the file. This does not make its data durable."""
        os.close(fd)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """Writes `data` at `offset` and returns the number of bytes written, possibly fewer.

        Some file systems accept O_DIRECT at open and refuse it here with EINVAL. Such a file is
        written through the page cache from then on.
        """
        try:
            return os.pwrite(fd, data, offset)
        except OSError as error:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        """Makes the bytes and the length of the file durable.

        After an error their state is unknown.
        """
        os.fdatasync(fd)

    def fsync_dir(self, folder: Path) -> None:
        """Makes the names in the folder durable."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def fallocate(self, fd: int, size: int) -> None:
        """Makes the file `size` bytes long and reserves its blocks, which read as zeros."""
        os.posix_fallocate(fd, 0, size)

    def map(self, path: Path) -> memoryview:
        """Maps the whole file read-only. The mapping lives until its last view is released.

        The view's `obj` has a method `find(bytes, start)`.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ) if size else b"")
        finally:
            os.close(fd)

    def size(self, path: Path) -> int:
        """Size of the file in bytes."""
        return os.stat(path).st_size

    def names(self, folder: Path) -> list[str]:
        """Names in the folder; an empty list if the folder does not exist."""
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []

    def make_folder(self, folder: Path) -> None:
        """Makes the folder and its missing parents."""
        os.makedirs(folder, mode=0o750, exist_ok=True)

    def rename(self, old: Path, new: Path) -> None:
        """Renames the file. It replaces a file that has the new name."""
        os.rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Gives the file a second name, which must not exist."""
        os.link(old, new)

    def same_file(self, one: Path, other: Path) -> bool:
        """Whether two names are of one file."""
        return os.path.samefile(one, other)

    def unlink(self, path: Path) -> None:
        """Removes the file."""
        os.unlink(path)


def write_all(io: FileIO, fd: int, data: memoryview, offset: int) -> None:
    """Writes all of `data` at `offset` and continues after short writes.

    `data` is page aligned, and its length is a multiple of BLOCK_BYTES. A short write may end
    inside a block, where a direct write cannot start. The next write then starts at the beginning
    of that block.

    Raises:
        OSError: the file system reported an error, or it wrote nothing.
    """
    done = 0
    while done < len(data):
        written = io.pwrite(fd, data[done:], offset + done)
        if written <= 0:
            raise OSError(errno.EIO, "the file system wrote nothing and reported no error")
        done += written
        if done < len(data):
            done -= done % BLOCK_BYTES


def aligned_buffer(size: int) -> mmap.mmap:
    """Zeroed memory, aligned for direct writes, of `size` bytes rounded up to whole blocks."""
    return mmap.mmap(-1, max(size + -size % BLOCK_BYTES, BLOCK_BYTES))
