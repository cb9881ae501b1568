"""The class `Auditor` takes, lists, fetches and verifies the snapshots of a server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from livefactor.access import Access
from livefactor.channel import CONNECT_S, DEADLINE_S, DEFAULT_TARGET, READ_RETRY_S, Connection
from livefactor.errors import LivefactorError, SnapshotInvalid
from livefactor.position import Position, position_of
from livefactor.snapshots import files as snapshot_files
from livefactor.snapshots.format import is_snapshot_id
from livefactor.v1 import snapshots_pb2
from livefactor.wire.limits import check_model

_SERVICE = "/livefactor.v1.SnapshotService/"
_Piece = tuple[str, int, int, bytes]


@dataclass(frozen=True, slots=True, repr=False)
class SnapshotInfo:
    """A snapshot that a server holds.

    root_hash, log_hash: 32 bytes each. size_bytes: size of all its files. created_us: microseconds
    since 1970 UTC. users, items: numbers of the model's rows.
    """

    snapshot_id: str
    position: Position
    root_hash: bytes
    log_hash: bytes
    size_bytes: int
    created_us: int
    users: int
    items: int

    def __repr__(self) -> str:
        rows = f"{self.users} users, {self.items} items"
        return f"SnapshotInfo({self.snapshot_id}, {rows}, {self.size_bytes:,} bytes)"


@dataclass(frozen=True, slots=True)
class SnapshotProgress:
    """How far the server has written a snapshot.

    bytes_done, bytes_total: bytes. position: the position that the snapshot has.
    """

    bytes_done: int
    bytes_total: int
    position: Position


class Auditor:
    """Takes, lists, fetches and verifies snapshots of one model.

    target: "host:port", "unix:/path", or a channel. model: the model's name. connect_s: how long a
    call waits for a server that cannot be reached, seconds. access: TLS and token; None takes them
    from the environment. channel: the caller's own transport.
    """

    def __init__(
        self,
        target: str | grpc.Channel = DEFAULT_TARGET,
        *,
        model: str = "default",
        connect_s: float = CONNECT_S,
        access: Access | None = None,
        channel: grpc.Channel | None = None,
    ) -> None:
        self.model = check_model(model)
        self._connection = Connection(target, channel, connect_s, access)

    def snapshot(
        self,
        *,
        min_position: Position | None = None,
        on_progress: Callable[[SnapshotProgress], None] | None = None,
    ) -> SnapshotInfo:
        """Take a snapshot of the visible revision and return when it is complete.

        Updates go on meanwhile. min_position: the snapshot has at least this position. on_progress:
        called with each progress message. Raises NotFound, FailedPrecondition, Unavailable, and
        ResourceExhausted if the disk is full or another snapshot is in progress.
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
        """The model's snapshots, the oldest first.

        Raises NotFound, Unavailable, DeadlineExceeded.
        """
        request = snapshots_pb2.ListSnapshotsRequest(model=self.model).SerializeToString()
        data = self._connection.unary(
            _SERVICE + "ListSnapshots", request, deadline_s, f"model {self.model!r}", READ_RETRY_S
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
        """Fetch a snapshot into the new folder `path`.

        The folder appears only once the snapshot is verified. snapshot_id: one from `list`; empty
        for the newest. on_bytes: called with the number of bytes fetched so far. Raises
        FileExistsError, NotFound, SnapshotInvalid and Unavailable. After an error no file is left.
        """
        if snapshot_id and not is_snapshot_id(snapshot_id):
            raise ValueError(f"snapshot_id: expected 20 digits, a dash and 8 hex digits, got {snapshot_id!r}")
        request = snapshots_pb2.FetchSnapshotRequest(model=self.model, snapshot_id=snapshot_id)
        verification = snapshot_files.save(_pieces(self._stream("FetchSnapshot", request), on_bytes), path)
        got = verification.manifest.snapshot_id
        # A valid snapshot may still be another one than the caller asked for.
        if snapshot_id and got != snapshot_id:
            shutil.rmtree(path)
            raise SnapshotInvalid("manifest.json", f"the server sent snapshot {got}, expected {snapshot_id}")
        return verification

    def verify(self, path: str | os.PathLike[str]) -> snapshot_files.Verification:
        """Verify a fetched snapshot without a server.

        SnapshotInvalid names the bad file and tensor.
        """
        return snapshot_files.verify(path)

    def close(self) -> None:
        """Close the channel if it was opened here."""
        self._connection.close()

    def __enter__(self) -> Auditor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Auditor({self._connection.target!r}, model={self.model!r})"

    def _stream(self, method: str, request: Any) -> Iterator[bytes]:
        return self._connection.stream(
            _SERVICE + method, request.SerializeToString(), f"model {self.model!r}"
        )


def snapshot_info(message: Any) -> SnapshotInfo:
    """Convert a `livefactor.v1.SnapshotInfo` message to a SnapshotInfo."""
    return SnapshotInfo(
        message.snapshot_id, position_of(message.position), message.root_hash, message.log_hash,
        message.size_bytes, message.created_us, message.users, message.items,
    )  # fmt: skip


def _pieces(chunks: Iterator[bytes], on_bytes: Callable[[int], None] | None) -> Iterator[_Piece]:
    fetched = 0
    for data in chunks:
        chunk = snapshots_pb2.FetchSnapshotResponse.FromString(data)
        yield chunk.file_name, chunk.offset, chunk.file_size, chunk.data
        fetched += len(chunk.data)
        if on_bytes is not None:
            on_bytes(fetched)
