"""What `livefactor doctor` finds out about the data folder: rights, space, speed and syncs.

The checks write one file of TRIAL_BYTES as the log writes: in whole blocks with O_DIRECT, and with
a sync after each write. They remove the file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from livefactor_server.cli.operations.findings import Finding, fault, ok, warning
from livefactor_server.log.disk import BLOCK_BYTES, FileIO, aligned_buffer, write_all

TRIAL_NAME = ".doctor"
TRIAL_BYTES = 32 << 20
"""Bytes of the file that is written to measure the disk."""

SYNCS = 100
"""Writes of one block with a sync each, whose times are measured."""

SYNC_P99_MS_MAX = 20.0
"""A 99th percentile above this is a warning: each group of updates waits for a sync."""

WRITE_MIB_S_MIN = 50.0
FREE_BYTES_MIN = 1 << 30

FORGETFUL = {"tmpfs": "the file system lies in memory", "ramfs": "the file system lies in memory"}
LAYERS = {"overlay", "aufs"}
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"}


def check_folder(data: Path) -> list[Finding]:
    """Checks the data folder, or its nearest parent if it does not exist yet."""
    folder = next(each for each in (data, *data.absolute().parents) if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        remedy = "give the user of the server write access, or name another folder with --data"
        return [fault("data folder", f"{folder} cannot be written by uid {os.getuid()}", remedy)]
    found = [_lock(data), _file_system(folder), _space(folder)]
    try:
        return [*found, *_speed(folder)]
    except OSError as error:
        remedy = "look at the system's log, and try another disk"
        return [*found, fault("disk", f"{folder}: {error.strerror or error}", remedy)]


def _lock(data: Path) -> Finding:
    try:
        with (data / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        return fault(
            "data folder",
            f"a server runs on {data}",
            "stop it before you start another one, or name another folder with --data",
        )
    except OSError as error:
        return fault("data folder", f"{data}/lock: {error.strerror}", "change its owner to the server's user")
    return ok("data folder", f"{data} can be written, and no server uses it")


def _file_system(folder: Path) -> Finding:
    kind = file_system(folder)
    if kind in FORGETFUL:
        return warning(
            "file system", f"{kind}: {FORGETFUL[kind]}, so a restart loses all", "use a disk", kind=kind
        )
    if kind in LAYERS:
        text = f"{kind}: the layer of a container, which is deleted with it"
        return warning("file system", text, "mount a volume at the data folder", kind=kind)
    if kind in REMOTE:
        text = f"{kind}: a remote file system, on which each sync takes a round trip"
        return warning("file system", text, "use a local disk or a block device", kind=kind)
    return ok("file system", kind, kind=kind)


def file_system(folder: Path) -> str:
    """The type of the file system of a folder, as the kernel names it; "unknown" without /proc."""
    place, kind = "", "unknown"
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mounted, found = line.split()[:3]
            mounted = mounted.encode().decode("unicode_escape")
            if folder.absolute().is_relative_to(mounted) and len(mounted) >= len(place):
                place, kind = mounted, found
    return kind


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB are free"
    if free < FREE_BYTES_MIN:
        remedy = "make room: the log takes 64 MiB at a time, and a snapshot as much as the model"
        return warning("disk space", text, remedy, free_bytes=free)
    return ok("disk space", text, free_bytes=free)


def _speed(folder: Path) -> list[Finding]:
    io = FileIO()
    path = folder / f"{TRIAL_NAME}-{os.getpid()}"
    fd = io.open(path, create=True)
    try:
        buffer = memoryview(aligned_buffer(1 << 20))
        began = time.perf_counter()
        for offset in range(0, TRIAL_BYTES, len(buffer)):
            write_all(io, fd, buffer, offset)
        io.fdatasync(fd)
        mib_s = TRIAL_BYTES / 2**20 / (time.perf_counter() - began)
        times = sorted(_synced(io, fd, buffer[:BLOCK_BYTES], number) for number in range(SYNCS))
        # A file system that refuses the first direct write is written through the page cache.
        is_direct = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
    finally:
        io.close(fd)
        io.unlink(path)
    p50, p99 = 1000 * times[SYNCS // 2], 1000 * times[SYNCS * 99 // 100]
    return [_direct(is_direct), _throughput(mib_s), _syncs(p50, p99)]


def _synced(io: FileIO, fd: int, block: memoryview, number: int) -> float:
    began = time.perf_counter()
    write_all(io, fd, block, number * BLOCK_BYTES)
    io.fdatasync(fd)
    return time.perf_counter() - began


def _direct(is_direct: bool) -> Finding:
    if is_direct:
        return ok("O_DIRECT", "the file system takes direct writes", is_direct=True)
    text = "the file system refuses O_DIRECT, so the log goes through the page cache"
    return warning("O_DIRECT", text, "use ext4 or xfs for the data folder", is_direct=False)


def _throughput(mib_s: float) -> Finding:
    text = f"the disk writes {mib_s:,.0f} MiB/s"
    if mib_s < WRITE_MIB_S_MIN:
        return warning("disk speed", text, "use a faster disk: snapshots take long", write_mib_s=mib_s)
    return ok("disk speed", text, write_mib_s=mib_s)


def _syncs(p50: float, p99: float) -> Finding:
    text = f"a sync takes {p50:.2f} ms (p99 {p99:.2f} ms)"
    if p99 > SYNC_P99_MS_MAX:
        remedy = "use a disk with a cache that survives a power cut: every update waits for a sync"
        return warning("sync", text, remedy, p50_ms=p50, p99_ms=p99)
    return ok("sync", text, p50_ms=p50, p99_ms=p99)
