"""The table of RPCs. Each is one line: its name, its kind, the slots that a call takes, and its handler.

Handlers take and return bytes (identity (de)serialisers): parsing happens in them, so that malformed bytes are an
INVALID_ARGUMENT and not the transport's UNKNOWN. Whatever else escapes a handler is logged and reaches the peer as
UNAVAILABLE with a fixed text (guards.py).
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
    """One RPC. name: "Service.Method" of the package. slots: name in `Calls.slots`, None for calls that take none."""

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
"""Every RPC, those of a service together."""


class Services:
    """The table over one `Hosting`."""

    def __init__(self, hosting: Hosting, settings: ServiceSettings) -> None:
        self._calls = Calls(hosting, settings)

    def generic_handlers(self) -> list[grpc.GenericRpcHandler]:
        """One handler a service, for `grpc.Server.add_generic_rpc_handlers`."""
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
        """End every update stream behind the answers that it has; for a drain, when all that was accepted is answered."""
        self._calls.end_streams()
