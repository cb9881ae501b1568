"""The thread of direct calls.

A call through asyncio makes three tasks, four futures and a dozen rounds of the loop, which cost
several times what a small call does. Here one thread takes the events of a call from grpcio's core,
and handles its message at once. What it cannot answer at once goes to the loop, as other calls do.

    arrival ─▶ grant ─▶ message ─▶ at once: answer
                           │           └──▶ log, apply ─▶ acknowledgement ─▶ answer
                           └──▶ loop: coroutine ─▶ answer

A call that waits for its message has neither a thread nor a slot, and it waits for a limited time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import grpc

from livefactor.wire.limits import MESSAGE_BYTES_MAX, over
from livefactor_server.rpc.direct import core
from livefactor_server.rpc.direct.gathering import Gathering
from livefactor_server.rpc.guards import Call, Guard, Need, check_size
from livefactor_server.rpc.loop import Loop
from livefactor_server.statuses import invalid, late
from livefactor_server.telemetry.requests import KEY as REQUEST_ID

LOOK_S = 0.25
"""Seconds between two looks for calls whose message has not come in time."""

logger = logging.getLogger(__name__)


class Later:
    """The answer of a call, which another thread may give."""

    def __init__(self, server: DirectServer, method: Method, event: core.Event) -> None:
        self._server, self._method = server, method
        self._core = core.Arrival(event)
        self._call = Call(self._core, method.need)
        self._task: asyncio.Task[None] | None = None
        self._release: Callable[[], None] | None = None
        self._encode: Callable[[Any], bytes] = bytes
        self.is_over = False
        """Whether the call has ended. Nobody reads another answer."""

    # ------------------------------------------------------------- any thread

    def reply(self, result: Any) -> Callable[[], None] | None:
        """Gives the result, or the exception that refuses the call.

        The call ends when the returned function is called. That of all calls is the same, and calls
        that end together need it once.
        """
        if self.is_over:
            return None
        self._server.prepare(self, result)
        return self._server.wake

    def wake(self, woken: core.Tag) -> None:
        """See `Arrival.wake`."""
        self._core.wake(woken)

    # --------------------------------------------------- the thread of the server

    def encode_with(self, encode: Callable[[Any], bytes], release: Callable[[], None]) -> None:
        """`encode` makes the answer of the result. `release` is called when the call ends."""
        self._encode, self._release = encode, release

    @property
    def gathering(self) -> Gathering:
        """What hands the batches of direct calls to the engines."""
        return self._server.gathering

    def begin(self) -> None:
        """Finds the grant of the caller, and asks for the message."""
        self._core.watch(self._ended)
        try:
            self._server.guard.enter(self._call, self._method.need)
        except Exception as error:
            self._fail(error)
            return
        self._core.receive(self._received)

    def expire(self) -> None:
        """The message has not come in time."""
        self._fail(late(f"request: the call sent no message within {self._server.wait_s:.0f} s"))

    def finish(self, result: Any) -> None:
        """Ends the call with its result."""
        if self.is_over:
            return
        try:
            if isinstance(result, BaseException):
                raise result
            self._answer(self._encode(result))
        except Exception as error:
            self._fail(error)

    def _received(self, event: core.Event) -> None:
        self._server.forget(self)
        if self.is_over:
            return
        try:
            raw = core.message_of(event)
            if raw is None:
                raise invalid("request: the call has no message")
            check_size(raw)
            self._call.began = time.perf_counter()
            answer = self._method.at_once(raw, self._call, self)
        except Exception as error:
            self._fail(error)
            return
        if answer is None:
            self._server.loop.post(self._begin_task, raw)
        elif answer is not LATER:
            self.finish(answer)

    def _answer(self, reply: bytes) -> None:
        if len(reply) > MESSAGE_BYTES_MAX:
            raise invalid(over("answer", MESSAGE_BYTES_MAX, len(reply), "bytes"))
        self._close("OK")
        self._core.answer(reply, ((REQUEST_ID, self._call.request_id),))

    def _fail(self, error: Exception) -> None:
        if self.is_over:
            logger.error("direct calls", exc_info=error)
            return
        answer, metadata = self._server.guard.refused(self._call, error)
        self._close(answer.code.name, answer.text)
        self._core.refuse(answer.code, answer.text, metadata)

    def _ended(self, event: core.Event) -> None:
        if self.is_over or not core.is_cancelled(event):
            return
        self._close("CANCELLED")
        self._server.loop.post(self._cancel_task)

    def _close(self, code: str, text: str = "") -> None:
        self.is_over = self._call.is_over = True
        self._server.forget(self)
        self._server.guard.leave(self._call, code, text)
        if self._release is not None:
            self._release()

    # ----------------------------------------------------------------- the loop

    def _begin_task(self, raw: bytes) -> None:
        if not self.is_over:
            self._task = asyncio.create_task(self._handle(raw))

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _handle(self, raw: bytes) -> None:
        result: Any
        try:
            result = await self._method.handle(raw, self._call)
        except Exception as error:
            result = error
        if (wake := self.reply(result)) is not None:
            wake()


LATER = b"later"
"""What a handler returns if it has handed the call on, and calls `Later.reply` when it is done."""


class Method(NamedTuple):
    """An RPC with direct calls.

    Attributes:
        path: "/package.Service/Method".
        need: who may call it.
        at_once: returns the answer, or `LATER`, or None if the loop handles the call.
        handle: handles a call in the loop.
    """

    path: str
    need: Need
    at_once: Callable[[bytes, Call, Later], bytes | None]
    handle: Callable[[bytes, Call], Awaitable[bytes]]


class DirectServer:
    """Serves some methods of a gRPC server in a thread."""

    def __init__(
        self, server: grpc.aio.Server, loop: Loop, guard: Guard, wait_s: float, methods: Sequence[Method]
    ) -> None:
        """Takes the methods away from the other handlers of `server`, which has not started.

        A call may wait `wait_s` seconds for its message. If grpcio does not allow direct calls, the
        other handlers keep the methods.
        """
        self.loop, self.guard, self.wait_s = loop, guard, wait_s
        self.gathering = Gathering()
        self._methods = methods
        # The calls that wait for their messages, and since when. The first one waits longest.
        self._waiting: dict[Later, float] = {}
        self._look_at = 0.0
        self._inbox: deque[tuple[Later, Any]] = deque()
        self._is_woken = self._is_closed = False
        # A closed queue takes no event.
        self._open_queue = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="rpc-direct", daemon=True)
        within = core.found(server)
        self._core = None if within is None else core.Core(within)
        if self._core is not None:
            for method in methods:
                self._core.register(method.path)

    def start(self) -> None:
        """Takes calls. The server has started."""
        if self._core is None:
            return
        for method in self._methods:
            for _ in range(core.ACCEPTED_MAX):
                self._accept(method)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. The server has stopped, and no call is open."""
        if self._core is None:
            return
        with self._open_queue:
            self._is_closed = True
            self._core.close()
        if self._thread.ident is not None:
            self._thread.join()

    def prepare(self, later: Later, result: Any) -> None:
        """Has a call end after the next `wake`. Any thread may call it."""
        self._inbox.append((later, result))

    def wake(self) -> None:
        """Has the thread end the prepared calls soon. Any thread may call it."""
        with self._open_queue:
            if self._is_woken or self._is_closed:
                return
            try:
                later, _ = self._inbox[-1]
            except IndexError:
                return
            self._is_woken = True
            later.wake(self._empty_inbox)

    def forget(self, later: Later) -> None:
        """The call does not wait for its message any more."""
        self._waiting.pop(later, None)

    def _serve(self) -> None:
        assert self._core is not None
        until = None
        while True:
            event = self._core.next(until)
            tag = event.tag
            try:
                if tag is not None:
                    tag(event)
                elif self._core.is_timeout(event):
                    self.gathering.hand_over()
                elif self._core.is_end(event):
                    return
                until = self._until()
            except Exception:
                logger.exception("direct calls")
                until = 0.0
            # It may keep a call alive.
            del event, tag

    def _until(self) -> float | None:
        """Until when the next event is waited for, after what is due has been done."""
        gathering, now = self.gathering, time.monotonic()
        if now >= gathering.until:
            gathering.hand_over()
        if self._waiting and now >= self._look_at:
            self._look_at = now + LOOK_S
            self._expire(now - self.wait_s)
        if gathering.until < math.inf:
            return 0.0
        return time.time() + LOOK_S if self._waiting else None

    def _expire(self, until: float) -> None:
        while self._waiting:
            later, since = next(iter(self._waiting.items()))
            if since > until:
                return
            later.expire()

    def _accept(self, method: Method) -> None:
        assert self._core is not None

        def arrived(event: core.Event) -> None:
            if not event.success:
                # The server shuts down.
                return
            self._accept(method)
            later = Later(self, method, event)
            self._waiting[later] = time.monotonic()
            later.begin()

        self._core.accept(method.path, arrived)

    def _empty_inbox(self, _: core.Event) -> None:
        # The flag falls first: whoever appends from now on wakes the thread again.
        self._is_woken = False
        for _ in range(len(self._inbox)):
            later, result = self._inbox.popleft()
            later.finish(result)
