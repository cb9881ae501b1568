"""What the handlers of all services share: the models, the limits, and the slots that calls take."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from livefactor_kernels.spec.presets import DEFAULT_PRESET
from livefactor_server.engine.engine import Engine
from livefactor_server.hosting.host import Hosting
from livefactor_server.rpc import guards
from livefactor_server.statuses import late, precondition, unavailable

DRAINED = object()
"""Ends an update stream behind the answers that it has."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Limits of admission: they refuse calls and mean nothing for a model's state.

    snapshot_slots: Snapshot and FetchSnapshot calls at once; each holds a thread for as long as the peer takes to read.
    """

    batch_events_max: int = 65_536
    streams_max: int = 32
    update_slots: int = 64
    score_slots: int = 16
    snapshot_slots: int = 4
    score_users_max: int = 1024
    score_rows_max: int = 1 << 18
    default_preset: str = DEFAULT_PRESET

    @property
    def threads(self) -> int:
        """Workers of the gRPC pool: a few more than all slots, so that health and administration always find one."""
        return self.streams_max + self.update_slots + self.score_slots + self.snapshot_slots + 8


class Calls:
    """The state that handlers have in common. Thread-safe."""

    def __init__(self, hosting: Hosting, settings: ServiceSettings) -> None:
        self.hosting = hosting
        self.settings = settings
        self.slots = {
            "updates": guards.Slots(settings.update_slots, "updates"),
            "streams": guards.Slots(settings.streams_max, "streams"),
            "scores": guards.Slots(settings.score_slots, "scores"),
            "snapshots": guards.Slots(settings.snapshot_slots, "snapshots"),
        }
        # Calls parked on min_position may not take all the score slots.
        self._parked = guards.Slots(max(1, settings.score_slots // 2), "scores waiting for min_position")
        self._open_streams: set[queue.SimpleQueue[Any]] = set()
        self._lock = threading.Lock()
        self._draining = False

    def await_position(
        self, engine: Engine, lineage: bytes, revision: int, context: grpc.ServicerContext
    ) -> None:
        """Wait until the model has published `revision`. Raises Refused: another lineage, or the deadline came first."""
        if lineage and lineage != engine.state.lineage.bytes:
            raise precondition("min_position: of another lineage than the model's")
        if revision > engine.revision:
            with self._parked:
                context.add_callback(engine.wake)  # a peer that goes away leaves its slot to others
                if not engine.wait_for(revision, guards.remaining(context), context.is_active):
                    raise late(f"min_position: revision {revision} was not reached in time")

    @contextmanager
    def open_stream(self, replies: queue.SimpleQueue[Any]) -> Iterator[None]:
        """A stream that a drain ends. Raises Refused (UNAVAILABLE) once the server drains."""
        with self._lock:
            if self._draining:
                raise unavailable("server: draining")
            self._open_streams.add(replies)
        try:
            yield
        finally:
            with self._lock:
                self._open_streams.discard(replies)

    def end_streams(self) -> None:
        """End every update stream behind the answers that it has; for a drain, when all that was accepted is answered."""
        with self._lock:
            self._draining = True
            for replies in self._open_streams:
                replies.put((DRAINED, 0))
