"""Retention: deletes the oldest segments of a log, or moves them to an archive.

    snapshots verify ─▶ RETENTION record, synced ─▶ segments copied to the archive ─▶ deleted

A segment goes if the policy does not keep it, and if it lies wholly behind a snapshot that
verifies, has the spec and the rollbacks in force, and has the chain hash that the log has at its
revision. A segment with a batch in quarantine stays, and so do later ones: only the log has it.
The first segment and the last two stay. The policy is a lower bound: at least so much of
the log remains.

A crash at any step leaves a log that opens. The next pass does the rest. `log/gaps.py` says what
the record means.
"""

from __future__ import annotations

import logging
import queue
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.format import Manifest
from livefactor_server.changes import NO_REJECTS, RetentionChange
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.submission import Ack, Submission
from livefactor_server.hosting.retaining.archive import Archive, archive_at, place_of
from livefactor_server.log.errors import LogError
from livefactor_server.log.gaps import Retained
from livefactor_server.log.walk import Segment
from livefactor_server.snapshots.replay import skips
from livefactor_server.snapshots.store import SnapshotNotFound, SnapshotStore
from livefactor_server.statuses import Refused

DAY_US = 86_400 * 1_000_000
ANSWER_S_MAX = 60.0
"""Seconds after which a pass gives up waiting for its record."""

_UNITS = {"r": 1, "d": DAY_US, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_AMOUNT = re.compile(r"(\d+)(r|d|MB|GB|TB)")

logger = logging.getLogger(__name__)


class PolicyError(ValueError):
    """The text of a policy cannot be read."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How much of a log stays at least.

    Attributes:
        amount: revisions, microseconds or bytes.
        unit: "r" for revisions, "d" for time, "B" for bytes.
        archive: the folder or URL that deleted segments are moved to. None deletes them.
    """

    amount: int
    unit: str
    archive: Path | str | None = None

    @classmethod
    def of(cls, text: str, archive: Path | str | None = None) -> Policy:
        """Reads a policy such as 30d, 100GB or 5000000r.

        `archive` is a folder, or the text of a folder or of a URL; "" is none.

        Raises:
            PolicyError: the text is no policy.
            BadArchive: nothing can be archived at the URL.
        """
        found = _AMOUNT.fullmatch(text)
        if found is None or not int(found[1]):
            raise PolicyError(
                f"expected a number with a unit, such as 30d, 100GB or 5000000r (revisions), got {text!r}"
            )
        amount, unit = int(found[1]) * _UNITS[found[2]], found[2]
        if isinstance(archive, str):
            archive = place_of(archive) if archive else None
        return cls(amount, "B" if unit.endswith("B") else unit, archive)


class Retention:
    """Carries out the policy of one model. One thread calls `run`."""

    def __init__(self, engine: Engine, store: SnapshotStore, policy: Policy) -> None:
        self._engine, self._store, self._policy = engine, store, policy
        self._verified: set[str] = set()

    def run(self, is_stopped: Callable[[], bool] = lambda: False) -> int:
        """Deletes what the policy does not keep. Returns the number of deleted segments.

        While a promotion learns the log, nothing is deleted. `is_stopped` is asked before each
        segment is archived; if it is true, nothing is deleted, and the next pass does it.

        Raises:
            Refused: the record was refused.
            OSError: a segment cannot be archived or deleted. The next pass tries again.
        """
        log = self._engine.log
        if log.switches_from:
            # The keeper has not verified the earlier segments yet.
            return 0
        with self._engine.no_promotion() as alone:
            return self._delete(is_stopped) if alone else 0

    def _delete(self, is_stopped: Callable[[], bool]) -> int:
        log = self._engine.log
        segments = self._unwanted()
        snapshot = self._snapshot() if segments else None
        if snapshot is None:
            return 0
        oldest = self._engine.state.quarantine.first
        before = snapshot.revision if oldest is None else min(snapshot.revision, oldest)
        behind = {each.first for each in log.behind(before - 1)}
        segments = [each for each in segments if each.first in behind]
        if not segments:
            return 0
        note = self._recorded(segments, snapshot)
        doomed = log.behind(note.last)
        archive = archive_of(self._policy, self._engine)
        if archive is not None:
            for segment in doomed:
                if is_stopped():
                    return 0
                archive.put(segment.path)
        log.drop(note)
        logger.warning("model %s: %s", self._engine.name, log.gap)
        return len(doomed)

    def _unwanted(self) -> list[Segment]:
        """The oldest segments that the policy does not keep."""
        log, policy = self._engine.log, self._policy
        candidates = log.behind(log.last_revision)
        segments = log.segments
        after = {one.first: other for one, other in pairwise(segments)}
        found, left = [], log.size_bytes
        for segment in candidates:
            left -= segment.end or segment.size
            last = after[segment.first].first - 1
            if policy.unit == "r":
                goes = log.last_revision - last >= policy.amount
            elif policy.unit == "B":
                goes = left >= policy.amount
            else:
                # The records of a segment are older than the first one of the next.
                time_us = next(log.read(last + 1)).time_us
                goes = time.time_ns() // 1000 - time_us >= policy.amount
            if not goes:
                break
            found.append(segment)
        return found

    def _snapshot(self) -> Manifest | None:
        """The oldest snapshot that can stand in for the log. All newer ones verify as well."""
        log, state = self._engine.log, self._engine.state
        found = None
        for info in reversed(self._store.list()):
            if info.spec != state.spec_body or info.lineage != log.lineage:
                break
            if not skips(log, info.revision, state.skipped):
                # A rollback came after it, so the model could not begin with it.
                break
            try:
                if info.snapshot_id not in self._verified:
                    self._store.verify(info.snapshot_id)
                if next(log.read(info.revision)).hash != info.log_hash:
                    break
            except (SnapshotInvalid, SnapshotNotFound, LogError, OSError) as error:
                logger.warning("model %s: its log is kept: %s", self._engine.name, error)
                break
            self._verified.add(info.snapshot_id)
            found = info
        return found

    def _recorded(self, segments: list[Segment], snapshot: Manifest) -> Retained:
        """The RETENTION record for the segments, which is durable. It may be an earlier one."""
        log = self._engine.log
        first, last = log.segments[1].first, _last_of(segments[-1], log.segments)
        note, before = log.note, b""
        if note is not None and log.gap is not None:
            first, before = note.first, note.before
        if note is not None and last <= note.last:
            return note
        following = next(log.read(last + 1))
        before = before or next(log.read(first)).previous
        switches = {revision: body for revision, body in log.switches.items() if revision <= last}
        archived = self._policy.archive is not None
        made = Retained(
            first, last, before, following.previous, snapshot.revision, snapshot.root_hash, archived, switches
        )
        body, replies = made.to_body(), queue.SimpleQueue[Submission]()
        item = Submission(
            RetentionChange(body), body, b"", 0, 0, NO_REJECTS, log.seal, lambda done: replies.put(done)
        )
        self._engine.submit(item)
        result = replies.get(timeout=ANSWER_S_MAX).result
        if isinstance(result, Refused):
            raise result
        assert isinstance(result, Ack)
        return Retained.from_body(body, item.time_us)


def archive_of(policy: Policy | None, engine: Engine) -> Archive | None:
    """The archive of a model. None if nothing is archived."""
    if policy is None or policy.archive is None:
        return None
    return archive_at(policy.archive, f"{engine.name}-{engine.log.lineage}")


def _last_of(segment: Segment, segments: list[Segment]) -> int:
    """The last revision of a segment that another one follows."""
    return min(each.first for each in segments if each.first > segment.first) - 1
