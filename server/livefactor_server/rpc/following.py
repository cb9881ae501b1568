"""Handlers of the FollowService: a server sends its models and their logs to its followers."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress

from prometheus_client import Gauge

from livefactor.v1 import following_pb2
from livefactor.wire.limits import over
from livefactor_server.engine.engine import Engine
from livefactor_server.hosting.backup import BackupError
from livefactor_server.hosting.following import leading
from livefactor_server.hosting.following.copying import pieces
from livefactor_server.hosting.following.tail import Tail
from livefactor_server.log.errors import LogError
from livefactor_server.rpc import guards
from livefactor_server.rpc.calls import Calls
from livefactor_server.rpc.guards import Call, Requests, Send
from livefactor_server.statuses import invalid, later, precondition, unavailable

FOLLOWERS = Gauge("livefactor_followers", "Followers to which this server sends the log.", ["model"])

FOLLOWER_CHARACTERS_MAX = 64
"""Maximum length of what a follower calls itself."""

ADDRESS_CHARACTERS_MAX = 256
"""Maximum length of the address of a server."""

HEARTBEAT_S = 1.0
"""Seconds after which a follower without new records hears that there are none."""


async def copy_model(calls: Calls, requests: Requests, send: Send, call: Call) -> None:
    """Handles CopyModel."""
    request = guards.parse(following_pb2.CopyModelRequest, await requests.only())
    hosted = calls.model(call, request.model)
    async with calls.follows.slot(0, ""):
        copy = hosted.folder.with_name(f".new-copy-{uuid.uuid4().hex[:12]}")
        found = pieces(hosted.folder, copy)
        try:
            while (piece := await calls.follows.in_thread(next, found, None)) is not None:
                message = following_pb2.CopyModelResponse(
                    path=piece.path, offset=piece.offset, file_size=piece.file_size, data=piece.data
                )
                await send(message.SerializeToString())
        except (BackupError, LogError, OSError) as error:
            raise later(f"copy: {type(error).__name__}: the copy could not be made") from error


async def follow_log(calls: Calls, requests: Requests, send: Send, call: Call) -> None:
    """Handles FollowLog: sends what the follower lacks, and then each new record."""
    request = guards.parse(following_pb2.FollowLogRequest, await requests.only())
    hosted = calls.model(call, request.model)
    engine, name = hosted.engine, hosted.name
    async with calls.follows.slot(0, ""):
        # The log of a model that follows a leader itself is read as any other one.
        tail = await calls.follows.in_thread(Tail, hosted, request)
        await send(following_pb2.FollowLogResponse(revision=engine.revision).SerializeToString())
        confirmations, follower = engine.confirmations, _follower(request.follower)
        if confirmations is not None:
            confirmations.join(follower, request.revision)
        FOLLOWERS.labels(name).inc()
        try:
            while True:
                call.allow(name)
                if calls.hosting.get(name).engine is not engine:
                    raise unavailable("follow: the model was opened again; ask again")
                await _send_next(calls, engine, tail, send)
        finally:
            FOLLOWERS.labels(name).dec()
            if confirmations is not None:
                confirmations.leave(follower)


async def _send_next(calls: Calls, engine: Engine, tail: Tail, send: Send) -> None:
    """Sends the next records, or after some time the news that there are none."""
    revision = engine.revision
    message = await calls.follows.in_thread(tail.message, revision)
    if message is None:
        if not engine.has_reached(revision + 1):
            await _news(calls, engine, revision + 1)
        if engine.revision > revision:
            return
        message = following_pb2.FollowLogResponse(revision=engine.revision).SerializeToString()
    await send(message)


async def confirm_log(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles ConfirmLog."""
    request = guards.parse(following_pb2.ConfirmLogRequest, raw)
    engine = calls.model(call, request.model).engine
    if request.lineage != engine.log.lineage.bytes:
        raise precondition("confirm: the model has another lineage")
    if request.revision > engine.revision:
        raise precondition(f"confirm: the model is at revision {engine.revision}")
    if engine.confirmations is not None:
        engine.confirmations.confirm(_follower(request.follower), request.revision)
    return following_pb2.ConfirmLogResponse().SerializeToString()


def _follower(name: str) -> str:
    if len(name) > FOLLOWER_CHARACTERS_MAX:
        raise invalid(over("follower", FOLLOWER_CHARACTERS_MAX, len(name), "characters"))
    return name


def take_lead(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles TakeLead."""
    request = guards.parse(following_pb2.TakeLeadRequest, raw)
    call.allow(*calls.hosting.names())
    leads = calls.hosting.take_lead(request.force, _address(request.address))
    return following_pb2.TakeLeadResponse(
        leads=[following_pb2.Lead(**lead._asdict()) for lead in leads]
    ).SerializeToString()


def fence(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles Fence."""
    request = guards.parse(following_pb2.FenceRequest, raw)
    hosted = calls.model(call, request.model)
    leading.fence(hosted, request.lineage, request.term, _address(request.address))
    return following_pb2.FenceResponse().SerializeToString()


def _address(text: str) -> str:
    if len(text) > ADDRESS_CHARACTERS_MAX or not text.isprintable():
        raise invalid(f"address: expected at most {ADDRESS_CHARACTERS_MAX} printable characters")
    return text


async def _news(calls: Calls, engine: Engine, revision: int) -> None:
    """Waits until a revision is published, at most `HEARTBEAT_S`."""
    news = asyncio.Event()

    def published() -> None:
        calls.loop.post(news.set)

    engine.await_revision(revision, published)
    try:
        if not engine.has_reached(revision):
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await news.wait()
    finally:
        engine.ignore(published)
