"""The gRPC server of a worker."""

from __future__ import annotations

import sys
from functools import partial

import grpc

from livefactor.v1 import scoring_pb2
from livefactor_server.rpc import server as rpc_server
from livefactor_server.rpc.calls import OVERLOAD_SCORES_A_CORE, WAITING_BYTES_MAX
from livefactor_server.rpc.direct.server import DirectServer, Later, Method
from livefactor_server.rpc.guards import Call, Guard, Need, Requests, Send
from livefactor_server.rpc.lanes import Lane
from livefactor_server.rpc.loop import shared_loop
from livefactor_server.rpc.service import RPCS, Form, Rpc, handlers_of, path_of
from livefactor_server.telemetry.calls import is_verbose
from livefactor_server.workers.messages import Setup
from livefactor_server.workers.metrics import CALLS
from livefactor_server.workers.models import Models
from livefactor_server.workers.relay import Relay

_HEALTH = "grpc.health.v1.Health"
_SCORE = "ScoringService.Score"


class WorkerServer:
    """Answers Score calls, and passes all others on."""

    def __init__(self, setup: Setup, models: Models) -> None:
        """Binds the address, and accepts calls.

        Raises:
            RuntimeError: the address cannot be bound, or protobuf runs without its upb
                implementation.
            ValueError: a file of TLS or access has a fault.
        """
        rpc_server.check_protobuf()
        sys.setswitchinterval(rpc_server.THREAD_SWITCH_S)
        self._setup, self._models = setup, models
        self._answered, self._passed_on = CALLS.labels("answered"), CALLS.labels("passed_on")
        self._loop = shared_loop()
        self._loop.run(self._start())
        self._direct.start()

    async def _start(self) -> None:
        setup, settings, entry = self._setup, self._setup.service, self._setup.files.entry()
        self._relay = Relay(setup.head)
        self._scores = Lane(
            self._loop, "scores", settings.score_slots, settings.waiting_max, WAITING_BYTES_MAX,
            OVERLOAD_SCORES_A_CORE,
        )  # fmt: skip
        guard = Guard(settings.message_wait_s, settings.write_wait_s, settings.open_calls_max, entry.grants)
        options = rpc_server.options(rpc_server.CALLS_A_CONNECTION_MAX, shares_port=True)
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers(tuple(handlers_of(partial(self._handler, guard))))
        self._server.add_generic_rpc_handlers((self._health(guard),))
        self._server.add_generic_rpc_handlers(tuple(rpc_server.reflection_handlers(guard)))
        if entry.certificate is None:
            self._server.add_insecure_port(setup.address)
        else:
            self._server.add_secure_port(setup.address, entry.certificate.credentials())
        score = next(rpc for rpc in RPCS if rpc.name == _SCORE)
        path = path_of(score)
        method = Method(path, score.need, self._score_at_once, partial(self._score, path))
        self._direct = DirectServer(self._server, self._loop, guard, settings.message_wait_s, [method])
        await self._server.start()

    def stop(self, grace_s: float) -> None:
        """Ends all calls within `grace_s` seconds."""
        self._loop.run(self._server.stop(grace_s))
        self._direct.close()

    def _handler(self, guard: Guard, rpc: Rpc) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = path_of(rpc)
        if rpc.name == _SCORE:
            return guard.unary(partial(self._score, method), rpc.is_control, rpc.need)
        if rpc.form is Form.STREAM:
            return guard.stream(partial(self._pass_stream, method), rpc.is_control, rpc.need)
        return guard.unary(partial(self._relay.unary, method), rpc.is_control, rpc.need)

    def _health(self, guard: Guard) -> grpc.GenericRpcHandler:
        check, watch = (f"/{_HEALTH}/{name}" for name in ("Check", "Watch"))
        return grpc.method_handlers_generic_handler(
            _HEALTH,
            {
                "Check": guard.unary(partial(self._relay.unary, check), True, Need("Health.Check", None)),
                "Watch": guard.stream(partial(self._pass_stream, watch), True, Need("Health.Watch", None)),
            },
        )

    def _score_at_once(self, raw: bytes, call: Call, _: Later) -> bytes | None:
        answer = self._models.answer_at_once(raw, call)
        if answer is not None:
            self._note_answer(call, answer)
        return answer

    async def _score(self, method: str, raw: bytes, call: Call) -> bytes:
        answer = await self._models.answer(raw, call, self._scores)
        if answer is None:
            self._passed_on.inc()
            return await self._relay.unary(method, raw, call)
        self._note_answer(call, answer)
        return answer

    def _note_answer(self, call: Call, answer: bytes) -> None:
        self._answered.inc()
        if is_verbose():
            call.revision = scoring_pb2.ScoreResponse.FromString(answer).position.revision

    async def _pass_stream(self, method: str, requests: Requests, send: Send, call: Call) -> None:
        await self._relay.stream(method, requests, send, call)
