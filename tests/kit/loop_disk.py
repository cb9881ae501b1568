"""A file system in a file, for real power cuts.

A cut loses everything that the kernel has not written yet. It uses `FS_IOC_SHUTDOWN`, which works
on any file system, also on the machine's own. So only `LoopFileSystem.cut` calls it, and only for a
loop device that the test itself mounted. The tests do not cover disks that report a write as
durable while it is still in the disk's cache.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import time
from pathlib import Path

FS_IOC_SHUTDOWN = 0x8004587D
SHUTDOWN_NO_LOG_FLUSH = 2


class LoopFileSystem:
    """An ext4 file system in a sparse file, mounted at `folder`.

    Raises:
        OSError, CalledProcessError: root rights, loop devices or mkfs.ext4 are missing.
    """

    def __init__(self, folder: Path, size: int = 64 << 20) -> None:
        folder = folder.resolve()
        self.image, self.folder = folder / "disk.img", folder / "mounted"
        self.folder.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        self.mounted_by_us = False
        run("mkfs.ext4", "-q", "-F", self.image)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", self.image, self.folder)
        self.mounted_by_us = True

    def unmount(self) -> None:
        """Unmount the file system.

        Raises:
            RuntimeError: a process goes on using it.
        """
        for _ in range(100):
            if subprocess.run(["umount", str(self.folder)], capture_output=True, check=False).returncode == 0:
                self.mounted_by_us = False
                return
            time.sleep(0.02)
        raise RuntimeError(f"{self.folder} stays busy")

    def remove(self) -> None:
        """Unmount the file system at the end of a test."""
        if self.mounted_by_us:
            run("umount", "-l", self.folder)
            self.mounted_by_us = False

    def cut(self) -> None:
        """Shut the file system down as a power cut would.

        The call refuses unless the file system is on a loop device over this object's own image.
        """
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._check_ours(os.fstat(fd).st_dev)
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def _check_ours(self, device: int) -> None:
        name = f"{os.major(device)}:{os.minor(device)}"
        lines = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        mounts = [(words[4], words[words.index("-") + 2]) for words in lines if words[2] == name]
        sources = {source for _, source in mounts if re.fullmatch(r"/dev/loop[0-9]+", source)}
        backing = [
            Path(f"/sys/block/{source[5:]}/loop/backing_file").read_text().strip() for source in sources
        ]
        only_here = [folder for folder, _ in mounts] == [str(self.folder)]
        if not (self.mounted_by_us and only_here and backing == [str(self.image)]):
            raise RuntimeError(f"{self.folder} is not a loop file system of this test: no power cut")


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
