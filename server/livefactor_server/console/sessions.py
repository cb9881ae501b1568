"""Who is logged in: each session has clients of its own, with the token of its person."""

from __future__ import annotations

import secrets
from time import monotonic
from typing import Any

import grpc

from livefactor.access import Access
from livefactor.aio import AsyncAuditor, AsyncModels, AsyncScorer
from livefactor.channel import channel_options, may_be_remote
from livefactor.errors import InvalidArgument, LivefactorError, PermissionDenied

SESSIONS_MAX = 200
"""Sessions at a time. The one that was idle longest makes room."""

IDLE_S = 8 * 3600.0
"""A session ends after so many seconds without a request."""

NO_PRESET = "?"
COOKIE = "livefactor_session"
CONNECT_S = 2.0
TIMEOUT_S = 10.0


class Session:
    """What one person's requests share: a channel, and the person's token."""

    def __init__(self, target: str, access: Access) -> None:
        """Opens the channel.

        Raises:
            InvalidArgument: the token could be read on the way.
        """
        credentials = access.credentials()
        access.metadata(credentials is not None or not may_be_remote(target))
        options = channel_options(target)
        self._access, self.used_at = access, monotonic()
        self._channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self.models = AsyncModels(**self._shared())
        # Another site can make a browser send a form, but it cannot read this.
        self.form_key = secrets.token_urlsafe(32)
        self._is_admin: bool | None = None

    def scorer(self, model: str) -> AsyncScorer:
        """A client that asks a model for scores."""
        return AsyncScorer(model=model, timeout=TIMEOUT_S, **self._shared())

    def auditor(self, model: str) -> AsyncAuditor:
        """A client that lists the snapshots of a model."""
        return AsyncAuditor(model=model, **self._shared())

    async def is_admin(self, model: str) -> bool:
        """Whether the person has the role admin on a model that it sees."""
        if self._is_admin is None:
            try:
                # The contract has no call that tells a role. No preset has this name, so nothing
                # happens: who may not promote is told so first.
                await self.models.promote(model, NO_PRESET, timeout=TIMEOUT_S)
            except PermissionDenied:
                self._is_admin = False
            except InvalidArgument:
                self._is_admin = True
            except LivefactorError:
                return False
        return bool(self._is_admin)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    def _shared(self) -> dict[str, Any]:
        return {"channel": self._channel, "access": self._access, "connect_s": CONNECT_S}


class Sessions:
    """The open sessions, and the one of everybody who is not logged in."""

    def __init__(self, target: str, ca: str | None) -> None:
        self._target, self._ca = target, ca
        self._sessions: dict[str, Session] = {}
        self._nobody: Session | None = None

    def find(self, cookie: str) -> Session:
        """The session that a cookie names, or else that of nobody, which has no token."""
        session = self._sessions.pop(cookie, None)
        if session is not None and monotonic() - session.used_at < IDLE_S:
            session.used_at = monotonic()
            self._sessions[cookie] = session
            return session
        if self._nobody is None:
            self._nobody = self.make("")
        return self._nobody

    def make(self, token: str) -> Session:
        """A session that is not kept yet."""
        # Only the person's own token counts. A token or a certificate of this process does not.
        return Session(self._target, Access(ca=self._ca, token=token))

    async def keep(self, session: Session) -> str:
        """Keeps a session, and returns the value of its cookie."""
        while len(self._sessions) >= SESSIONS_MAX:
            await self._sessions.pop(next(iter(self._sessions))).close()
        cookie = secrets.token_urlsafe(32)
        self._sessions[cookie] = session
        return cookie

    async def end(self, cookie: str) -> None:
        """Ends a session, if there is such a one."""
        if (session := self._sessions.pop(cookie, None)) is not None:
            await session.close()

    async def close(self) -> None:
        """Ends all sessions."""
        for session in [*self._sessions.values(), *([self._nobody] if self._nobody else [])]:
            await session.close()
