"""Follows a log that another process is writing.

The reader is told the last revision that it may use, and the writer has synced that revision. So
the reader needs no rule for what an interrupted write leaves: it stops before it. A pass that meets
a half-written block is repeated, because the revision that was promised must be there.

The next pass begins at the last group of the pass before, since that group can have grown in the
last block (`log/tail.py`). The records that were read already are left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from livefactor_server.log.disk import FileIO
from livefactor_server.log.errors import LogDamaged, LogGap, LogMissing
from livefactor_server.log.format import DATA_START, Record
from livefactor_server.log.recovery import cursor_at
from livefactor_server.log.walk import Walk, list_segments

PASSES_MAX, PASS_REST_S = 100, 0.01
"""Passes that may bring nothing new before the log counts as damaged, and the rest between them."""


class Follower:
    """Reads one log beside its writer. One thread uses it.

    Attributes:
        revision: the last revision that was read.
    """

    def __init__(self, folder: Path, after: int = -1, io: FileIO | None = None) -> None:
        """Begins after the revision `after`. -1 begins with the spec.

        Raises:
            LogMissing: the folder has no log.
            LogDamaged: the first header of a segment is damaged.
        """
        self._io, self._folder = io or FileIO(), folder
        segments = list_segments(self._io, folder)
        if not segments:
            raise LogMissing(f"no log in {folder}")
        index, self._cursor = cursor_at(self._io, segments, max(after, segments[0].first))
        self._segment = segments[index].first
        self._offset = DATA_START
        self.revision = max(after, segments[0].first - 1)

    @property
    def hash_id(self) -> int:
        """The number of the log's hash (`format.HASH_IDS`), once a record was read."""
        return self._cursor.hash_id

    def read(self, until: int) -> Iterator[Sequence[Record]]:
        """Yields the verified records up to revision `until`, which is synced, many at a time.

        Raises:
            LogDamaged: a record up to `until` cannot be read.
            LogGap: a retention policy deleted a record that comes next.
        """
        passes = 0
        while self.revision < until:
            before, trouble = self.revision, None
            try:
                yield from self._pass(until)
            except LogDamaged as damage:
                trouble = damage
            passes = passes + 1 if self.revision == before else 0
            if passes == PASSES_MAX:
                reason = f"revision {until} is synced, but the log ends at revision {self.revision}"
                raise trouble or LogDamaged(self._folder, self._offset, reason)
            if passes:
                time.sleep(PASS_REST_S)

    def _pass(self, until: int) -> Iterator[Sequence[Record]]:
        """Yields what one walk finds, up to revision `until`."""
        segments = list_segments(self._io, self._folder)
        index = next((i for i, each in enumerate(segments) if each.first == self._segment), None)
        if index is None:
            raise LogGap(f"the segment with revision {self._segment} was deleted by a retention policy")
        before = replace(self._cursor)
        walk = Walk(self._io, segments, replace(before), index, self._offset)
        for group in walk.groups():
            first, last = group.records[0], group.records[-1]
            self._segment, self._offset = segments[group.segment].first, group.offset
            self._cursor = before
            # The walk's own cursor can be past this group already.
            before = replace(
                walk.cursor, revision=last.revision, hash=last.hash, incarnation=last.group.incarnation
            )
            new = group.records[max(0, self.revision + 1 - first.revision) : until + 1 - first.revision]
            if len(new):
                self.revision = new[-1].revision
                yield new
            if self.revision >= until:
                return
