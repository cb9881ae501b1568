"""The open update streams, and the answers on their way to the peers.

An open stream costs memory, but no thread. If there are too many, a further stream takes the place
of the one that has been idle longest, so that idle streams cannot keep others out.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from livefactor_server.engine.submission import Ack
from livefactor_server.rpc.loop import Loop
from livefactor_server.statuses import Refused, busy, unavailable

UNTAKEN_ANSWERS_MAX = 256
"""Maximum number of batches of a stream whose answers the peer has not read.

At this number the server stops reading the stream.
"""

ANSWERS_A_MESSAGE_MAX = 64
"""Maximum number of answers per message of a stream.

With a hundred rejects each, such a message is far below the size limit.
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the batch with the number `index` of a stream.

    `lineage` is the model's, or None with a refusal. `term` is the model's.
    """

    index: int
    sequence: int
    result: Ack | Refused
    lineage: uuid.UUID | None
    term: int = 0


class Stream:
    """One open stream. Only the loop's thread may call its methods, except `put`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._answers: deque[Answer | Refused | None] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Semaphore(UNTAKEN_ANSWERS_MAX)
        self._open_batches = 0
        self._used_at = time.monotonic()

    async def begin_batch(self) -> None:
        """Waits until the peer has read enough answers for one more batch."""
        await self._room.acquire()
        self._open_batches += 1
        self._used_at = time.monotonic()

    def put(self, answer: Answer | Refused | None) -> None:
        """Adds an answer. Thread-safe.

        `None` ends the stream after all answers, and `Refused` at once.
        """
        self.prepare(answer)
        self._loop.wake()

    def prepare(self, answer: Answer | Refused | None) -> None:
        """Adds an answer, which is seen after the loop wakes. Thread-safe."""
        self._answers.append(answer)
        self._loop.prepare(self._news.set)

    async def ready(self) -> list[Answer]:
        """The next answers, in order. An empty list ends the stream.

        Raises:
            Refused: the server ends the stream.
        """
        has_ended = False
        while True:
            found: list[Answer] = []
            while self._answers and len(found) < ANSWERS_A_MESSAGE_MAX:
                if isinstance(self._answers[0], Refused) and found:
                    break
                answer = self._answers.popleft()
                if isinstance(answer, Refused):
                    raise answer
                if answer is None:
                    has_ended = True
                else:
                    found.append(answer)
            if found or (has_ended and not self._open_batches):
                if has_ended:
                    # The mark comes again after the batches that are still open.
                    self._answers.append(None)
                return found
            await self._news.wait()
            self._news.clear()

    def sent(self, answers: int) -> None:
        """The peer has taken so many answers."""
        self._open_batches -= answers
        for _ in range(answers):
            self._room.release()

    @property
    def idle_s(self) -> float:
        """Seconds since the last batch, or 0 if batches are open."""
        return 0.0 if self._open_batches else time.monotonic() - self._used_at


class OneAhead:
    """Hands the messages of a stream from the task that reads them to the task that submits them.

    While one message is submitted, the next one arrives. No further one is read, so a stream holds
    two messages at most. Only the loop's thread may call its methods.
    """

    def __init__(self) -> None:
        self._place = asyncio.Semaphore(1)
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def put(self, raw: bytes | None) -> None:
        """Hands over a message when the one before is submitted. None ends the messages."""
        await self._place.acquire()
        self._messages.put_nowait(raw)

    async def take(self) -> bytes | None:
        """The next message. The caller calls `done` when it is submitted."""
        return await self._messages.get()

    def done(self) -> None:
        """Makes room for the next message."""
        self._place.release()


class Streams:
    """All open streams of a server. Only the loop's thread may call its methods."""

    def __init__(self, streams_max: int, idle_s: float, loop: Loop) -> None:
        self._streams_max, self._idle_s = streams_max, idle_s
        self._loop = loop
        self._open: set[Stream] = set()
        self._is_draining = False

    @contextmanager
    def opened(self) -> Iterator[Stream]:
        """An open stream.

        Raises:
            Refused: RESOURCE_EXHAUSTED if too many are open and none is idle, UNAVAILABLE if the
                server drains.
        """
        if self._is_draining:
            raise unavailable("server: draining")
        if len(self._open) >= self._streams_max:
            self._make_room()
        stream = Stream(self._loop)
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.discard(stream)

    def _make_room(self) -> None:
        idlest = max(self._open, key=lambda stream: stream.idle_s, default=None)
        if idlest is None or idlest.idle_s < self._idle_s:
            raise busy(
                f"streams: the server has {self._streams_max} open ones, which is the limit; try again later"
            )
        idlest.put(
            unavailable(
                f"stream: it sent no batch for {idlest.idle_s:.0f} s, and another one needs its place"
            )
        )
        self._open.discard(idlest)

    def end(self) -> None:
        """Ends every stream after the answers that are ready.

        A drain calls it when all accepted batches are answered.
        """
        self._is_draining = True
        for stream in self._open:
            stream.put(unavailable("server: draining"))
