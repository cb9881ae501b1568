"""The table of RPCs. Each line has the name of an RPC, its kind, its slots, and its handler.

Handlers take and return bytes, and they parse the messages themselves. So a malformed message gets
the status INVALID_ARGUMENT and not the transport's UNKNOWN. Any other exception in a handler is
logged, and the peer gets UNAVAILABLE with a fixed text (`guards.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import grpc

from livefactor_server.hosting.host import Hosting
from livefactor_server.rpc import guards, models, scoring, snapshots, updates
from livefactor_server.rpc.calls import Calls, ServiceSettings
from livefactor_server.rpc.guards import CallKind

PACKAGE = "livefactor.v1"

UNARY, STREAM_OUT, STREAM_BOTH = CallKind.UNARY, CallKind.STREAM_OUT, CallKind.STREAM_BOTH


class Rpc(NamedTuple):
    """One RPC.

    Attributes:
        name: "Service.Method" in the package.
        kind: which directions are streams.
        slots: a key of `Calls.slots`, None for calls without slots.
        handle: the handler.
    """

    name: str
    kind: CallKind
    slots: str | None
    handle: Callable[[Calls, Any, grpc.ServicerContext], Any]


RPCS = (
    Rpc("UpdateService.OpenProducer", UNARY, "updates", updates.open_producer),
    Rpc("UpdateService.ApplyUpdates", UNARY, "updates", updates.apply_updates),
    Rpc("UpdateService.StreamUpdates", STREAM_BOTH, "streams", updates.stream_updates),
    Rpc("ScoringService.Score", UNARY, "scores", scoring.score),
    Rpc("SnapshotService.Snapshot", STREAM_OUT, "snapshots", snapshots.snapshot),
    Rpc("SnapshotService.ListSnapshots", UNARY, None, snapshots.list_snapshots),
    Rpc("SnapshotService.FetchSnapshot", STREAM_OUT, "snapshots", snapshots.fetch_snapshot),
    Rpc("ModelService.CreateModel", UNARY, None, models.create_model),
    Rpc("ModelService.DescribeModel", UNARY, None, models.describe_model),
    Rpc("ModelService.ListModels", UNARY, None, models.list_models),
    Rpc("ModelService.DeleteModel", UNARY, None, models.delete_model),
    Rpc("ModelService.RestoreSnapshot", UNARY, None, models.restore_snapshot),
    Rpc("ModelService.ReleaseHold", UNARY, None, models.release_hold),
)
"""All RPCs. Those of a service are consecutive."""


class Services:
    """The handlers of all RPCs for one `Hosting`."""

    def __init__(self, hosting: Hosting, settings: ServiceSettings) -> None:
        self._calls = Calls(hosting, settings)

    def generic_handlers(self) -> list[grpc.GenericRpcHandler]:
        """One handler per service, for `grpc.Server.add_generic_rpc_handlers`."""
        return [
            grpc.method_handlers_generic_handler(
                f"{PACKAGE}.{service}", {rpc.name.split(".")[1]: self._handler(rpc) for rpc in rpcs}
            )
            for service, rpcs in groupby(RPCS, lambda rpc: rpc.name.split(".")[0])
        ]

    def _handler(self, rpc: Rpc) -> grpc.RpcMethodHandler[bytes, bytes]:
        slots = self._calls.slots[rpc.slots] if rpc.slots else None
        return guards.guarded(rpc.kind, partial(rpc.handle, self._calls), slots)

    def end_streams(self) -> None:
        """Ends every update stream after the answers in its queue.

        A drain calls it when all accepted batches are answered.
        """
        self._calls.end_streams()
