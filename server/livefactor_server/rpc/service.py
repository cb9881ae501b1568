"""The table of RPCs. Each line has the name of an RPC, and its handler.

Handlers take and return bytes, and they parse the messages themselves. So a malformed message gets
the status INVALID_ARGUMENT and not the transport's UNKNOWN. Any other exception in a handler is
logged, and the peer gets UNAVAILABLE with a fixed text (`guards.py`).

A handler is a coroutine in the loop, or a function that blocks. A function runs in the threads of a
lane, which its line names. The two RPCs that come most are handled at once, by a function in the
thread of direct calls, or by their coroutine if that is not possible.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import grpc

from livefactor_server.access.grants import ANY, Role
from livefactor_server.rpc import challenging, following, models, scoring, snapshots, updates
from livefactor_server.rpc.calls import Calls
from livefactor_server.rpc.direct.server import Method
from livefactor_server.rpc.guards import Call, Guard, Need

PACKAGE = "livefactor.v1"

_PRODUCER, _CONSUMER = frozenset({Role.PRODUCER}), frozenset({Role.CONSUMER})
_AUDITOR, _ADMIN = frozenset({Role.AUDITOR}), frozenset({Role.ADMIN})


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
    """One RPC.

    `name` is "Service.Method" in the package. `roles` may call it, and so may the role admin.
    `at_once` handles direct calls (`direct`).
    """

    name: str
    form: Form
    handle: Callable[..., Any]
    roles: frozenset[Role]
    at_once: Callable[..., bytes | None] | None = None

    @property
    def need(self) -> Need:
        """Who may call it."""
        is_batches = self.handle is updates.stream_updates
        return Need(self.name, self.roles, self.roles == _ADMIN, is_batches)

    @property
    def is_control(self) -> bool:
        """Whether it counts as administration in the limit of open calls. Streams do not."""
        if self.form is Form.STREAM:
            return False
        return (
            self.name.startswith(("ModelService.", "ChallengeService.", "FollowService.", "PrivacyService."))
            or self.form is Form.CONTROL
        )


RPCS = (
    Rpc("UpdateService.OpenProducer", Form.LOOP, updates.open_producer, _PRODUCER),
    Rpc("UpdateService.ApplyUpdates", Form.LOOP, updates.apply_updates, _PRODUCER, updates.apply_at_once),
    Rpc("UpdateService.StreamUpdates", Form.STREAM, updates.stream_updates, _PRODUCER),
    Rpc("ScoringService.Score", Form.LOOP, scoring.score, _CONSUMER, scoring.score_at_once),
    Rpc("ScoringService.Explain", Form.MODELS, scoring.explain, _AUDITOR),
    Rpc("ScoringService.FetchServed", Form.CONTROL, scoring.fetch_served, _AUDITOR),
    Rpc("SnapshotService.Snapshot", Form.STREAM, snapshots.snapshot, _AUDITOR),
    Rpc("SnapshotService.ListSnapshots", Form.CONTROL, snapshots.list_snapshots, _AUDITOR),
    Rpc("SnapshotService.FetchSnapshot", Form.STREAM, snapshots.fetch_snapshot, _AUDITOR),
    Rpc("ModelService.CreateModel", Form.MODELS, models.create_model, _ADMIN),
    Rpc("ModelService.DescribeModel", Form.LOOP, models.describe_model, ANY),
    Rpc("ModelService.ListModels", Form.CONTROL, models.list_models, ANY),
    Rpc("ModelService.ListFeatures", Form.MODELS, models.list_features, ANY),
    Rpc("ModelService.ListProducers", Form.CONTROL, models.list_producers, _AUDITOR),
    Rpc("ModelService.ListQuarantine", Form.MODELS, models.list_quarantine, _AUDITOR),
    Rpc("ModelService.DecideQuarantine", Form.MODELS, models.decide_quarantine, _ADMIN),
    Rpc("ModelService.DeleteModel", Form.MODELS, models.delete_model, _ADMIN),
    Rpc("ModelService.RestoreSnapshot", Form.MODELS, models.restore_snapshot, _ADMIN),
    Rpc("ModelService.PromoteSpec", Form.STREAM, models.promote_spec, _ADMIN),
    Rpc("ModelService.RollBack", Form.STREAM, models.roll_back, _ADMIN),
    Rpc("ModelService.Forget", Form.STREAM, models.forget, _ADMIN),
    Rpc("ModelService.ReleaseHold", Form.CONTROL, models.release_hold, _ADMIN),
    Rpc("ChallengeService.AddChallenger", Form.CONTROL, challenging.add_challenger, _ADMIN),
    Rpc("ChallengeService.ListChallengers", Form.CONTROL, challenging.list_challengers, ANY),
    Rpc("ChallengeService.SettleModel", Form.MODELS, challenging.settle_model, _ADMIN),
    Rpc("FollowService.CopyModel", Form.STREAM, following.copy_model, _AUDITOR),
    Rpc("FollowService.FollowLog", Form.STREAM, following.follow_log, _AUDITOR),
    Rpc("FollowService.ConfirmLog", Form.LOOP, following.confirm_log, _AUDITOR),
    Rpc("FollowService.TakeLead", Form.MODELS, following.take_lead, _ADMIN),
    Rpc("FollowService.Fence", Form.MODELS, following.fence, _ADMIN),
    Rpc("PrivacyService.Contribute", Form.CONTROL, models.contribute, _PRODUCER),
    Rpc("PrivacyService.MakeRelease", Form.MODELS, models.make_release, _ADMIN),
    Rpc("PrivacyService.DescribePrivacy", Form.CONTROL, models.describe_privacy, ANY),
)
"""All RPCs. Those of a service are consecutive."""


def generic_handlers(calls: Calls, guard: Guard) -> list[grpc.GenericRpcHandler]:
    """One handler per service, for `grpc.aio.Server.add_generic_rpc_handlers`."""
    return handlers_of(partial(_handler, calls, guard))


def path_of(rpc: Rpc) -> str:
    """The RPC's name on the wire: "/package.Service/Method"."""
    return f"/{PACKAGE}.{rpc.name.replace('.', '/')}"


def direct_methods(calls: Calls) -> list[Method]:
    """The RPCs that have direct calls."""
    return [
        Method(path_of(rpc), rpc.need, partial(rpc.at_once, calls), partial(rpc.handle, calls))
        for rpc in RPCS
        if rpc.at_once is not None
    ]


def handlers_of(
    handler_of: Callable[[Rpc], grpc.RpcMethodHandler[bytes, bytes]],
) -> list[grpc.GenericRpcHandler]:
    """One handler per service, made of one for each RPC."""
    return [
        grpc.method_handlers_generic_handler(
            f"{PACKAGE}.{service}", {rpc.name.split(".")[1]: handler_of(rpc) for rpc in rpcs}
        )
        for service, rpcs in groupby(RPCS, lambda rpc: rpc.name.split(".")[0])
    ]


def _handler(calls: Calls, guard: Guard, rpc: Rpc) -> grpc.RpcMethodHandler[bytes, bytes]:
    need, is_control = rpc.need, rpc.is_control
    if rpc.form is Form.STREAM:
        return guard.stream(partial(rpc.handle, calls), is_control, need)
    if rpc.form is Form.LOOP:
        return guard.unary(partial(rpc.handle, calls), is_control, need)
    lane = calls.control if rpc.form is Form.CONTROL else calls.models

    async def in_lane(raw: bytes, call: Call) -> bytes:
        reply: bytes = await lane.run(len(raw), rpc.handle, calls, raw, call)
        return reply

    return guard.unary(in_lane, is_control, need)
