"""Real power cuts: a test shuts an ext4 file system in a file down while a process writes.

loop_disk.py describes the file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from livefactor_server.log.store import Entry, FileIO, Kind, Log, LogError
from loop_disk import LoopFileSystem, run

CUTS = 20
SEED = 11
SEGMENT_BYTES = 64 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopFileSystem]:
    try:
        made = LoopFileSystem(tmp_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"{CUTS} power cuts not made: they need root, loop devices and mkfs.ext4 ({error})")
    yield made
    made.remove()


class NoSync(FileIO):
    """The planted bug. It writes through the page cache and syncs nothing."""

    def open(self, path: Path, create: bool = False) -> int:
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        return os.open(path, flags, 0o640)

    def fdatasync(self, fd: int) -> None:
        pass

    def fsync_dir(self, folder: Path) -> None:
        pass


def body_of(revision: int) -> bytes:
    return random.Random(revision).randbytes(revision * 7919 % 6000)


def write_for_ever(folder: Path, io: FileIO) -> None:
    """Create or open the log and append until the disk fails.

    Print one line for each durable group.
    """
    if (folder / "log").exists():
        log = Log.open(folder / "log", io, segment_bytes=SEGMENT_BYTES)
    else:
        log = Log.create(folder / "log", b"spec", io=io, segment_bytes=SEGMENT_BYTES)
    with log:
        print(log.last_revision, flush=True)
        while True:
            first = log.last_revision + 1
            entries = []
            for revision in range(first, first + 1 + first % 3):
                salt, body = os.urandom(16), body_of(revision)
                sealed = log.seal(salt, b"", body)
                entries.append(
                    Entry(Kind.INTERACTIONS, revision, b"p", 1, revision, 0, 1, b"", body, salt, sealed)
                )
            log.append(entries)
            print(log.last_revision, flush=True)
            if first % 17 == 0:
                log.mark()


def write_over_cuts(folder: Path, io: FileIO) -> None:
    """Run the writer's process.

    It writes until the cut and closes the disk's files. It continues once the test tells it that
    the disk is back.
    """
    while sys.stdin.readline():
        try:
            write_for_ever(folder, io)
        except (LogError, OSError) as error:
            print(f"off: {error}", flush=True)


class Writer:
    """The process that writes.

    It keeps running over the cuts, and it reads the log from the disk again after each cut.
    """

    def __init__(self, folder: Path, plant: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(folder), plant],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        line = self.process.stdout.readline()
        assert line, f"the writer died: {self.process.stderr.read()}"
        return line

    def write_and_cut(self, disk: LoopFileSystem, seconds: float) -> int:
        """Write for `seconds`, then cut, and return the last acknowledged revision."""
        self.process.stdin.write("on\n")
        self.process.stdin.flush()
        acked, line = -1, self.line()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            acked, line = int(line), self.line()
        disk.cut()
        # The pipe may still hold acknowledgements. They count.
        while not line.startswith("off"):
            acked, line = int(line), self.line()
        # A file system that is shut down gives EIO. If its journal noticed first, it gives EROFS.
        assert any(os.strerror(code) in line for code in (errno.EIO, errno.EROFS)), line
        disk.unmount()
        disk.mount()
        return acked


def test_nothing_acknowledged_is_lost(disk: LoopFileSystem) -> None:
    chance = random.Random(SEED)
    acked = lost = tails = 0
    with Writer(disk.folder, "sound") as writer:
        for _ in range(CUTS):
            acked = writer.write_and_cut(disk, 0.02 + 0.08 * chance.random())
            last, torn = recovered(disk.folder / "log")
            tails += torn
            lost += max(0, acked - last)
    assert lost == 0
    assert acked > 2 * CUTS
    print(f"{CUTS} power cuts, {acked} revisions acknowledged, {lost} lost, {tails} torn tails")


def recovered(folder: Path) -> tuple[int, bool]:
    """Return the last revision of the log and whether it has a torn tail.

    Every body must be the one that was appended.
    """
    log = Log.open(folder, read_only=True)
    for record in log.read(1, mapped=False):
        assert bytes(record.body) == body_of(record.revision)
    return log.last_revision, log.tail is not None


def test_a_writer_that_does_not_sync_is_caught(disk: LoopFileSystem) -> None:
    caught, cuts = 0, 3
    with Writer(disk.folder, "no-sync") as writer:
        for _ in range(cuts):
            acked = writer.write_and_cut(disk, 0.05)
            folder = disk.folder / "log"
            try:
                caught += acked > recovered(folder)[0]
            # A log that was never synced can be damaged in any way.
            except LogError:
                caught += 1
            run("rm", "-rf", folder)
    assert caught == cuts


def test_the_plug_is_only_pulled_on_our_own_loop_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = LoopFileSystem.__new__(LoopFileSystem)
    disk.image, disk.folder, disk.mounted_by_us = tmp_path / "disk.img", tmp_path, True
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: pytest.fail("the plug of another file system was pulled"))
    with pytest.raises(RuntimeError, match="no power cut"):
        disk.cut()


if __name__ == "__main__":
    write_over_cuts(Path(sys.argv[1]), NoSync() if sys.argv[2] == "no-sync" else FileIO())
