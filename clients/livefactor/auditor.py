"""Snapshots from a server: `Auditor` takes, lists, fetches and verifies them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from livefactor import snapshot_files
from livefactor.channel import DEADLINE_S, DEFAULT_TARGET, Connection
from livefactor.errors import LivefactorError, SnapshotInvalid
from livefactor.position import Position, position_of
from livefactor.snapshot_format import FILES, is_snapshot_id
from livefactor.v1 import snapshots_pb2

_SERVICE = "/livefactor.v1.SnapshotService/"


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot that a server holds. Hashes: 32 bytes. created_us: microseconds since 1970 UTC."""

    snapshot_id: str
    position: Position
    root_hash: bytes
    log_hash: bytes
    size_bytes: int
    created_us: int
    users: int
    items: int


@dataclass(frozen=True, slots=True)
class SnapshotProgress:
    """How far a snapshot is that is being taken, in bytes."""

    bytes_done: int
    bytes_total: int
    position: Position


class Auditor:
    """Takes, lists, fetches and verifies snapshots of one model.

    target: "host:port" or "unix:/path" (or a channel). model: the model's name. channel: the transport, if
    the caller has one.
    """

    def __init__(
        self,
        target: str | grpc.Channel = DEFAULT_TARGET,
        *,
        model: str = "default",
        channel: grpc.Channel | None = None,
    ) -> None:
        self.model = model
        self._connection = Connection(target, channel)

    def snapshot(
        self,
        *,
        min_position: Position | None = None,
        on_progress: Callable[[SnapshotProgress], None] | None = None,
    ) -> SnapshotInfo:
        """Take a snapshot at the revision visible now, or at min_position, while updates go on; returns when
        it is complete.

        on_progress: called with each progress message. Raises NotFound, ResourceExhausted (disk full, or one
        is being taken), FailedPrecondition, Unavailable.
        """
        request = snapshots_pb2.SnapshotRequest(model=self.model)
        if min_position is not None:
            request.min_position.lineage = min_position.lineage
            request.min_position.revision = min_position.revision
        info = None
        for data in self._stream("Snapshot", request):
            event = snapshots_pb2.SnapshotResponse.FromString(data)
            if event.WhichOneof("event") == "manifest":
                info = snapshot_info(event.manifest.info)
            elif on_progress is not None:
                progress = event.progress
                on_progress(
                    SnapshotProgress(
                        progress.bytes_done, progress.bytes_total, position_of(progress.position)
                    )
                )
        if info is None:
            raise LivefactorError(f"model {self.model!r}: the server ended the snapshot without a manifest")
        return info

    def list(self, *, deadline_s: float = DEADLINE_S) -> tuple[SnapshotInfo, ...]:
        """The model's snapshots, oldest first. Raises NotFound, Unavailable, DeadlineExceeded."""
        request = snapshots_pb2.ListSnapshotsRequest(model=self.model).SerializeToString()
        data = self._connection.unary(
            _SERVICE + "ListSnapshots", request, deadline_s, f"model {self.model!r}"
        )
        return tuple(
            snapshot_info(info) for info in snapshots_pb2.ListSnapshotsResponse.FromString(data).snapshots
        )

    def fetch(
        self,
        path: str | os.PathLike[str],
        snapshot_id: str = "",
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> snapshot_files.Verification:
        """Fetch a snapshot into the folder `path`, which must not exist, and verify it there.

        The files arrive in a temporary folder beside it, which takes the name `path` only once all of it
        verified; after any error nothing is left. snapshot_id: from `list`; empty: the newest. on_bytes:
        called with the bytes fetched so far. Raises FileExistsError, NotFound, SnapshotInvalid (also for what
        the server must not send), Unavailable.
        """
        folder = Path(path)
        if snapshot_id and not is_snapshot_id(snapshot_id):
            raise ValueError(
                f"snapshot_id: expected one such as 00000000000000000012-9f86d081, got {snapshot_id!r}"
            )
        if os.path.lexists(folder):
            raise FileExistsError(f"{folder} exists")
        request = snapshots_pb2.FetchSnapshotRequest(model=self.model, snapshot_id=snapshot_id)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _receive(self._stream("FetchSnapshot", request), staging, on_bytes)
            verification = snapshot_files.verify(staging)
            _check_is(staging, snapshot_id)
            staging.chmod(0o755)  # mkdtemp's is 0o700.
            if os.path.lexists(folder):
                raise FileExistsError(f"{folder} exists")
            staging.rename(folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return verification

    def verify(self, path: str | os.PathLike[str]) -> snapshot_files.Verification:
        """Verify a fetched snapshot, without a server. Raises SnapshotInvalid naming file and tensor."""
        return snapshot_files.verify(Path(path))

    def close(self) -> None:
        """Close the channel if it was opened here."""
        self._connection.close()

    def __enter__(self) -> Auditor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stream(self, method: str, request: Any) -> Iterator[bytes]:
        return self._connection.stream(
            _SERVICE + method, request.SerializeToString(), f"model {self.model!r}"
        )


def snapshot_info(message: Any) -> SnapshotInfo:
    """The SnapshotInfo of a `livefactor.v1.SnapshotInfo` message."""
    return SnapshotInfo(
        message.snapshot_id, position_of(message.position), message.root_hash, message.log_hash,
        message.size_bytes, message.created_us, message.users, message.items,
    )  # fmt: skip


def _receive(chunks: Iterator[bytes], folder: Path, on_bytes: Callable[[int], None] | None) -> None:
    """Write the chunks' files into `folder`. Only names of the closed list, each file once, whole and from
    its beginning.
    """
    sizes: dict[str, int] = {}
    fetched = 0
    name, written, out = "", 0, None
    try:
        for data in chunks:
            chunk = snapshots_pb2.FetchSnapshotResponse.FromString(data)
            if chunk.file_name != name:
                _check_whole(name, written, sizes)
                if chunk.file_name not in FILES or chunk.file_name in sizes:
                    raise SnapshotInvalid(
                        "", f"the server sent a file that is none of a snapshot's: {chunk.file_name!r}"
                    )
                if out is not None:
                    out.close()
                name, written = chunk.file_name, 0
                sizes[name] = chunk.file_size
                out = (folder / name).open("xb")
            if (
                chunk.offset != written
                or chunk.file_size != sizes[name]
                or written + len(chunk.data) > sizes[name]
            ):
                raise SnapshotInvalid(
                    name,
                    f"the server sent bytes at {chunk.offset} of {chunk.file_size}, "
                    f"expected at {written} of {sizes[name]}",
                )
            assert out is not None
            out.write(chunk.data)
            written += len(chunk.data)
            fetched += len(chunk.data)
            if on_bytes is not None:
                on_bytes(fetched)
        _check_whole(name, written, sizes)
    finally:
        if out is not None:
            out.close()


def _check_whole(name: str, written: int, sizes: dict[str, int]) -> None:
    if name and written != sizes[name]:
        raise SnapshotInvalid(name, f"the server sent {written} of {sizes[name]} bytes")


def _check_is(folder: Path, snapshot_id: str) -> None:
    """A snapshot may verify and yet be another than the one asked for."""
    got = snapshot_files.read_manifest(folder).snapshot_id
    if snapshot_id and got != snapshot_id:
        raise SnapshotInvalid("manifest.json", f"the server sent snapshot {got}, expected {snapshot_id}")
