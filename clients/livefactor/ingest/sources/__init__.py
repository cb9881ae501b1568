"""Where events come from. A source runs in a thread of its own and gives messages in order."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Protocol

from livefactor.ingest.intake import Message
from livefactor.ingest.journal import Progress

WAIT_S = 0.1
"""How often a source looks for what is new, seconds."""

BUSY_S = 0.005
"""How often a source that runs an event loop tries again to give a message, seconds."""


class Put(Protocol):
    """Takes a message."""

    def __call__(self, message: Message, *, wait: bool = True) -> bool:
        """Take a message; returns whether it was taken.

        wait: wait while the ingester is busy. Raises Stopped when the ingester ends.
        """


Say = Callable[[str], None]
"""Tells the operator something, such as that a broker is away."""


class Stopped(Exception):
    """The ingester ends."""


class SourceError(RuntimeError):
    """A source can give no more messages. The text says why."""


class Source(Protocol):
    """A source of messages."""

    def run(self, put: Put, resume: Callable[[str], Progress], stop: Event, say: Say) -> None:
        """Give messages until `stop` is set.

        resume: where to go on with a partition. Raises SourceError.
        """

    def behind(self) -> int | None:
        """How much it has not read yet, in `unit`; None if it cannot know."""

    unit: str
