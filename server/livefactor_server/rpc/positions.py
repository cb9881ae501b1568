"""Calls that wait until a model has published a revision. They hold neither a thread nor a slot."""

from __future__ import annotations

import asyncio

from livefactor_server.engine.engine import Engine
from livefactor_server.rpc.loop import Loop
from livefactor_server.statuses import busy, precondition


class Positions:
    """The waiting calls of a server. Only the loop's thread may call its methods."""

    def __init__(self, loop: Loop, waiting_max: int) -> None:
        self._loop, self._waiting_max = loop, waiting_max
        self._waiting = 0

    async def reach(self, engine: Engine, lineage: bytes, revision: int) -> None:
        """Waits until the model has published `revision`.

        Raises:
            Refused: the position has another lineage, too many calls wait, or the model will
                publish no further revision.
        """
        if lineage and lineage != engine.state.lineage.bytes:
            raise precondition("min_position: its lineage is not the model's lineage")
        if engine.has_reached(revision):
            return
        if self._waiting >= self._waiting_max:
            raise busy(f"min_position: {self._waiting_max} calls wait for one, which is the limit")
        news = asyncio.Event()

        def published() -> None:
            self._loop.post(news.set)

        self._waiting += 1
        engine.await_revision(revision, published)
        try:
            while not engine.has_reached(revision):
                await news.wait()
                news.clear()
        finally:
            engine.ignore(published)
            self._waiting -= 1
