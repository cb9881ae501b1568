"""The keeper takes a model's snapshots, verifies the part of the log that a start did not read, and
carries out the retention of the log.

It takes snapshots on request, at a drain, after a number of events, after a switch of the spec
or a rollback, and before the replay of what follows the newest one would take too long. It keeps
the newest ones and
deletes older ones. A snapshot reads through a pin, so that updates continue. A model takes one
snapshot at a time.

A start reads the log from the segment of the newest snapshot on. The keeper's thread then verifies
the earlier segments, a little at each poll.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import Gauge

from livefactor.snapshots.checkpoint import Checkpoint
from livefactor.snapshots.format import Manifest
from livefactor_server.engine.engine import Engine
from livefactor_server.hosting.retaining.archive import Archive
from livefactor_server.hosting.retaining.retention import Policy, Retention, archive_of
from livefactor_server.log.store import LogError
from livefactor_server.snapshots.signing import signed
from livefactor_server.snapshots.store import SnapshotDiskFull, SnapshotStore
from livefactor_server.statuses import Refused, later

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

POLL_S = 1.0

REPLAY_S_MAX = 5.0
"""Estimated seconds of replay after which a snapshot is taken. A restart then takes below 10 s."""

SNAPSHOT_SHARE_MAX = 0.05
"""Maximum share of the time in which the keeper takes snapshots to keep the replay short."""

RETENTION_S = 60.0
"""Seconds between two looks at what the retention policy no longer keeps."""

CHECK_S = 0.1
"""Maximum seconds for which the keeper verifies earlier segments at each poll."""

RETENTION_FAILED = Gauge(
    "livefactor_retention_failed",
    "1 if the last look at the retention of the log ended with an error, such as an archive that cannot be"
    " reached.",
    ["model"],
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeeperSettings:
    """Settings of a keeper.

    Attributes:
        snapshot_every_events: maximum events between automatic snapshots; 0 takes none
            automatically.
        snapshots_kept: number of snapshots that remain after a new one, at least 1.
        retention: how much of the log stays. None keeps all of it.
        chain_max: number of incremental snapshots between two whole ones.
        signing_key: the key that signs checkpoints of snapshots. None makes none.
    """

    snapshot_every_events: int = 20_000_000
    snapshots_kept: int = 3
    retention: Policy | None = None
    chain_max: int = 0
    signing_key: Ed25519PrivateKey | None = None


class Keeper:
    """The snapshots of one engine. Thread-safe.

    Attributes:
        is_forgetting: whether an erasure is in progress. Meanwhile the log is not shortened, and
            no snapshot goes, because its replay may begin with one.
    """

    def __init__(
        self, engine: Engine, store: SnapshotStore, settings: KeeperSettings, replayed_s: float = 0.0
    ) -> None:
        """Makes a keeper that does not watch yet.

        The replay of the records after the newest snapshot took `replayed_s` seconds.
        """
        self.store = store
        self._engine = engine
        self._settings = settings
        self.is_forgetting: Callable[[], bool] = lambda: False
        self._taking = threading.Lock()
        self._stopped = threading.Event()
        self._last_events, self._last_switch = engine.state.events, engine.switched
        # The replay that a restart would need now is that of the engine minus this.
        self._last_replay_s = -replayed_s
        self._last_taken, self._taken_s = time.monotonic(), 0.0
        self._unchecked: Iterator[int] | None = engine.log.check_earlier()
        policy = settings.retention
        self._retention = None if policy is None else Retention(engine, store, policy)
        if policy is not None:
            RETENTION_FAILED.labels(engine.name).set(0)
        self._retained = time.monotonic() - RETENTION_S
        self._thread = threading.Thread(target=self._watch, name=f"keeper-{engine.name}", daemon=True)

    @property
    def archive(self) -> Archive | None:
        """The archived segments of this model. None if nothing is archived."""
        return archive_of(self._settings.retention, self._engine)

    def start(self) -> None:
        """Starts to watch the number of events."""
        self._thread.start()

    def take(self, progress: Callable[[int, int, int], None] | None = None) -> Manifest:
        """Takes a snapshot. `progress` gets (bytes written, total bytes, revision).

        Raises:
            Refused: RESOURCE_EXHAUSTED if another snapshot is in progress or the disk is full.
        """
        if not self._taking.acquire(blocking=False):
            raise later("snapshot: another one is in progress")
        try:
            return self._take(progress)
        finally:
            self._taking.release()

    def _take(self, progress: Callable[[int, int, int], None] | None = None) -> Manifest:
        """Takes a snapshot. The caller holds the lock."""
        try:
            start, replay_s = time.monotonic(), self._engine.metrics.replay_s
            switched = self._engine.switched
            with self._engine.view() as view:
                self._last_events = int(view.small["events"][0])
                self._last_switch = switched
                report = (lambda done, total: progress(done, total, view.revision)) if progress else None
                info = self.store.take(view, report, self._settings.chain_max)
            if (key := self._settings.signing_key) is not None and not self.store.checkpoint(
                info.snapshot_id
            ):
                self.store.put_checkpoint(info.snapshot_id, signed(Checkpoint.of(info), key).to_json())
            if not self.is_forgetting():
                self.store.prune(max(1, self._settings.snapshots_kept))
            self._last_replay_s, self._last_taken = replay_s, time.monotonic()
            self._taken_s = self._last_taken - start
            logger.info("model %s: snapshot %s", self._engine.name, info.snapshot_id)
            return info
        except SnapshotDiskFull:
            raise later("disk: it is full; the snapshot was cancelled") from None

    def renew(self, revision: int, kept: Collection[str] = ()) -> tuple[str, ...]:
        """Removes the snapshots with an earlier revision, except `kept`, when none is being taken.

        If no later one is there, it takes one before. Returns the ids of the removed ones.

        Raises:
            Refused: RESOURCE_EXHAUSTED if the disk is full.
        """
        with self._taking:
            newest = self.store.list()[-1:]
            if not newest or newest[0].revision < revision:
                self._take()
            try:
                return self.store.remove_before(revision, kept)
            except SnapshotDiskFull:
                raise later("disk: it is full; older snapshots were not removed") from None

    def stop(self, take_last: bool) -> None:
        """Stops watching. With `take_last` it takes a last snapshot, so that the next start is
        fast.

        It takes none if the newest snapshot has the current revision.
        """
        self._stopped.set()
        self._thread.join()
        if self._retention is not None:
            with suppress(KeyError):
                RETENTION_FAILED.remove(self._engine.name)
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
        while not self._stopped.wait(POLL_S):
            self._check()
            self._retain()
            if self._is_due():
                try:
                    self.take()
                except Exception:
                    logger.exception(
                        "model %s: an automatic snapshot failed; the next one is later", self._engine.name
                    )
                    self._last_events = self._engine.state.events
                    self._last_switch = self._engine.switched
                    self._last_replay_s = self._engine.metrics.replay_s

    def _retain(self) -> None:
        """Deletes what the retention policy no longer keeps, now and then."""
        if self._retention is None or self._engine.leader or time.monotonic() - self._retained < RETENTION_S:
            return
        if self.is_forgetting():
            return
        self._retained = time.monotonic()
        try:
            self._retention.run(self._stopped.is_set)
            RETENTION_FAILED.labels(self._engine.name).set(0)
        except (Refused, LogError, OSError, queue.Empty) as error:
            text = error.text if isinstance(error, Refused) else error
            RETENTION_FAILED.labels(self._engine.name).set(1)
            logger.warning(
                "model %s: its log was not shortened; the next try is later: %s", self._engine.name, text
            )

    def _is_due(self) -> bool:
        every = self._settings.snapshot_every_events
        if not every:
            return False
        state = self._engine.state
        if state.events - self._last_events >= every or self._engine.switched != self._last_switch:
            return True
        rested = time.monotonic() - self._last_taken
        is_long = self._engine.metrics.replay_s - self._last_replay_s >= REPLAY_S_MAX
        return is_long and self._taken_s <= SNAPSHOT_SHARE_MAX * rested

    def _check(self) -> None:
        """Verifies some of the segments that the start did not read."""
        if self._unchecked is None:
            return
        end = time.monotonic() + CHECK_S
        try:
            for _ in self._unchecked:
                if self._stopped.is_set() or time.monotonic() >= end:
                    return
        except (LogError, OSError) as error:
            self._engine.metrics.observe_damage()
            logger.error(
                "model %s: its log cannot be replayed from the beginning. The model is served, because its "
                "snapshot and what follows verify. %s",
                self._engine.name,
                error,
            )
        self._unchecked = None
