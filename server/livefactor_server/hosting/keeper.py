"""Takes a model's snapshots: on request, every so many events, and a last one on drain; keeps the newest few.

A snapshot reads through a pin, so updates go on; one at a time for each model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from livefactor.snapshots.format import Manifest
from livefactor_server.engine.engine import Engine
from livefactor_server.snapshots.store import SnapshotDiskFull, SnapshotStore
from livefactor_server.statuses import exhausted

POLL_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeeperSettings:
    """snapshot_every_events: 0 takes none by itself. snapshots_kept: older ones are deleted after each new one, at least 1."""

    snapshot_every_events: int = 20_000_000
    snapshots_kept: int = 3


class Keeper:
    """Snapshots of one engine."""

    def __init__(self, engine: Engine, store: SnapshotStore, settings: KeeperSettings) -> None:
        self.store = store
        self._engine = engine
        self._settings = settings
        self._taking = threading.Lock()
        self._stopped = threading.Event()
        self._last_events = engine.state.events
        self._thread = threading.Thread(target=self._watch, name=f"keeper-{engine.name}", daemon=True)

    def start(self) -> None:
        """Begin to watch the number of events."""
        self._thread.start()

    def take(self, progress: Callable[[int, int, int], None] | None = None) -> Manifest:
        """Take one now; `progress` gets (bytes done, bytes in all, revision). Raises Refused (RESOURCE_EXHAUSTED)."""
        if not self._taking.acquire(blocking=False):
            raise exhausted("snapshot: one is being taken, try again later")
        try:
            with self._engine.view() as view:
                self._last_events = int(view.small["events"][0])
                report = (lambda done, total: progress(done, total, view.revision)) if progress else None
                info = self.store.take(view, report)
            self.store.prune(max(1, self._settings.snapshots_kept))
            logger.info("model %s: snapshot %s", self._engine.name, info.snapshot_id)
            return info
        except SnapshotDiskFull:
            raise exhausted("disk: full, the snapshot was given up") from None
        finally:
            self._taking.release()

    def stop(self, take_last: bool) -> None:
        """Stop watching; with `take_last` snapshot what has changed since the newest, so that a restart is quick."""
        self._stopped.set()
        self._thread.join()
        newest = self.store.list()[-1:]
        if take_last and (not newest or newest[0].revision != self._engine.state.revision):
            try:
                self.take()
            except Exception:
                logger.exception(
                    "model %s: the last snapshot failed; the log has everything", self._engine.name
                )

    def _watch(self) -> None:
        every = self._settings.snapshot_every_events
        while not self._stopped.wait(POLL_S):
            if every and self._engine.state.events - self._last_events >= every:
                try:
                    self.take()
                except Exception:
                    logger.exception(
                        "model %s: automatic snapshot failed, tried again later", self._engine.name
                    )
                    self._last_events = self._engine.state.events
