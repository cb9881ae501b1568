"""The table of RPCs. Each line has the name of an RPC, and its handler.

Handlers take and return bytes, and they parse the messages themselves. So a malformed message gets
the status INVALID_ARGUMENT and not the transport's UNKNOWN. Any other exception in a handler is
logged, and the peer gets UNAVAILABLE with a fixed text (`guards.py`).

A handler is a coroutine in the loop, or a function that blocks. A function runs in the threads of a
lane, which its line names.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import grpc

from livefactor_server.rpc import models, scoring, snapshots, updates
from livefactor_server.rpc.calls import Calls
from livefactor_server.rpc.guards import Call, Guard

PACKAGE = "livefactor.v1"


class Form(Enum):
    """How a handler is called.

    LOOP: a coroutine that takes the message and returns the answer. STREAM: a coroutine that takes
    messages and sends answers. CONTROL: a short function. MODELS: a function that may take minutes.
    """

    LOOP = auto()
    STREAM = auto()
    CONTROL = auto()
    MODELS = auto()


class Rpc(NamedTuple):
    """One RPC. `name` is "Service.Method" in the package."""

    name: str
    form: Form
    handle: Callable[..., Any]


RPCS = (
    Rpc("UpdateService.OpenProducer", Form.LOOP, updates.open_producer),
    Rpc("UpdateService.ApplyUpdates", Form.LOOP, updates.apply_updates),
    Rpc("UpdateService.StreamUpdates", Form.STREAM, updates.stream_updates),
    Rpc("ScoringService.Score", Form.LOOP, scoring.score),
    Rpc("SnapshotService.Snapshot", Form.STREAM, snapshots.snapshot),
    Rpc("SnapshotService.ListSnapshots", Form.CONTROL, snapshots.list_snapshots),
    Rpc("SnapshotService.FetchSnapshot", Form.STREAM, snapshots.fetch_snapshot),
    Rpc("ModelService.CreateModel", Form.MODELS, models.create_model),
    Rpc("ModelService.DescribeModel", Form.LOOP, models.describe_model),
    Rpc("ModelService.ListModels", Form.CONTROL, models.list_models),
    Rpc("ModelService.DeleteModel", Form.MODELS, models.delete_model),
    Rpc("ModelService.RestoreSnapshot", Form.MODELS, models.restore_snapshot),
    Rpc("ModelService.PromoteSpec", Form.STREAM, models.promote_spec),
    Rpc("ModelService.ReleaseHold", Form.CONTROL, models.release_hold),
)
"""All RPCs. Those of a service are consecutive."""


def generic_handlers(calls: Calls, guard: Guard) -> list[grpc.GenericRpcHandler]:
    """One handler per service, for `grpc.aio.Server.add_generic_rpc_handlers`."""
    return [
        grpc.method_handlers_generic_handler(
            f"{PACKAGE}.{service}", {rpc.name.split(".")[1]: _handler(calls, guard, rpc) for rpc in rpcs}
        )
        for service, rpcs in groupby(RPCS, lambda rpc: rpc.name.split(".")[0])
    ]


def _handler(calls: Calls, guard: Guard, rpc: Rpc) -> grpc.RpcMethodHandler[bytes, bytes]:
    if rpc.form is Form.STREAM:
        return guard.stream(partial(rpc.handle, calls), is_control=False)
    is_control = rpc.name.startswith("ModelService.") or rpc.form is Form.CONTROL
    if rpc.form is Form.LOOP:
        return guard.unary(partial(rpc.handle, calls), is_control)
    lane = calls.control if rpc.form is Form.CONTROL else calls.models

    async def in_lane(raw: bytes, call: Call) -> bytes:
        reply: bytes = await lane.run(len(raw), rpc.handle, calls, raw, call)
        return reply

    return guard.unary(in_lane, is_control)
