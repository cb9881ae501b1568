"""Handlers of the SnapshotService: take, list and fetch snapshots."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from livefactor.v1 import snapshots_pb2
from livefactor_server.rpc import encode, guards
from livefactor_server.rpc.calls import Calls
from livefactor_server.snapshots.store import SnapshotNotFound
from livefactor_server.statuses import not_found

PROGRESS_INTERVAL_S = 0.1


def snapshot(calls: Calls, raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Handles Snapshot: yields the progress, and then the manifest."""
    request = guards.parse(snapshots_pb2.SnapshotRequest, raw)
    hosted = calls.hosting.get(request.model)
    if request.HasField("min_position"):
        wanted = request.min_position
        calls.await_position(hosted.engine, wanted.lineage, wanted.revision, context)
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def take() -> None:
        try:
            events.put(hosted.keeper.take(lambda done, total, revision: events.put((done, total, revision))))
        except BaseException as error:
            events.put(error)

    threading.Thread(target=take, name=f"snapshot-{hosted.name}", daemon=True).start()
    last = 0.0
    while True:
        event = events.get()
        if isinstance(event, BaseException):
            raise event
        if not isinstance(event, tuple):
            break
        if time.monotonic() - last >= PROGRESS_INTERVAL_S:
            last = time.monotonic()
            yield encode.snapshot_progress(hosted.engine.state.lineage, *event)
    yield encode.snapshot_done(event)


def list_snapshots(calls: Calls, raw: bytes, context: grpc.ServicerContext) -> bytes:
    """Handles ListSnapshots."""
    request = guards.parse(snapshots_pb2.ListSnapshotsRequest, raw)
    infos = calls.hosting.snapshots(request.model).list()
    return snapshots_pb2.ListSnapshotsResponse(
        snapshots=[encode.snapshot_info(info) for info in infos]
    ).SerializeToString()


def fetch_snapshot(calls: Calls, raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Handles FetchSnapshot: yields the manifest, and then its files in chunks."""
    request = guards.parse(snapshots_pb2.FetchSnapshotRequest, raw)
    store = calls.hosting.snapshots(request.model)
    try:
        for piece in store.pieces(request.snapshot_id):
            yield snapshots_pb2.FetchSnapshotResponse(
                file_name=piece.file_name, offset=piece.offset, file_size=piece.file_size, data=piece.data
            ).SerializeToString()
    except SnapshotNotFound:
        raise not_found("snapshot: it does not exist") from None
