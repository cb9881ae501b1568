"""What the sources of brokers share. They use FastStream: kafka.py, nats.py, redis.py.

Each source reads from its own positions, so the broker keeps none: no consumer group, no acks.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from threading import Event
from typing import Any

from livefactor.ingest.config import SourceConfig
from livefactor.ingest.intake import Message
from livefactor.ingest.journal import Progress
from livefactor.ingest.sources import BUSY_S, WAIT_S, Put, Say, Stopped

RETRY_S_MAX = 5.0
"""The longest pause between two tries to reach a broker, seconds."""

CHECK_S = 1.0
"""How often a broker is asked whether it is there, and how far behind the source is, seconds."""

CONNECT_S = 3.0
"""How long one try may take, seconds."""

FETCH_MAX = 500
"""Messages that are fetched together."""

SILENT = logging.getLogger("livefactor.ingest.broker")
"""The logger of the libraries: this room says itself what operators need to know."""
SILENT.propagate = False
SILENT.addHandler(logging.NullHandler())


class Away(Exception):
    """The broker cannot be reached now."""


class BrokerSource(ABC):
    """A source in a broker: it tries to connect, and gives messages in order."""

    unit = "messages"

    def __init__(self, source: SourceConfig) -> None:
        self._name, self._options = source.name, source.options
        self._behind: int | None = None
        self._last: dict[str, int] = {}
        self._failure: Exception | None = None
        self._put: Put
        self._resume: Callable[[str], Progress]

    def behind(self) -> int | None:
        """Messages that the broker has and the source has not read."""
        return self._behind

    def run(self, put: Put, resume: Callable[[str], Progress], stop: Event, say: Say) -> None:
        """Give the broker's messages until `stop` is set. A broker that is away is waited for."""
        self._put, self._resume = put, resume
        asyncio.run(self._serve(stop, say))

    async def _serve(self, stop: Event, say: Say) -> None:
        pause, is_away = WAIT_S, False

        def connected() -> None:
            nonlocal pause, is_away
            if is_away:
                say(f"source {self._name!r}: connected")
            pause, is_away = WAIT_S, False

        while not stop.is_set():
            try:
                await self._session(stop, connected)
            except Away as error:
                if not is_away:
                    say(f"source {self._name!r}: the broker is away, trying again: {error}")
                is_away = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_S_MAX)

    @abstractmethod
    async def _session(self, stop: Event, connected: Callable[[], None]) -> None:
        """Connect, call `connected`, and give messages until `stop` is set.

        Raises Away if the broker cannot be reached, also later.
        """

    async def _watch(self, stop: Event, check: Callable[[], Awaitable[int | None]]) -> None:
        """Wait for `stop`. check: returns how far behind the source is, and raises Away."""
        left = 0.0
        while not stop.is_set():
            if self._failure is not None:
                raise self._failure
            if left <= 0:
                self._behind = await check()
                left = CHECK_S
            await asyncio.sleep(WAIT_S)
            left -= WAIT_S

    def _after(self, partition: str) -> int | None:
        """The position behind which a session goes on; None at the beginning."""
        found = [self._last.get(partition), self._resume(partition).after]
        return max((each for each in found if each is not None), default=None)

    async def _take(self, messages: Iterable[tuple[str, int, bytes | dict[str, Any]]]) -> None:
        """Give messages: the partition, the position and the payload of each.

        FastStream goes on behind a handler that fails, which would lose its messages. So a failure
        ends the source.
        """
        try:
            for partition, position, payload in messages:
                await self._give(partition, position, payload)
        except Stopped:
            raise
        except Exception as error:
            self._failure = error
            raise

    async def _give(self, partition: str, position: int, payload: bytes | dict[str, Any]) -> None:
        """Give a message, unless it was given before."""
        if position <= self._last.get(partition, -1):
            return
        message = Message(self._name, partition, position, payload)
        while not self._put(message, wait=False):
            await asyncio.sleep(BUSY_S)
        self._last[partition] = position


async def stopped(broker: Any) -> None:
    """Close what FastStream opened. A broker that is away cannot answer, so errors do not count."""
    try:
        async with asyncio.timeout(CONNECT_S):
            await broker.stop()
    except Exception as error:
        SILENT.info("the broker's connection did not close: %s", error)


def undecoded(message: Any) -> Any:
    """A decoder for FastStream, whose own one would lose a message that is no JSON."""
    return message.body
