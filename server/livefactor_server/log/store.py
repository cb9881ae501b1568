"""The log of one model: the durable, ordered record of every change to it.

A change is durable before it is applied. `Log.append` commits records. `log/format.py` describes
the bytes. `log/writer.py` writes them, and `log/walk.py` reads and verifies them. `log/recovery.py`
removes an unsynced tail, and `log/segments.py` makes the files.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Self

from livefactor_server.log import format as fmt
from livefactor_server.log import gaps, recovery
from livefactor_server.log.acts import ALONE, OPENING, Acts
from livefactor_server.log.disk import FileIO
from livefactor_server.log.errors import LogDamaged, LogError, LogFailed, LogFull, LogGap, LogMissing
from livefactor_server.log.format import DATA_START, Buffer, Entry, Kind, Record, commitment_of
from livefactor_server.log.recovery import Contents, Place
from livefactor_server.log.walk import Cursor, Segment, StreamEnd, Tail, Walk
from livefactor_server.log.writer import StreamWriter, check_entries

__all__ = [
    "SEGMENT_BYTES", "Entry", "FileIO", "Kind", "Log", "LogDamaged", "LogError", "LogFailed", "LogFull",
    "LogGap", "LogMissing", "Record",
]  # fmt: skip

SEGMENT_BYTES = 64 << 20
"""Size of a segment file in bytes. A larger group gets a larger segment."""

SWAP_S_MAX, _SWAP_REST_S = 20.0, 0.005
"""Seconds for which a segment waits for the readers of the log, before it is rewritten."""


class Log:
    """One log folder, open for one writer or for reading only.

    One thread calls `append` and `mark`. Any thread may call `read` and use the attributes at any
    time.

    Attributes:
        last_revision: the last synced revision.
        last_hash: the chain hash of that revision, 32 bytes.
        lineage: the uuid of the model's history, from the first record.
        spec_body: the bytes of the spec in the first record.
        hash_name: "blake3" or "sha256".
        tail: the unsynced tail that a read-only open ignored, or None. An active writer may be
            writing it.
        gap: the revisions that are missing, or None.
        acts: the known records that say what others mean.
    """

    def __init__(self, io: FileIO, folder: Path, contents: Contents, writer: StreamWriter | None) -> None:
        cursor = contents.cursor
        self._io, self._folder = io, folder
        self._segments, self._places, self._end = contents.segments, contents.places, contents.end
        self._cursor = cursor
        self.hash_name = fmt.hash_name_of(cursor.hash_id)
        self._new_hash = fmt.hash_function(self.hash_name)
        self.lineage, self.spec_body = uuid.UUID(bytes=contents.lineage), contents.spec_body
        self.last_revision, self.last_hash = cursor.revision, cursor.hash
        self.tail: Tail | None = contents.tail
        self._writer = writer
        self._marked = bool(contents.segments)
        self._read_from, self._read_from_hash = contents.read_from, contents.read_from_hash
        self.acts, self.gap, self._note = contents.acts, contents.gap, contents.note
        self._switches_from = self._segments[self._read_from].first if self._read_from else 0
        self._lock = Lock()
        # Adding and discarding need no lock, so that a collected reader takes none.
        self._readers, self._swaps = set[object](), 0

    # ----------------------------------------------------------------------------- opening, closing

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        spec_body: bytes,
        base_revision: int = 0,
        lineage: uuid.UUID | None = None,
        io: FileIO | None = None,
        hash_name: str | None = None,
        *,
        time_us: int = 0,
        segment_bytes: int = SEGMENT_BYTES,
        ahead: bool = True,
    ) -> Log:
        """Makes a new log whose first record holds the spec. It is durable when this returns.

        Args:
            folder: the folder of the log; it is made if it is missing. The remains of an unfinished
                creation are removed.
            spec_body: the bytes of the spec.
            base_revision: revision of the first record.
            lineage: uuid of the model's history; None makes a new one.
            io: the disk; None means the files of the operating system.
            hash_name: "blake3" or "sha256"; None means the fastest one that is installed.
            time_us: time of the first record, microseconds since 1970.
            segment_bytes: size of a segment, a multiple of 4,096.
            ahead: make the next segment in a background thread.

        Raises:
            FileExistsError: the folder has a log.
            LogFull, LogFailed: nothing was created.
        """
        io, folder = io or FileIO(), Path(folder)
        recovery.clear_unfinished(io, folder)
        contents, entry = recovery.new_contents(spec_body, base_revision, lineage, hash_name, time_us)
        io.make_folder(folder)
        io.fsync_dir(folder.parent)
        log = cls(io, folder, contents, StreamWriter(io, folder, contents, segment_bytes, ahead))
        try:
            log.append([entry])
            log.mark()
        except LogError:
            log.close()
            recovery.clear_unfinished(io, folder)
            raise
        return log

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        io: FileIO | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        read_only: bool = False,
        since: int = 0,
        segment_bytes: int = SEGMENT_BYTES,
        ahead: bool = True,
    ) -> Log:
        """Reads and verifies the log, and removes its unsynced tail.

        A tail that was never synced was never acknowledged. It is copied to a `.broken` file and
        overwritten with zeros. With `read_only`, nothing is changed, no lock is taken, and a
        writer may be active. The tail is then ignored, and `tail` describes it.

        Args:
            folder: the folder of the log.
            io: the disk; None means the files of the operating system.
            progress: called with (bytes read, bytes to read).
            read_only: open for reading only, as auditors, `log show` and replay do.
            since: the revision of a snapshot. The segments before the one with this revision are
                not read. `check_earlier` verifies them later. The caller compares the snapshot's
                chain hash with the record's, which proves the chain that leads there.
            segment_bytes: size of a new segment, a multiple of 4,096.
            ahead: make the next segment in a background thread.

        Raises:
            LogMissing: the folder has no log, or its creation did not finish.
            LogDamaged: synced bytes differ from what was written. Nothing was changed.
            LogFull: the disk has no room for the copy of the tail.
            LogFailed: the tail could not be removed.
        """
        io, folder = io or FileIO(), Path(folder)
        if read_only:
            return cls(io, folder, recovery.read_beside_a_writer(io, folder, progress, since), None)
        contents = recovery.read_contents(io, folder, progress, since)
        recovery.trim_tail(io, contents)
        return cls(io, folder, contents, StreamWriter(io, folder, contents, segment_bytes, ahead))

    def close(self) -> None:
        """Ends the background thread and closes the files."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------- writing

    def seal(self, salt: bytes, rejects: bytes, body: Buffer | Sequence[Buffer]) -> bytes:
        """The commitment (32 bytes) of a payload under the log's hash.

        Any thread may call it. Large bodies release the GIL.
        """
        return commitment_of(self._new_hash, salt, rejects, body)

    def append(self, entries: Sequence[Entry]) -> list[bytes]:
        """Writes the entries as one commit. When this returns, every entry is durable.

        Args:
            entries: at least one. Their revisions are consecutive and start at
                `last_revision + 1`, and their commitments are set.

        Returns:
            The chain hash (32 bytes) of each entry.

        Raises:
            LogFull: the disk has no room. Nothing of the group remains. The next append tries
                again.
            LogFailed: a write or a sync failed. The log refuses all further records.
            ValueError: there is no entry, the revisions are not consecutive, a producer id has more
                than 64 bytes, a salt does not have 16 bytes, or a record that must be alone
                (`acts.ALONE`) is not. Nothing was written.
        """
        if not entries:
            raise ValueError("a commit group needs at least one entry")
        with self._lock:
            writer = self._usable_writer()
            check_entries(entries, self.last_revision)
            cursor = self._cursor
            before = Cursor(cursor.revision, cursor.hash, cursor.incarnation)
            hashes, place = writer.write(entries, entries[0].kind in OPENING)
            if place is not None:
                recovery.note_place(self._places, before, *place)
            self._end, self._marked = writer.end, False
            if entries[0].kind in ALONE:
                self.acts = self.acts.with_entry(entries[0])
            cursor.revision, cursor.hash = entries[-1].revision, hashes[-1]
            self.last_hash, self.last_revision = hashes[-1], entries[-1].revision
        return hashes

    def mark(self) -> None:
        """Writes a tail slot that shows that everything in the log was synced.

        From then on, damage to the last group can be told from an unsynced tail. The call does
        nothing if the log is marked already.

        Raises:
            LogFull: the disk has no room. Nothing of the mark remains, and the log still works.
            LogFailed: a write or a sync failed. The log refuses all further records.
        """
        with self._lock:
            writer = self._usable_writer()
            if not self._marked:
                writer.mark()
                self._end, self._marked = writer.end, True

    @property
    def note(self) -> gaps.Retained | None:
        """The last RETENTION record that was read or dropped segments. None if there is none."""
        return self._note

    def behind(self, revision: int) -> list[Segment]:
        """The segments whose records are all up to `revision`, oldest first.

        The first segment and the last two are never among them: one has the spec, and readers know
        where the others end.
        """
        with self._lock:
            segments = list(self._segments)
        return [segment for segment, after in pairwise(segments[1:-1]) if after.first - 1 <= revision]

    def drop(self, note: gaps.Retained) -> None:
        """Deletes the segments that a RETENTION record of this log names.

        After a crash some of them are left, and nothing else has changed.

        Raises:
            OSError: a file cannot be deleted.
        """
        doomed = self.behind(note.last)
        count = len(doomed)
        with self._lock:
            self._note, self.gap = note, gaps.Gap(note.first, note.last, note)
            del self._segments[1 : 1 + count]
            self._places = [
                replace(place, segment=place.segment - count if place.segment else 0)
                for place in self._places
                if not 1 <= place.segment <= count
            ]
            if 0 < self._read_from <= count:
                self._read_from, self._read_from_hash = 1, note.hash
            elif self._read_from:
                self._read_from -= count
        for segment in doomed:
            self._io.unlink(segment.path)
        self._io.fsync_dir(self._folder)

    def put_back(self, segments: Sequence[Segment]) -> None:
        """Takes deleted segments, whose files are in the folder again, into the log.

        They are verified as `check_earlier` does it. All of the log was read before. Nobody drops
        segments meanwhile.

        Raises:
            LogDamaged, LogGap: they do not fit, or do not suffice. The log is as it was.
        """
        with self._lock:
            before = list(self._segments), self._places, self.gap, self._read_from, self._read_from_hash
            behind = next(each.first for each in before[0] if self.gap and each.first > self.gap.last)
            # The writer has the same list.
            self._segments[:] = sorted([*before[0], *segments], key=lambda each: each.first)
            self._places = recovery.with_more_before(self._places, len(segments))
            self._read_from, cursor = recovery.cursor_at(self._io, self._segments, behind)
            self._read_from_hash, self._switches_from = cursor.hash, behind
        try:
            for _ in self.check_earlier():
                pass
            if self.gap is not None:
                raise LogGap(str(self.gap))
        except BaseException:
            with self._lock:
                self._segments[:], self._places, self.gap, self._read_from, self._read_from_hash = before
                self._switches_from = 0
            raise

    def swap(self, first: int, size: int, end: int, do: Callable[[], None]) -> None:
        """Calls `do`, which replaces the segment with revision `first`, while nobody reads the log.

        The new file has the same records. It has `size` bytes, and its stream ends at byte `end`.

        Raises:
            LogError: the log was read all the time.
        """
        until = time.monotonic() + SWAP_S_MAX
        while time.monotonic() < until:
            with self._lock:
                if not self._readers:
                    do()
                    at = next(i for i, each in enumerate(self._segments) if each.first == first)
                    self._segments[at] = replace(self._segments[at], size=size, end=end)
                    self._places = recovery.with_one_place(self._places, at)
                    self._swaps += 1
                    return
            time.sleep(_SWAP_REST_S)
        raise LogError(
            f"the segment with revision {first} cannot be rewritten, because the log is being read"
        )

    def forget(self, revision: int) -> None:
        """Notes that the body of the ERASE record of a revision was erased."""
        with self._lock:
            self.acts = self.acts.with_one(Kind.ERASE, revision, b"")

    def _usable_writer(self) -> StreamWriter:
        if self._writer is None or self._writer.failed is not None:
            raise LogFailed(f"the log in {self._folder} accepts no records: {self.failed}")
        return self._writer

    # -------------------------------------------------------------------------------------- reading

    def read(self, from_revision: int | None = None, mapped: bool = True) -> Iterator[Record]:
        """Yields the verified records from `from_revision` on.

        The last one is the newest record at the time of the call.

        Args:
            from_revision: the first revision to read; None means the spec.
            mapped: the bodies are views of the mapped file; otherwise they are copies.

        Raises:
            LogDamaged: synced bytes differ from what was written.
            LogGap: a retention policy deleted some of the records.
        """
        for records in self.read_groups(from_revision):
            for record in records:
                if not mapped:
                    record.body = memoryview(bytes(record.body))
                yield record

    def read_groups(self, from_revision: int | None = None) -> Iterator[Sequence[Record]]:
        """Yields the verified records as `read` does, many at a time.

        The records of small groups come as `columns.Columns`.

        It raises as `read` does.
        """
        first = self._segments[0].first if from_revision is None else from_revision
        with self._lock:
            segments, place = list(self._segments), self._place_of(first)
            stop, swaps = (len(segments) - 1, self._end), self._swaps
        return self._groups(segments, place, stop, first, swaps)

    def check_earlier(self) -> Iterator[int]:
        """Verifies the segments that opening did not read, some groups at a time.

        Yields the bytes that were read so far. It yields nothing if opening read the whole log.

        Raises:
            LogDamaged: synced bytes differ from what was written.
        """
        count = self._read_from
        if not count:
            return
        segments, passed, acts = self._segments, 0, Acts()
        holes, note = list[gaps.Hole](), self._note
        for group in recovery.earlier_groups(self._io, segments, count, self._read_from_hash, holes):
            passed += group.end - group.offset
            acts.note(group.records)
            note = self._note or gaps.last_note(group.records) or note
            yield passed
        gap = gaps.check(holes, note, [segment.path for segment in segments])
        with self._lock:
            noted = Acts(dict(note.switches)) if gap and note else Acts()
            self.acts = self.acts.after(acts.after(noted))
            self._switches_from, self.gap, self._note = 0, gap, note

    def _place_of(self, revision: int) -> Place:
        if self._read_from and revision < self._segments[self._read_from].first:
            index, cursor = recovery.cursor_at(self._io, self._segments, revision)
            if index:
                return Place(cursor.revision, cursor.hash, 0, index, DATA_START)
        low, high = 0, len(self._places)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._places[middle].revision < revision else (low, middle)
        return self._places[low]

    def _groups(
        self, segments: list[Segment], place: Place, stop: tuple[int, StreamEnd], first: int, swaps: int
    ) -> Iterator[Sequence[Record]]:
        reader = object()
        self._readers.add(reader)
        with self._lock:
            if swaps != self._swaps:
                end = segments[stop[0]].first
                segments, place = (
                    [each for each in self._segments if each.first <= end],
                    self._place_of(first),
                )
                stop = len(segments) - 1, stop[1]
        cursor = Cursor(
            place.revision,
            place.hash,
            place.incarnation,
            self._cursor.log_id,
            self._cursor.hash_id,
            self._new_hash,
        )
        walk = Walk(self._io, segments, cursor, place.segment, place.offset, stop)
        try:
            for group in walk.groups():
                revision = group.records[0].revision
                if revision + len(group.records) > first:
                    yield group.records[max(first - revision, 0) :]
        except LogGap:
            if self.gap is None:
                raise
            # The log knows why they are missing.
            raise LogGap(str(self.gap)) from None
        finally:
            self._readers.discard(reader)

    @property
    def first_revision(self) -> int:
        """The revision of the first record, which holds the spec. Above 0 in a restored model."""
        return self._segments[0].first

    @property
    def lacks(self) -> str:
        """Which events of the model's history cannot be learned again from the log; "" for none."""
        if self.first_revision:
            return (
                f"it began with a snapshot at revision {self.first_revision}; the events before it are gone"
            )
        return "" if self.gap is None else str(self.gap)

    @property
    def switches(self) -> Mapping[int, bytes]:
        """The known SWITCH records, revision -> body: all those from `switches_from` on."""
        return self.acts.switches

    @property
    def rollbacks(self) -> Mapping[int, bytes]:
        """The known ROLLBACK records, as `switches`."""
        return self.acts.rollbacks

    @property
    def switches_from(self) -> int:
        """The first revision of the part of the log whose SWITCH records are known.

        It is 0 if the whole log was read, when it was opened or later by `check_earlier`.
        """
        return self._switches_from

    def spec_at(self, revision: int) -> bytes:
        """The bytes of the spec in force at `revision`: of the last SWITCH record, else of the log.

        Of a log that was not read from its beginning it is right from the first known switch on.
        """
        return self.acts.spec_at(revision) or self.spec_body

    @property
    def segments(self) -> list[Segment]:
        """The segment files. Sizes and ends are in bytes."""
        return list(self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes of the log, including padding and tail slots."""
        return sum(segment.end or segment.size for segment in self._segments)

    @property
    def failed(self) -> str | None:
        """The reason why the log accepts no more records, or None."""
        return "it was opened read-only" if self._writer is None else self._writer.failed
