"""The keeper takes a model's snapshots: on request, after a number of events, and at a drain.

It keeps the newest ones and deletes older ones. A snapshot reads through a pin, so that updates
continue. A model takes one snapshot at a time.
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
    """Settings of a keeper.

    Attributes:
        snapshot_every_events: events between automatic snapshots; 0 takes none automatically.
        snapshots_kept: number of snapshots that remain after a new one, at least 1.
    """

    snapshot_every_events: int = 20_000_000
    snapshots_kept: int = 3


class Keeper:
    """The snapshots of one engine. Thread-safe."""

    def __init__(self, engine: Engine, store: SnapshotStore, settings: KeeperSettings) -> None:
        self.store = store
        self._engine = engine
        self._settings = settings
        self._taking = threading.Lock()
        self._stopped = threading.Event()
        self._last_events = engine.state.events
        self._thread = threading.Thread(target=self._watch, name=f"keeper-{engine.name}", daemon=True)

    def start(self) -> None:
        """Starts to watch the number of events."""
        self._thread.start()

    def take(self, progress: Callable[[int, int, int], None] | None = None) -> Manifest:
        """Takes a snapshot. `progress` gets (bytes written, total bytes, revision).

        Raises:
            Refused: RESOURCE_EXHAUSTED if another snapshot is in progress or the disk is full.
        """
        if not self._taking.acquire(blocking=False):
            raise exhausted("snapshot: another one is in progress; try again later")
        try:
            with self._engine.view() as view:
                self._last_events = int(view.small["events"][0])
                report = (lambda done, total: progress(done, total, view.revision)) if progress else None
                info = self.store.take(view, report)
            self.store.prune(max(1, self._settings.snapshots_kept))
            logger.info("model %s: snapshot %s", self._engine.name, info.snapshot_id)
            return info
        except SnapshotDiskFull:
            raise exhausted("disk: it is full; the snapshot was cancelled") from None
        finally:
            self._taking.release()

    def stop(self, take_last: bool) -> None:
        """Stops watching. With `take_last` it takes a last snapshot, so that the next start is
        fast.

        It takes none if the newest snapshot has the current revision.
        """
        self._stopped.set()
        self._thread.join()
        newest = self.store.list()[-1:]
        if take_last and (not newest or newest[0].revision != self._engine.state.revision):
            try:
                self.take()
            except Exception:
                logger.exception(
                    "model %s: the last snapshot failed; no data is lost, the log is complete",
                    self._engine.name,
                )

    def _watch(self) -> None:
        every = self._settings.snapshot_every_events
        while not self._stopped.wait(POLL_S):
            if every and self._engine.state.events - self._last_events >= every:
                try:
                    self.take()
                except Exception:
                    logger.exception(
                        "model %s: an automatic snapshot failed; the next one is later", self._engine.name
                    )
                    self._last_events = self._engine.state.events
