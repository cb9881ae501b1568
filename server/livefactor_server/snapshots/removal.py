"""Removes the files of snapshots.

A file system frees the blocks of a removed file with the next sync of any file. On some disks that
takes 200 ms for a gigabyte, and all acknowledgements wait for it. So large files are cut step by
step before they are removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

STEP_BYTES, STEP_S = 1 << 20, 0.003
"""Bytes that are freed at once, and the seconds until the next ones."""


def remove(path: Path, in_steps: bool = True) -> None:
    """Removes a file, a link or a folder of files, if it exists. No one may open the files now.

    Without `in_steps` it takes no longer than the file system, for when nobody waits for a sync.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        for file in path.iterdir() if in_steps else ():
            if file.is_file() and not file.is_symlink():
                _cut(file)
        shutil.rmtree(path)


def _cut(path: Path) -> None:
    """Makes a large file short, in steps. A file that is open or has a second name stays whole."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(file)
        if found.st_nlink > 1 or found.st_size <= STEP_BYTES or not _is_only_opener(file):
            return
        for size in range(found.st_size - STEP_BYTES, 0, -STEP_BYTES):
            os.ftruncate(file, size)
            time.sleep(STEP_S)
    finally:
        os.close(file)


def _is_only_opener(file: int) -> bool:
    """Whether no other descriptor of the file is open. The kernel gives a lease to the only one."""
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True
