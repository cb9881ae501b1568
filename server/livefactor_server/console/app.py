"""The console as an ASGI application, and how it is served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from livefactor_server.console.pages import Pages
from livefactor_server.console.sessions import Sessions

_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class ConsoleSettings:
    """How the console reaches its server, and who reaches it.

    Attributes:
        target: address of the gRPC server.
        ca: file of the authorities of the server's certificate; None for plain text.
        hosts: names in the address bar that are answered. Another page could otherwise reach the
            console under a name of its own.
    """

    target: str
    ca: str | None = None
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")


def make_app(settings: ConsoleSettings) -> Starlette:
    """The application."""
    sessions = Sessions(settings.target, settings.ca)
    pages = Pages(sessions, settings.target)

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        pages.actions.end()
        await sessions.close()

    return Starlette(
        routes=pages.routes(),
        lifespan=life,
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts)),
            Middleware(_Headers),
        ],
    )


class _Headers:
    """Adds the headers that keep a browser from loading or showing anything foreign."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, with_headers)
