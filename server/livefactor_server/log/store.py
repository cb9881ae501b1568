"""The log of one model: everything that changed it, in order, durable before it is applied.

`Log.append` is the commit protocol, on one screen; `log_format` describes the bytes, `log_walk` how they are
read and judged, `log_recovery` what opening does to a tail that was never synced, `log_segments` how files
are made.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Self

from livefactor_server.log.disk import BLOCK_BYTES, DISK_FULL_ERRORS, FileIO, write_all
from livefactor_server.log.errors import LogDamaged, LogError, LogFailed, LogFull, LogMissing
from livefactor_server.log.format import (
    FLAG_LAST,
    HASH_BYTES,
    HASH_IDS,
    HEADER_BYTES,
    PRODUCER_BYTES_MAX,
    RECORD_ALIGN,
    Buffer,
    Entry,
    GroupBuffer,
    Kind,
    Record,
    Stamp,
    align,
    commitment_of,
    default_hash_name,
    first_previous,
    hash_function,
    hash_name_of,
    new_id,
    pack_headers,
    pack_payload,
    payload_length,
)
from livefactor_server.log.recovery import Contents, Place, note_place, read_contents, trim_tail
from livefactor_server.log.segments import Preallocator, zero_range
from livefactor_server.log.walk import Cursor, Segment, Tail, Walk, list_segments, segment_name

__all__ = [
    "SEGMENT_BYTES",
    "Entry",
    "FileIO",
    "Kind",
    "Log",
    "LogDamaged",
    "LogError",
    "LogFailed",
    "LogFull",
    "LogMissing",
    "Record",
]

SEGMENT_BYTES = 64 << 20
"""Size of a segment file, unless one group needs more."""

FIRST_SEGMENT_BYTES_MAX = 8 << 20
"""The first segment is no longer than this, so that a small model's log is small."""


class Log:
    """One log folder, open for one writer, or for reading alone.

    `append` and `mark` are called by one thread, `read` and the attributes by any thread at any time.

    Attributes:
        last_revision: the last synced revision.
        last_hash: its chain hash, 32 bytes.
        lineage: uuid of the model's history, fixed by the first record.
        spec_body: bytes of the spec, as they were logged.
        hash_name: "blake3" or "sha256".
        tail: in a log opened read-only, the unsynced (or just being written) tail that was left out, or None.
    """

    def __init__(
        self, io: FileIO, folder: Path, contents: Contents, segment_bytes: int, writer: Preallocator | None
    ):
        if segment_bytes < BLOCK_BYTES or segment_bytes % BLOCK_BYTES:
            raise ValueError(f"segment_bytes must be a multiple of {BLOCK_BYTES}, got {segment_bytes}")
        cursor = contents.cursor
        self._io, self._folder, self._segment_bytes = io, folder, segment_bytes
        self._segments, self._places = contents.segments, contents.places
        self._cursor, self._incarnation = cursor, cursor.incarnation
        self.hash_name, self._new_hash = (
            hash_name_of(cursor.hash_id),
            hash_function(hash_name_of(cursor.hash_id)),
        )
        self.lineage, self.spec_body = uuid.UUID(bytes=contents.lineage), contents.spec_body
        self.last_revision, self.last_hash = cursor.revision, cursor.hash
        self.tail: Tail | None = contents.tail
        self._preallocator = writer
        self._fd = -1
        self._buffer = GroupBuffer()
        self._marked = False
        self._lock = Lock()
        self._failed: str | None = None if writer else "it was opened read-only"

    # --------------------------------------------------------------------------------------- opening, closing

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
        """A new log whose first record, of revision `base_revision`, is the spec; durable when this returns.

        Args:
            folder: made if it is missing. Remains of a creation that never finished are removed.
            spec_body: the spec's bytes.
            base_revision: revision of the first record.
            lineage: of the model's history; a new one if None.
            io: the disk; the operating system's if None.
            hash_name: "blake3" or "sha256"; the faster one that is installed if None.
            time_us: time of the first record, microseconds since 1970.
            segment_bytes: size of a segment, a multiple of 4,096.
            ahead: prepare the next segment in a background thread.

        Raises:
            FileExistsError: a log is there.
            LogFull, LogFailed: nothing was created.
        """
        io, folder = io or FileIO(), Path(folder)
        _clear_unfinished(io, folder)
        hash_name = hash_name or default_hash_name()
        new_hash, lineage = hash_function(hash_name), lineage or uuid.uuid4()
        salt = os.urandom(HASH_BYTES)
        entry = Entry(
            Kind.SPEC, base_revision, time_us=time_us, body=spec_body, salt=salt,
            commitment=commitment_of(new_hash, salt, b"", spec_body),
        )  # fmt: skip
        cursor = Cursor(
            base_revision - 1, first_previous(lineage.bytes), 1, new_id(), HASH_IDS[hash_name], new_hash
        )
        io.make_folder(folder)
        io.fsync_dir(folder.parent)
        preallocator = Preallocator(io, folder, ahead)
        log = cls(
            io,
            folder,
            Contents([], cursor, lineage.bytes, bytes(spec_body), None),
            segment_bytes,
            preallocator,
        )
        try:
            log.append([entry])
            log.mark()
        except LogError:
            log.close()
            _clear_unfinished(io, folder)
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
        segment_bytes: int = SEGMENT_BYTES,
        ahead: bool = True,
    ) -> Log:
        """Reads and verifies the whole log, and puts its tail right.

        A tail that was never synced, so never acknowledged, is copied to a `.broken` file and zeroed.
        Read-only: nothing is changed, no lock is taken, a writer may be at work; such a tail is left out and
        described by `tail`.

        Args:
            folder: of the log.
            io: the disk; the operating system's if None.
            progress: called with (bytes read, bytes to read).
            read_only: for auditors, `log show` and independent replay.
            segment_bytes, ahead: as in `create`, for new segments.

        Raises:
            LogMissing: no log there, or its creation never finished.
            LogDamaged: what was synced is not what was written; nothing was changed.
            LogFull: no room for the copy of the tail.
            LogFailed: the tail could not be put right.
        """
        io, folder = io or FileIO(), Path(folder)
        if read_only:
            return cls(io, folder, _read_beside_a_writer(io, folder, progress), segment_bytes, None)
        contents = read_contents(io, folder, progress)
        trim_tail(io, contents)
        contents.tail = None
        preallocator = Preallocator(io, folder, ahead)
        preallocator.discard()
        log = cls(io, folder, contents, segment_bytes, preallocator)
        log._fd = io.open(contents.segments[-1].path)
        log._incarnation += 1
        try:
            # No room for it does no harm: the next group carries the new incarnation, and a tail is durably
            # zero already.
            with contextlib.suppress(LogFull):
                log.mark()
        except LogFailed:
            log.close()
            raise
        return log

    def close(self) -> None:
        """Ends background work and closes the files. What was appended is durable already."""
        with self._lock:
            if self._preallocator is not None:
                self._preallocator.close()
                self._preallocator = None
            if self._fd >= 0:
                self._io.close(self._fd)
                self._fd = -1
            self._failed = self._failed or "it is closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ writing

    def seal(self, salt: bytes, rejects: bytes, body: Buffer | Sequence[Buffer]) -> bytes:
        """The commitment (32 bytes) of a payload, by the log's hash. Any thread; large bodies without GIL."""
        return commitment_of(self._new_hash, salt, rejects, body)

    def append(self, entries: Sequence[Entry]) -> list[bytes]:
        """Writes one commit group durably: when this returns, every entry survives a power cut.

        Args:
            entries: at least one, with consecutive revisions from `last_revision + 1`, and with their
                commitments.

        Returns:
            The chain hash of each entry.

        Raises:
            LogFull: no room; nothing of the group remains, and the next append tries again.
            LogFailed: a write or a sync failed; the log refuses everything from now on.
            ValueError: revisions that do not follow, or a producer id over 64 bytes. Nothing was written.
        """
        if not entries:
            raise ValueError("a commit group needs at least one entry")
        lengths = [payload_length(entry) for entry in entries]
        size = align(sum(align(HEADER_BYTES + length, RECORD_ALIGN) for length in lengths), BLOCK_BYTES)
        with self._lock:
            self._check_usable()
            self._check_entries(entries)
            self._make_room(size)
            hashes = self._pack(entries, lengths, size)
            self._write_and_sync(size)
            self._marked = False
            self._cursor.revision, self._cursor.hash = entries[-1].revision, hashes[-1]
            self.last_hash, self.last_revision = hashes[-1], entries[-1].revision
        return hashes

    def mark(self) -> None:
        """Writes a bare mark durably: damage of any group before it can now be told from an unsynced tail.

        Does nothing if a mark is the last thing in the log. Raises LogFull (nothing remains; no harm done) or
        LogFailed.
        """
        with self._lock:
            self._check_usable()
            if self._marked:
                return
            self._make_room(BLOCK_BYTES)
            self._pack([Entry(Kind.MARK, self.last_revision)], [0], BLOCK_BYTES)
            self._write_and_sync(BLOCK_BYTES)
            self._marked = True

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise LogFailed(f"the log in {self._folder} takes no records: {self._failed}")

    def _check_entries(self, entries: Sequence[Entry]) -> None:
        for revision, entry in enumerate(entries, self.last_revision + 1):
            if entry.revision != revision:
                raise ValueError(f"revision {revision} expected, got {entry.revision}")
            if len(entry.producer) > PRODUCER_BYTES_MAX:
                raise ValueError(
                    f"a producer id has at most {PRODUCER_BYTES_MAX} bytes, got {len(entry.producer)}"
                )

    def _make_room(self, size: int) -> None:
        """The last segment has `size` bytes left, or a new one is begun."""
        segment = self._segments[-1] if self._segments else None
        if segment is not None and segment.end + size <= segment.size:
            return
        new_size, zeroed = max(size, self._segment_bytes), 0
        if segment is None:
            new_size = zeroed = max(size, min(self._segment_bytes, FIRST_SEGMENT_BYTES_MAX))
        path = self._folder / segment_name(self.last_revision + 1)
        assert self._preallocator is not None
        try:
            # A segment that holds no revision yet and is too small for this group has this very name: the
            # new one takes its place.
            self._preallocator.take(path, new_size, zeroed)
            fd = self._io.open(path)
        except (LogFailed, OSError) as error:
            self._failed = str(error)
            raise LogFailed(self._failed) from error
        if self._fd >= 0:
            self._io.close(self._fd)
        self._fd = fd
        if segment is not None and segment.first == self.last_revision + 1:
            self._segments.pop()
        self._segments.append(Segment(path, self.last_revision + 1, self._io.size(path)))

    def _pack(self, entries: Sequence[Entry], lengths: list[int], size: int) -> list[bytes]:
        """Lays the group out in the buffer, every byte of [0, size) written."""
        buffer, segment, new_hash = self._buffer.reserve(size), self._segments[-1], self._new_hash
        stamp = Stamp(
            self._cursor.log_id, self._cursor.hash_id, self._incarnation, segment.end // BLOCK_BYTES,
            segment.size // BLOCK_BYTES, max(self.last_revision, 0),
        )  # fmt: skip
        at, previous, hashes, last = 0, self._cursor.hash, [], len(entries) - 1
        for index, (entry, length) in enumerate(zip(entries, lengths, strict=True)):
            headers, chain = pack_headers(
                entry, stamp, length, FLAG_LAST if index == last else 0, previous, new_hash
            )
            buffer[at : at + HEADER_BYTES] = headers
            end = at + HEADER_BYTES
            if length:
                end = pack_payload(buffer, end, entry)
            at = align(end, RECORD_ALIGN) if index < last else size
            buffer[end:at] = bytes(at - end)
            hashes.append(chain)
            previous = chain
        return hashes

    def _write_and_sync(self, size: int) -> None:
        """The group in the buffer becomes durable behind the last one, or an exception says it did not."""
        segment, preallocator = self._segments[-1], self._preallocator
        assert preallocator is not None
        preallocator.busy = True
        try:
            write_all(self._io, self._fd, self._buffer.view[:size], segment.end)
        except OSError as error:
            self._undo_write(segment, size, error)
        try:
            self._io.fdatasync(self._fd)
        except (
            OSError
        ) as error:  # what the disk holds now is unknown, and a second sync could report a success it is not
            self._failed = f"fdatasync failed: {error}"
            raise LogFailed(self._failed) from error
        finally:
            preallocator.busy = False
        note_place(self._places, self._here(), len(self._segments) - 1, segment.end)
        segment.end += size
        if segment.end >= segment.size // 2:
            preallocator.prepare(self._segment_bytes)

    def _undo_write(self, segment: Segment, size: int, error: OSError) -> None:
        """Raises LogFull once the refused group's ground is durably zero again, LogFailed where it is not."""
        try:
            if error.errno not in DISK_FULL_ERRORS:
                raise error
            zero_range(self._io, self._fd, segment.end, segment.end + size)
        except OSError as second:
            self._failed = f"a write failed: {error}"
            raise LogFailed(self._failed) from second
        raise LogFull(f"no room for a group of {size} bytes in {segment.path}: {error.strerror}") from error

    def _here(self) -> Cursor:
        return Cursor(self.last_revision, self._cursor.hash, self._incarnation)

    # ------------------------------------------------------------------------------------------------ reading

    def read(
        self, from_revision: int | None = None, mapped: bool = True, marks: bool = False
    ) -> Iterator[Record]:
        """The records from `from_revision` (or the spec) to the last one at the call, verified on the way.

        Args:
            from_revision: first revision wanted.
            mapped: bodies are views of the mapped file; otherwise copies.
            marks: bare marks too.

        Raises LogDamaged where the bytes are no longer what was synced.
        """
        first = self._segments[0].first if from_revision is None else from_revision
        with self._lock:
            segments, place = list(self._segments), self._place_of(first)
            stop = (len(segments) - 1, segments[-1].end)
        return self._records(segments, place, stop, first, mapped, marks)

    def _place_of(self, revision: int) -> Place:
        low, high = 0, len(self._places)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._places[middle].revision < revision else (low, middle)
        return self._places[low]

    def _records(
        self,
        segments: list[Segment],
        place: Place,
        stop: tuple[int, int],
        first: int,
        mapped: bool,
        marks: bool,
    ) -> Iterator[Record]:
        cursor = Cursor(
            place.revision,
            place.hash,
            place.incarnation,
            self._cursor.log_id,
            self._cursor.hash_id,
            self._new_hash,
        )
        walk = Walk(self._io, segments, cursor, place.segment, place.offset, first, stop)
        for group in walk.groups():
            for record in group.records():
                if record.revision < first or (record.kind == Kind.MARK and not marks):
                    continue
                if not mapped:
                    record.body = memoryview(bytes(record.body))
                yield record

    @property
    def segments(self) -> list[Segment]:
        """The segment files: path, first revision, size, end of what is written (bytes)."""
        return list(self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes written to the log, padding and marks included."""
        return sum(segment.end for segment in self._segments)

    @property
    def failed(self) -> str | None:
        """Why the log takes no records any more, or None."""
        return self._failed


def _clear_unfinished(io: FileIO, folder: Path) -> None:
    """Removes what a creation that never finished left behind. Raises FileExistsError if a log is there."""
    try:
        read_contents(io, folder)
    except LogMissing:
        for segment in list_segments(io, folder):
            io.unlink(segment.path)
        return
    raise FileExistsError(f"a log is already in {folder}")


def _read_beside_a_writer(io: FileIO, folder: Path, progress: Callable[[int, int], None] | None) -> Contents:
    """Reads a log that may be growing: what looks torn by a group that was just written is read again."""
    seen = None
    while True:
        try:
            return read_contents(io, folder, progress)
        except LogDamaged as damage:
            if seen == (damage.path, damage.offset):
                raise
            seen = damage.path, damage.offset
