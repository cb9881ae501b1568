"""The state that the handlers of all services share: the models, the limits and the slots."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from livefactor.wire import limits
from livefactor_kernels.spec.presets import DEFAULT_PRESET
from livefactor_server.engine.engine import Engine
from livefactor_server.hosting.host import Hosting
from livefactor_server.rpc import guards
from livefactor_server.statuses import late, precondition, unavailable

DRAINED = object()
"""Ends an update stream after the answers in its queue."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Limits of calls. They do not affect the state of a model.

    Attributes:
        batch_events_max: maximum number of rows per batch.
        streams_max: maximum number of concurrent update streams.
        update_slots: maximum number of concurrent unary calls of the update service.
        score_slots: maximum number of concurrent Score calls.
        snapshot_slots: maximum number of concurrent Snapshot and FetchSnapshot calls. Each holds a
            thread until the peer has read all data.
        score_users_max: maximum number of users per Score call.
        score_rows_max: maximum number of scores per Score call, and of ids in each of its lists.
        default_preset: preset of new models without a spec.
    """

    batch_events_max: int = limits.BATCH_ROWS_MAX
    streams_max: int = 32
    update_slots: int = 64
    score_slots: int = 16
    snapshot_slots: int = 4
    score_users_max: int = limits.SCORE_USERS_MAX
    score_rows_max: int = limits.SCORE_ROWS_MAX
    default_preset: str = DEFAULT_PRESET

    @property
    def threads(self) -> int:
        """Number of workers of the gRPC pool.

        It exceeds the number of slots, so that health and administration calls always find a
        worker.
        """
        return self.streams_max + self.update_slots + self.score_slots + self.snapshot_slots + 8


class Calls:
    """The state that handlers share. Thread-safe."""

    def __init__(self, hosting: Hosting, settings: ServiceSettings) -> None:
        self.hosting = hosting
        self.settings = settings
        self.slots = {
            "updates": guards.Slots(settings.update_slots, "updates"),
            "streams": guards.Slots(settings.streams_max, "streams"),
            "scores": guards.Slots(settings.score_slots, "scores"),
            "snapshots": guards.Slots(settings.snapshot_slots, "snapshots"),
        }
        # Calls that wait for min_position must not take all slots of scores.
        self._parked = guards.Slots(max(1, settings.score_slots // 2), "scores waiting for min_position")
        self._open_streams: set[queue.SimpleQueue[Any]] = set()
        self._lock = threading.Lock()
        self._draining = False

    def await_position(
        self, engine: Engine, lineage: bytes, revision: int, context: grpc.ServicerContext
    ) -> None:
        """Waits until the model has published `revision`.

        Raises:
            Refused: the position has another lineage, too many calls wait, or the deadline passes
                first.
        """
        if lineage and lineage != engine.state.lineage.bytes:
            raise precondition("min_position: its lineage is not the model's lineage")
        if revision > engine.revision:
            with self._parked:
                # If the peer disconnects, the wait ends and the slot is free again.
                context.add_callback(engine.wake)
                if not engine.wait_for(revision, guards.remaining(context), context.is_active):
                    raise late(f"min_position: revision {revision} was not reached in time")

    @contextmanager
    def open_stream(self, replies: queue.SimpleQueue[Any]) -> Iterator[None]:
        """Registers an update stream, so that a drain can end it.

        Raises:
            Refused: UNAVAILABLE if the server drains.
        """
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
        """Ends every update stream after the answers in its queue.

        A drain calls it when all accepted batches are answered.
        """
        with self._lock:
            self._draining = True
            for replies in self._open_streams:
                replies.put((DRAINED, 0))
