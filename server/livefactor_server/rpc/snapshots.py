"""Handlers of the SnapshotService: take, list and fetch snapshots."""

from __future__ import annotations

from livefactor.v1 import snapshots_pb2
from livefactor_server.hosting.host import DEFAULT_MODEL
from livefactor_server.rpc import encode, guards
from livefactor_server.rpc.calls import Calls
from livefactor_server.rpc.guards import Call, Requests, Send
from livefactor_server.rpc.streaming.progress import Progress
from livefactor_server.snapshots.store import SnapshotNotFound
from livefactor_server.statuses import not_found


async def snapshot(calls: Calls, requests: Requests, send: Send, call: Call) -> None:
    """Handles Snapshot: sends the progress, and then the manifest."""
    request = guards.parse(snapshots_pb2.SnapshotRequest, await requests.only())
    hosted = calls.model(call, request.model)
    if request.HasField("min_position"):
        wanted = request.min_position
        await calls.positions.reach(hosted.engine, wanted.lineage, wanted.revision)
    progress = Progress(call)

    async def tell(done: int, total: int, revision: int) -> None:
        await send(encode.snapshot_progress(hosted.engine.state.lineage, done, total, revision))

    info = await progress.until_done(calls.snapshots.run(0, hosted.keeper.take, progress), tell)
    await send(encode.snapshot_done(info, hosted.keeper.store.checkpoint(info.snapshot_id)))


def list_snapshots(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles ListSnapshots."""
    request = guards.parse(snapshots_pb2.ListSnapshotsRequest, raw)
    call.allow(request.model or DEFAULT_MODEL)
    store = calls.hosting.snapshots(request.model)
    return snapshots_pb2.ListSnapshotsResponse(
        snapshots=[encode.snapshot_info(info, store.checkpoint(info.snapshot_id)) for info in store.list()]
    ).SerializeToString()


async def fetch_snapshot(calls: Calls, requests: Requests, send: Send, call: Call) -> None:
    """Handles FetchSnapshot: sends the manifest, and then its files in chunks.

    A thread reads each chunk. While the peer reads it, the call has a slot but no thread.
    """
    request = guards.parse(snapshots_pb2.FetchSnapshotRequest, await requests.only())
    call.allow(request.model or DEFAULT_MODEL)
    store = calls.hosting.snapshots(request.model)
    async with calls.fetches.slot(0, ""):
        # If the peer leaves, a thread may still read. So nobody closes `pieces`: its files are
        # closed with the last reference to it.
        pieces = store.pieces(request.snapshot_id)
        try:
            while (piece := await calls.fetches.in_thread(next, pieces, None)) is not None:
                await send(
                    snapshots_pb2.FetchSnapshotResponse(
                        file_name=piece.file_name,
                        offset=piece.offset,
                        file_size=piece.file_size,
                        data=piece.data,
                    ).SerializeToString()
                )
        except SnapshotNotFound:
            raise not_found("snapshot: it does not exist") from None
