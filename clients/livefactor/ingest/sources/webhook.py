"""HTTP: each POST is a message. It is answered once its events are in the journal."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Callable
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from livefactor.ingest.config import SourceConfig
from livefactor.ingest.intake import Message
from livefactor.ingest.journal import Progress
from livefactor.ingest.sources import BUSY_S, WAIT_S, Put, Say, SourceError, Stopped

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

BODY_BYTES_MAX = 4 << 20
CALLS_MAX = 64
"""Calls that may wait for the journal at a time; further ones are answered with 503."""

ANSWER_S = 30.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class WebhookSource:
    """Listens for events: `curl -d '{"user": "ann", "item": "tea"}' http://127.0.0.1:8080/`.

    The body is what a message of any source may be: an object, an array, or an object a line. An
    answer with status 200 means that the events will be applied. After any other answer the caller
    sends again, and may double events, because HTTP has no positions. Raises SourceError for an
    address beyond loopback without a token.
    """

    unit = "calls"

    def __init__(self, source: SourceConfig) -> None:
        self._name, options = source.name, source.options
        self._host, self._port = options.get("host", "127.0.0.1"), options["port"]
        variable = options.get("token_env")
        self._token = os.environ.get(variable, "") if variable else ""
        if variable and not self._token:
            raise SourceError(f"source {self._name!r}: the environment variable {variable} has no token")
        if self._host not in _LOOPBACK and not self._token:
            raise SourceError(
                f"source {self._name!r}: host {self._host!r} is not loopback, so it needs token_env, the name of "
                "an environment variable with a bearer token; put a proxy with TLS before it"
            )
        self._calls = 0
        self._position = 0

    def behind(self) -> int | None:
        """Calls that wait for their answer."""
        return self._calls

    def run(self, put: Put, resume: Callable[[str], Progress], stop: Event, say: Say) -> None:
        """Serve until `stop` is set."""
        import uvicorn
        from starlette.applications import Starlette
        from starlette.routing import Route

        progress = resume(self._partition)
        # Every position up to the last one was taken: nobody can send those messages again.
        self._position = max([progress.after or 0, *progress.partial])
        app = Starlette(routes=[Route("/", partial(self._post, put), methods=["POST"])])
        config = uvicorn.Config(app, self._host, self._port, log_level="error", server_header=False)
        server = uvicorn.Server(config)

        async def serve() -> None:
            running = asyncio.create_task(server.serve())
            while not stop.is_set() and not running.done():
                await asyncio.sleep(WAIT_S)
            server.should_exit = True
            try:
                await running
            except SystemExit:
                raise SourceError(
                    f"source {self._name!r}: port {self._port} of {self._host} cannot be opened"
                ) from None

        asyncio.run(serve())

    @property
    def _partition(self) -> str:
        return f"{self._name}/http"

    async def _post(self, put: Put, request: Request) -> Response:
        from starlette.responses import JSONResponse

        def refused(status: int, reason: str) -> Response:
            again = {"retry-after": "1"} if status == 503 else None
            return JSONResponse({"error": reason}, status, again)

        if self._token:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                return refused(401, "the call has no valid token")
        if self._calls >= CALLS_MAX:
            return refused(503, f"{CALLS_MAX} calls wait already")
        self._calls += 1
        try:
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    return refused(413, f"a body may have {BODY_BYTES_MAX} bytes")
            if not body.strip():
                return refused(400, "the body is empty")
            try:
                async with asyncio.timeout(ANSWER_S):
                    dead = await self._journaled(put, body)
            except TimeoutError:
                return refused(503, f"the events were not in the journal within {ANSWER_S:g} s")
            except Stopped:
                return refused(503, "the ingester stops")
            return JSONResponse({"dead_letters": dead})
        finally:
            self._calls -= 1

    async def _journaled(self, put: Put, body: bytes) -> int:
        """Hand a body over and wait until it is in the journal; returns its dead letters."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()

        def resolve(dead: int) -> None:
            if not done.done():
                done.set_result(dead)

        def settle(dead: int) -> None:
            loop.call_soon_threadsafe(resolve, dead)

        while True:
            # Positions must grow in the order in which messages are taken: nothing is awaited here.
            message = Message(self._name, self._partition, self._position + 1, body, settle)
            if put(message, wait=False):
                self._position += 1
                return await done
            await asyncio.sleep(BUSY_S)
