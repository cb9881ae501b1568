"""Disks that fail, fill up, write short or take no direct writes."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crash_io import CrashIO, FileSync
from livefactor_server.log.disk import BLOCK_BYTES, FileIO, write_all
from livefactor_server.log.format import DATA_START
from livefactor_server.log.segments import SPARE_NAME
from livefactor_server.log.store import Log, LogFailed, LogFull
from logs import FOLDER, ROOT, append, body_of, check_clean, new_log


@pytest.mark.parametrize("k", range(1, 21))
def test_a_failed_sync_is_fatal_and_never_repeated(k: int) -> None:
    io = CrashIO(ROOT)
    log = new_log(io, segment_bytes=16 * 1024)
    io.sync_errors = [None] * (k - 1) + [errno.EIO]
    acked = 0
    for _ in range(60):
        try:
            append(log, 1)
        except LogFailed:
            break
        acked = log.last_revision
    assert log.last_revision == acked
    assert log.failed
    events = len(io.events)
    for attempt in (lambda: append(log, 1), log.mark):
        with pytest.raises(LogFailed):
            attempt()
    assert len(io.events) == events, "a failed log touched the disk"
    log.close()
    again = Log.open(FOLDER, io, segment_bytes=16 * 1024, ahead=False)
    assert again.last_revision >= acked
    append(again, 1)


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_failed_write_is_fatal(code: int) -> None:
    io = CrashIO(ROOT)
    log = new_log(io)
    append(log, 2)
    io.write_errors = [code]
    with pytest.raises(LogFailed):
        append(log, 2)
    with pytest.raises(LogFailed):
        append(log, 2)
    assert log.last_revision == 2
    assert Log.open(FOLDER, io).last_revision == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_and_the_log_goes_on(code: int) -> None:
    io = CrashIO(ROOT)
    log = new_log(io, segment_bytes=16 * 1024)
    appended = 0
    io.allocate_errors = [code] * 3
    for _ in range(20):
        before = log.last_revision
        names = set(io.names(FOLDER))
        try:
            append(log, 2)
            appended += 2
        except LogFull:
            assert log.last_revision == before
            assert log.failed is None
            assert set(io.names(FOLDER)) == names
    assert not io.allocate_errors
    assert log.last_revision == appended == 34
    check_clean(io, appended)


class ThreadedIO(FileIO):
    """A disk where other threads wait for `free`, and where the next write of this one can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.is_full = False

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        if threading.current_thread() is not threading.main_thread():
            assert self.free.wait(60)
        elif self.is_full:
            self.is_full = False
            raise OSError(errno.ENOSPC, "no space")
        return super().pwrite(fd, data, offset)


def test_a_full_disk_does_not_stop_the_making_of_the_next_segment(tmp_path: Path) -> None:
    io = ThreadedIO()
    log = Log.create(tmp_path / "log", b"s", io=io, segment_bytes=2 << 20)
    # The thread waits in its first write of zeros, and has further ones to do.
    append(log, 1, 1_200_000)
    io.is_full = True
    with pytest.raises(LogFull):
        append(log, 1, 100)
    io.free.set()
    spare, end = tmp_path / "log" / SPARE_NAME, time.monotonic() + 20
    while "log-preallocate" in {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < end, "the thread waits for a write that is over"
        time.sleep(0.01)
    assert spare.stat().st_blocks * 512 >= 2 << 20
    append(log, 1, 100)
    assert log.last_revision == 2
    log.close()


def test_a_group_grows_no_more_once_its_block_is_in_its_place() -> None:
    """A large group finds no room for a new segment. The last block is in its place by then.

    Small records that follow must not change what stands there.
    """
    io = CrashIO(ROOT)
    log = new_log(io, segment_bytes=16 * 1024)
    append(log, 1, 10)
    io.allocate_errors = [errno.ENOSPC]
    with pytest.raises(LogFull):
        append(log, 1, 30_000)
    for _ in range(3):
        append(log, 1, 10)
    log.close()
    again = Log.open(FOLDER, io, read_only=True)
    assert again.tail is None
    assert [bytes(record.body) for record in again.read(1)] == [bytes([r]) * 10 for r in range(1, 5)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("count", "failing"), [(1, 0), (9, 0), (9, 1)], ids=["slot", "blocks", "second-write"]
)
def test_a_disk_that_fills_up_inside_a_write_leaves_nothing(code: int, count: int, failing: int) -> None:
    io = CrashIO(ROOT)
    log = new_log(io)
    append(log, 2)
    io.write_errors = [None] * failing + [code]
    before = bytes(io.map(log.segments[-1].path))[DATA_START:]
    with pytest.raises(LogFull):
        append(log, count)
    assert bytes(io.map(log.segments[-1].path))[DATA_START:] == before
    assert isinstance(io.events[-1], FileSync)
    check_clean(io, 2)
    append(log, 3)
    check_clean(io, 5)


def test_a_full_disk_is_fatal_if_the_cleanup_fails() -> None:
    io = CrashIO(ROOT)
    log = new_log(io)
    append(log, 2)
    io.write_errors = [errno.ENOSPC, errno.ENOSPC]
    with pytest.raises(LogFailed):
        append(log, 2)
    assert log.failed
    Log.open(FOLDER, io).close()
    check_clean(io, 2)


def test_a_creation_that_finds_no_room_leaves_nothing() -> None:
    io = CrashIO(ROOT)
    io.allocate_errors = [errno.ENOSPC]
    with pytest.raises(LogFull):
        new_log(io)
    assert io.names(FOLDER) == []
    append(new_log(io), 1)


def test_a_full_file_system_is_survived(small_file_system: Callable[[int], Path]) -> None:
    """The log reports that a real disk of 4 MiB is full, and keeps its records.

    It continues once the disk has room again.
    """
    folder = small_file_system(4 << 20)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    log = new_log(folder=folder / "log", segment_bytes=256 * 1024)
    for _ in range(200):
        try:
            append(log, 40)
        except LogFull:
            break
    full = log.last_revision
    assert 400 < full < 200 * 40
    with pytest.raises(LogFull):
        append(log, 40)
    ballast.unlink()
    append(log, 40)
    log.close()
    again = Log.open(folder / "log", read_only=True)
    assert again.last_revision == full + 40
    assert again.tail is None
    assert [bytes(record.body) for record in again.read(full)] == [body_of(r) for r in range(full, full + 41)]


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Provide a function that mounts a tmpfs with a size in bytes.

    The test is skipped where mounting is not allowed.
    """
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / "small"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(
                f"1 full-disk test not run: no right to mount a tmpfs ({done.stderr.decode().strip()})"
            )
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class ShortWrites(FileIO):
    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        assert offset % BLOCK_BYTES == 0
        return super().pwrite(
            fd, data[: max(BLOCK_BYTES, len(data) // 2 // BLOCK_BYTES * BLOCK_BYTES)], offset
        )


def test_short_writes_are_finished(tmp_path: Path) -> None:
    log = Log.create(tmp_path / "log", b"s", io=ShortWrites())
    append(log, 4, 50_000)
    log.close()
    assert check_sizes(tmp_path / "log") == [50_000] * 4


class StuckDisk(FileIO):
    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return 0


def test_a_disk_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    with pytest.raises(OSError, match="wrote nothing"):
        write_all(StuckDisk(), fd, memoryview(bytes(BLOCK_BYTES)), 0)
    os.close(fd)


@pytest.mark.parametrize("refused_at", ["open", "write"])
def test_a_file_system_without_direct_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_at: str
) -> None:
    real_open, real_pwrite = os.open, os.pwrite

    def refuse_open(path: object, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT and refused_at == "open":
            raise OSError(errno.EINVAL, "no direct writes")
        return real_open(path, flags, mode)

    refusals = []

    def refuse_pwrite(fd: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refusals.append(fd)
            raise OSError(errno.EINVAL, "no direct writes")
        return real_pwrite(fd, data, offset)

    monkeypatch.setattr(os, "open", refuse_open)
    monkeypatch.setattr(os, "pwrite", refuse_pwrite)
    log = Log.create(tmp_path / "log", b"s")
    append(log, 2, 5000)
    append(log, 2, 5000)
    log.close()
    monkeypatch.undo()
    assert check_sizes(tmp_path / "log") == [5000] * 4
    assert len(refusals) <= 3


def check_sizes(folder: Path) -> list[int]:
    return [len(record.body) for record in Log.open(folder, read_only=True).read(1)]
