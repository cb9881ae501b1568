"""The service `grpc.health.v1.Health`.

A watcher that does not read must not keep others from the state, so each has an event of its own.
"""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2

from livefactor_server.rpc import guards
from livefactor_server.rpc.guards import Call, Guard, Need, Requests, Send
from livefactor_server.statuses import not_found, unavailable

_States = health_pb2.HealthCheckResponse


class Health:
    """The state of each service. Only the loop's thread may call its methods."""

    def __init__(self) -> None:
        self._serving: dict[str, bool | None] = {}
        self._watchers: set[asyncio.Event] = set()
        self._has_ended = False

    def set(self, states: dict[str, bool], gone: tuple[str, ...] = ()) -> None:
        """Sets whether services serve, by name ("" is the server). The `gone` ones are unknown."""
        self._serving |= states | dict.fromkeys(gone)
        for news in self._watchers:
            news.set()

    def end(self) -> None:
        """Ends the calls of all watchers."""
        self._has_ended = True
        for news in self._watchers:
            news.set()

    def handler(self, guard: Guard) -> grpc.GenericRpcHandler:
        """The handlers of the service. Load balancers may call them without a grant."""
        return grpc.method_handlers_generic_handler(
            "grpc.health.v1.Health",
            {
                "Check": guard.unary(self._check, True, Need("Health.Check", None)),
                "Watch": guard.stream(self._watch, True, Need("Health.Watch", None)),
            },
        )

    async def _check(self, raw: bytes, call: Call) -> bytes:
        service = guards.parse(health_pb2.HealthCheckRequest, raw).service
        if service not in self._serving:
            raise not_found("service: it does not exist")
        state: bytes = self._state(service).SerializeToString()
        return state

    async def _watch(self, requests: Requests, send: Send, call: Call) -> None:
        service = guards.parse(health_pb2.HealthCheckRequest, await requests.only()).service
        news = asyncio.Event()
        self._watchers.add(news)
        try:
            last = None
            while True:
                state = self._state(service)
                if state != last:
                    await send(state.SerializeToString())
                    last = state
                if self._has_ended:
                    raise unavailable("server: draining")
                await news.wait()
                news.clear()
        finally:
            self._watchers.discard(news)

    def _state(self, service: str) -> health_pb2.HealthCheckResponse:
        serving = self._serving.get(service)
        if serving is None:
            return _States(status=_States.SERVICE_UNKNOWN)
        return _States(status=_States.SERVING if serving else _States.NOT_SERVING)
