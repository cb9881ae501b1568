"""A full disk: the server acknowledges only written batches, scores go on, and writes resume once
there is room.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import grpc
import numpy as np
import pytest

from livefactor.auditor import Auditor
from livefactor.errors import ResourceExhausted
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer
from livefactor.v1 import updates_pb2, updates_pb2_grpc
from livefactor_server.snapshots.audit import replay_model
from load import MODEL, create_model, described
from loop_disk import LoopFileSystem, run
from server_process import Server, WarmStart, wait_until

DISK_BYTES = 24 << 20
LEFT_BYTES = 1 << 20
ROWS = 200


@pytest.fixture(params=["ext4", "tmpfs"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The folder of a separate small file system."""
    if request.param == "ext4":
        try:
            disk = LoopFileSystem(tmp_path, DISK_BYTES)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a full disk not tested: it needs root, loop devices and mkfs.ext4 ({error})")
        yield disk.folder
        disk.remove()
        return
    folder = tmp_path / "mounted"
    folder.mkdir()
    try:
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a full disk not tested: it needs root and tmpfs ({error})")
    yield folder
    run("umount", "-l", folder)


def fill_up(folder: Path) -> Path:
    """Create a file that leaves only `LEFT_BYTES` free."""
    file = folder / "ballast"
    room = os.statvfs(folder)
    with file.open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, room.f_bavail * room.f_frsize - LEFT_BYTES)
    return file


def push_until_full(channel: grpc.Channel) -> tuple[int, str]:
    """Push batches without a producer until one is refused.

    Returns the acknowledged rows and the error text.
    """
    stub = updates_pb2_grpc.UpdateServiceStub(channel)
    rng = np.random.default_rng(1)
    for accepted in range(0, 10_000_000, ROWS):
        rows = updates_pb2.Interactions(
            user_ids=rng.integers(0, 99, ROWS), item_ids=rng.integers(0, 99, ROWS)
        )
        try:
            stub.ApplyUpdates(updates_pb2.ApplyUpdatesRequest(model=MODEL, interactions=rows), timeout=30)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
            return accepted, error.details()
    raise AssertionError("the disk was never full")


def test_a_full_disk_refuses_only_writes_and_loses_nothing(
    small_disk: Path, warm: WarmStart, tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(small_disk)
    server = Server(warm, tmp_path / "data", "--preset", "", plants=("small_segments",))
    server.start()
    try:
        create_model(server)
        with server.channel() as channel:
            check_full_disk(server, channel, small_disk)
    finally:
        server.kill()


def check_full_disk(server: Server, channel: grpc.Channel, disk: Path) -> None:
    accepted = 0
    scorer, auditor = Scorer(channel, model=MODEL), Auditor(channel, model=MODEL)
    with Producer(channel, "p", model=MODEL, batch=BatchSettings(latency_ms_max=0)) as producer:
        producer.push([1] * 10, [2] * 10).result(30)
        kept = auditor.snapshot()
        for _ in range(2):
            ballast = fill_up(disk)
            rows, text = push_until_full(channel)
            accepted += rows
            assert "disk" in text and "nothing was logged" in text
            live = described(server)
            assert live.events == accepted + 10 and live.writable
            assert scorer.score(1, [2]).position == live.position
            check_refused_snapshot(auditor, disk, kept.snapshot_id)
            # A producer waits and tries again without the caller.
            waiting = producer.push([1] * ROWS, [2] * ROWS)
            wait_until(lambda: producer.status.waiting_for != "", "the producer's wait")
            assert "RESOURCE_EXHAUSTED" in producer.status.waiting_for and not waiting.done()
            ballast.unlink()
            assert waiting.result(30).accepted == ROWS
            accepted += ROWS
    live = described(server)
    assert live.events == accepted + 10
    report = replay_model(server.model_folder(MODEL))
    assert (report.root_hash, report.good) == (live.root_hash, True)
    server.kill()
    server.start()
    assert described(server).root_hash == live.root_hash


def _fill(file: BinaryIO) -> int:
    """Write until the disk is full. Returns the number of bytes."""
    start = file.tell()
    with contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return file.tell() - start


def check_refused_snapshot(auditor: Auditor, disk: Path, kept: str) -> None:
    """Check that a snapshot without any room is refused, leaves no file, and keeps the older
    snapshot.
    """
    more = disk / "more"
    with more.open("wb", buffering=0) as file:
        quiet = 0
        # A late write or a late release of blocks may make a little room again.
        while quiet < 3:
            quiet = 0 if _fill(file) else quiet + 1
            os.sync()
            time.sleep(0.02)
    with pytest.raises(ResourceExhausted):
        auditor.snapshot()
    more.unlink()
    assert [info.snapshot_id for info in auditor.list()] == [kept]
    folder = disk / "models" / MODEL / "snapshots"
    assert [path.name for path in folder.iterdir()] == [kept]
