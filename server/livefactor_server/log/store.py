"""The log of one model: the durable, ordered record of every change to it.

A change is durable before it is applied. `Log.append` is the commit protocol. `log/format.py`
describes the bytes, `log/walk.py` how they are read and verified, `log/recovery.py` what happens to
an unsynced tail, and `log/segments.py` how the files are made.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import NoReturn, Self

from livefactor_server.log.disk import BLOCK_BYTES, DISK_FULL_ERRORS, FileIO, write_all
from livefactor_server.log.errors import LogDamaged, LogError, LogFailed, LogFull, LogMissing
from livefactor_server.log.format import (
    DATA_START,
    GROUP_ALIGN,
    HASH_IDS,
    PRODUCER_BYTES_MAX,
    SALT_BYTES,
    Buffer,
    Entry,
    GroupBuffer,
    Kind,
    PackedGroup,
    Record,
    Stamp,
    align,
    commitment_of,
    default_hash_name,
    first_previous,
    hash_function,
    hash_name_of,
    lay_out,
    new_id,
    pack_group,
)
from livefactor_server.log.recovery import (
    Contents,
    Place,
    note_place,
    read_contents,
    trim_tail,
    write_slot,
)
from livefactor_server.log.segments import Preallocator, zero_range
from livefactor_server.log.tail import CONTENT_BYTES_MAX, SLOTS, Slot, pack_slot, place_of
from livefactor_server.log.walk import (
    Cursor,
    Segment,
    StreamEnd,
    Tail,
    Walk,
    list_segments,
    segment_name,
)

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
"""Size of a segment file in bytes. A larger group gets a larger segment."""

FIRST_SEGMENT_BYTES_MAX = 8 << 20
"""Maximum size of the first segment in bytes, so that the log of a small model is small."""

SEGMENT_BYTES_MIN = DATA_START + BLOCK_BYTES
"""Minimum size of a segment in bytes: the tail slots, and one block."""

PADDED_FROM_BYTES = 64 << 10
"""A group of this size or more fills its last block with zeros, which saves the write of a tail slot."""


class Log:
    """One log folder, open for one writer or for reading only.

    One thread calls `append` and `mark`. Any thread may call `read` and use the attributes at any
    time.

    Attributes:
        last_revision: the last synced revision.
        last_hash: the chain hash of that revision, 32 bytes.
        lineage: the uuid of the model's history, from the first record.
        spec_body: the bytes of the spec in the log.
        hash_name: "blake3" or "sha256".
        tail: the unsynced tail that a read-only open ignored, or None. A writer may be writing it
            now.
    """

    def __init__(
        self, io: FileIO, folder: Path, contents: Contents, segment_bytes: int, writer: Preallocator | None
    ):
        if segment_bytes < SEGMENT_BYTES_MIN or segment_bytes % BLOCK_BYTES:
            raise ValueError(
                f"segment_bytes must be a multiple of {BLOCK_BYTES} and at least {SEGMENT_BYTES_MIN}, "
                f"got {segment_bytes}"
            )
        cursor = contents.cursor
        self._io, self._folder, self._segment_bytes = io, folder, segment_bytes
        self._segments, self._places = contents.segments, contents.places
        self._cursor, self._incarnation = cursor, cursor.incarnation
        self.hash_name = hash_name_of(cursor.hash_id)
        self._new_hash = hash_function(self.hash_name)
        self.lineage, self.spec_body = uuid.UUID(bytes=contents.lineage), contents.spec_body
        self.last_revision, self.last_hash = cursor.revision, cursor.hash
        self.tail: Tail | None = contents.tail
        self._preallocator = writer
        self._fd = -1
        self._buffer, self._slot_buffer = GroupBuffer(), GroupBuffer().reserve(BLOCK_BYTES)
        self._end = contents.end
        self._marked = False
        self._lock = Lock()
        self._failed: str | None = None if writer else "it was opened read-only"

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
        _clear_unfinished(io, folder)
        hash_name = hash_name or default_hash_name()
        new_hash, lineage = hash_function(hash_name), lineage or uuid.uuid4()
        salt = os.urandom(SALT_BYTES)
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
        end = StreamEnd(DATA_START, b"", 1)
        contents = Contents([], cursor, lineage.bytes, bytes(spec_body), end, None)
        log = cls(io, folder, contents, segment_bytes, preallocator)
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
        """Reads and verifies the whole log, and removes its unsynced tail.

        A tail that was never synced was never acknowledged. It is copied to a `.broken` file and
        overwritten with zeros. With `read_only`, nothing is changed and no lock is taken, and a
        writer may be active; such a tail is ignored and described by `tail`.

        Args:
            folder: the folder of the log.
            io: the disk; None means the files of the operating system.
            progress: called with (bytes read, bytes to read).
            read_only: for auditors, `log show` and independent replay.
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
            return cls(io, folder, _read_beside_a_writer(io, folder, progress), segment_bytes, None)
        contents = read_contents(io, folder, progress)
        trim_tail(io, contents)
        preallocator = Preallocator(io, folder, ahead)
        preallocator.discard()
        log = cls(io, folder, contents, segment_bytes, preallocator)
        log._fd = io.open(contents.segments[-1].path)
        log._marked = True
        return log

    def close(self) -> None:
        """Ends the background thread and closes the files. Appended records are durable already."""
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

    # -------------------------------------------------------------------------------------- writing

    def seal(self, salt: bytes, rejects: bytes, body: Buffer | Sequence[Buffer]) -> bytes:
        """The commitment (32 bytes) of a payload under the log's hash.

        Any thread may call it. Large bodies release the GIL.
        """
        return commitment_of(self._new_hash, salt, rejects, body)

    def append(self, entries: Sequence[Entry]) -> list[bytes]:
        """Writes one commit group. When this returns, every entry survives a power cut.

        Args:
            entries: one or more, with consecutive revisions from `last_revision + 1` on and with
                their commitments.

        Returns:
            The chain hash (32 bytes) of each entry.

        Raises:
            LogFull: the disk has no room. Nothing of the group remains. The next append tries
                again.
            LogFailed: a write or a sync failed. The log refuses all further records.
            ValueError: the revisions are not consecutive, or a producer id has more than 64 bytes.
                Nothing was written.
        """
        if not entries:
            raise ValueError("a commit group needs at least one entry")
        with self._lock:
            self._check_usable()
            self._check_entries(entries)
            cursor = self._cursor
            group = pack_group(entries, cursor.hash, cursor.hash_id, self._new_hash)
            size = self._make_room(group)
            self._write_and_sync(group, size)
            self._marked = False
            cursor.revision, cursor.hash = entries[-1].revision, group.hashes[-1]
            self.last_hash, self.last_revision = group.hashes[-1], entries[-1].revision
        return group.hashes

    def mark(self) -> None:
        """Writes a tail slot which says that everything in the log was synced.

        After it, damage to the last group differs from an unsynced tail. It does nothing if the log
        ends with a mark.

        Raises:
            LogFull: the disk has no room. Nothing of the mark remains, and the log still works.
            LogFailed: a write or a sync failed. The log refuses all further records.
        """
        with self._lock:
            self._check_usable()
            if not self._marked:
                segment = self._segments[-1]
                try:
                    self._write_slot(self._end, segment.end)
                except OSError as error:
                    self._undo_write(segment, 0, error)
                self._sync()
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
            if len(entry.salt) != SALT_BYTES:
                raise ValueError(f"a salt has {SALT_BYTES} bytes, got {len(entry.salt)}")

    def _padded_size(self, group: PackedGroup, used: int) -> int:
        """Bytes of the group with its padding, behind `used` bytes of its first block."""
        size = align(group.size, GROUP_ALIGN)
        rest = (used + size) % BLOCK_BYTES
        # The first group of a log stands in its place: so a log whose tail slots are lost is damaged,
        # and not one that was never completely created.
        if len(self._segments) == 0 or size >= PADDED_FROM_BYTES or rest > CONTENT_BYTES_MAX:
            size += -(used + size) % BLOCK_BYTES
        return size

    def _make_room(self, group: PackedGroup) -> int:
        """The bytes that the group takes. A new segment is started if the last one has no room."""
        segment = self._segments[-1] if self._segments else None
        if segment is not None:
            size = self._padded_size(group, len(self._end.content))
            if align(segment.end + size, BLOCK_BYTES) <= segment.size:
                return size
            self._close_segment()
        size = self._padded_size(group, 0)
        new_size, zeroed = max(DATA_START + align(size, BLOCK_BYTES), self._segment_bytes), 0
        if segment is None:
            new_size = zeroed = max(
                DATA_START + align(size, BLOCK_BYTES), min(self._segment_bytes, FIRST_SEGMENT_BYTES_MAX)
            )
        path = self._folder / segment_name(self.last_revision + 1)
        assert self._preallocator is not None
        try:
            # A segment without a revision that is too small for this group has the same name. The
            # new segment replaces it.
            self._preallocator.take(path, new_size, zeroed)
            fd = self._io.open(path)
            made = Segment(path, self.last_revision + 1, self._io.size(path))
            end = StreamEnd(DATA_START, b"", 1)
            for _ in range(SLOTS):
                write_slot(self._io, fd, self._slot(end, made, DATA_START))
                end = end._replace(counter=end.counter + 1)
        except (LogFailed, OSError) as error:
            self._failed = str(error)
            raise LogFailed(self._failed) from error
        if self._fd >= 0:
            self._io.close(self._fd)
        self._fd, self._end = fd, end
        if segment is not None and segment.first == self.last_revision + 1:
            self._segments.pop()
        self._segments.append(made)
        return size

    def _close_segment(self) -> None:
        """Writes the last block to its place: from now on nobody reads the slots of this segment."""
        content = self._end.content
        if not content:
            return
        block = self._buffer.reserve(BLOCK_BYTES)
        block[:BLOCK_BYTES] = content.ljust(BLOCK_BYTES, b"\0")
        try:
            write_all(self._io, self._fd, block[:BLOCK_BYTES], self._end.base)
        except OSError as error:
            self._undo_write(self._segments[-1], BLOCK_BYTES, error)
        self._sync()

    def _write_and_sync(self, group: PackedGroup, size: int) -> None:
        """Makes the group durable behind the last one.

        Its whole blocks go to their place, what is left of it to a tail slot. Raises LogFull or
        LogFailed if it is not durable.
        """
        segment, preallocator, end = self._segments[-1], self._preallocator, self._end
        assert preallocator is not None
        used = len(end.content)
        total = used + size
        whole = total - total % BLOCK_BYTES
        stamp = Stamp(
            self._cursor.log_id, self._cursor.hash_id, self._incarnation, end.end,
            segment.size // BLOCK_BYTES, max(self.last_revision, 0), self._cursor.hash,
        )  # fmt: skip
        buffer = self._buffer.reserve(total)
        buffer[:used] = end.content
        lay_out(buffer, used, group, stamp, size)
        after = StreamEnd(end.base + whole, bytes(buffer[whole:total]), end.counter)
        preallocator.busy = True
        try:
            if whole:
                write_all(self._io, self._fd, buffer[:whole], end.base)
            if after.content:
                self._write_slot(after, end.end)
        except OSError as error:
            self._undo_write(segment, whole, error)
        try:
            self._sync()
        finally:
            preallocator.busy = False
        note_place(self._places, self._here(), len(self._segments) - 1, end.end)
        segment.end = after.end
        self._end = after._replace(counter=self._end.counter)
        if segment.end >= segment.size // 2:
            preallocator.prepare(self._segment_bytes)

    def _slot(self, end: StreamEnd, segment: Segment, synced: int) -> Slot:
        return Slot(
            end.counter, end.base, synced, self._incarnation, segment.size // BLOCK_BYTES,
            self._cursor.log_id, end.content,
        )  # fmt: skip

    def _write_slot(self, end: StreamEnd, synced: int) -> None:
        """Writes a tail slot, which the next sync makes durable. Raises OSError."""
        pack_slot(self._slot_buffer, self._slot(end, self._segments[-1], synced))
        write_all(self._io, self._fd, self._slot_buffer, place_of(end.counter))
        self._end = self._end._replace(counter=end.counter + 1)

    def _sync(self) -> None:
        try:
            self._io.fdatasync(self._fd)
        except OSError as error:
            # The contents of the disk are unknown now. A second sync could report a false success.
            self._failed = f"fdatasync failed: {error}"
            raise LogFailed(self._failed) from error

    def _undo_write(self, segment: Segment, size: int, error: OSError) -> NoReturn:
        """Overwrites the place of the refused blocks with zeros, and the refused tail slot with the last one.

        Raises LogFull if that worked, otherwise LogFailed.
        """
        try:
            if error.errno not in DISK_FULL_ERRORS:
                raise error
            self._write_slot(self._end, self._end.end)
            self._io.fdatasync(self._fd)
            if size:
                zero_range(self._io, self._fd, self._end.base, self._end.base + size)
        except OSError as second:
            self._failed = f"a write failed: {error}"
            raise LogFailed(self._failed) from second
        raise LogFull(f"no room for a group in {segment.path}: {error.strerror}") from error

    def _here(self) -> Cursor:
        return Cursor(self.last_revision, self._cursor.hash, self._incarnation)

    # -------------------------------------------------------------------------------------- reading

    def read(self, from_revision: int | None = None, mapped: bool = True) -> Iterator[Record]:
        """Yields the records from `from_revision` to the last one at the time of the call,
        verified.

        Args:
            from_revision: the first revision to read; None means the spec.
            mapped: the bodies are views of the mapped file; otherwise they are copies.

        Raises:
            LogDamaged: synced bytes differ from what was written.
        """
        first = self._segments[0].first if from_revision is None else from_revision
        with self._lock:
            segments, place = list(self._segments), self._place_of(first)
            stop = len(segments) - 1, self._end
        return self._records(segments, place, stop, first, mapped)

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
        stop: tuple[int, StreamEnd],
        first: int,
        mapped: bool,
    ) -> Iterator[Record]:
        cursor = Cursor(
            place.revision,
            place.hash,
            place.incarnation,
            self._cursor.log_id,
            self._cursor.hash_id,
            self._new_hash,
        )
        walk = Walk(self._io, segments, cursor, place.segment, place.offset, stop)
        for group in walk.groups():
            for record in group.records:
                if record.revision < first:
                    continue
                if not mapped:
                    record.body = memoryview(bytes(record.body))
                yield record

    @property
    def segments(self) -> list[Segment]:
        """The segment files. Sizes and ends are in bytes."""
        return list(self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes in the log, with padding and tail slots."""
        return sum(segment.end for segment in self._segments)

    @property
    def failed(self) -> str | None:
        """Why the log takes no more records, or None."""
        return self._failed


def _clear_unfinished(io: FileIO, folder: Path) -> None:
    """Removes the remains of an unfinished creation.

    Raises FileExistsError if the folder has a log.
    """
    try:
        read_contents(io, folder)
    except LogMissing:
        for segment in list_segments(io, folder):
            io.unlink(segment.path)
        return
    raise FileExistsError(f"{folder} already has a log")


def _read_beside_a_writer(io: FileIO, folder: Path, progress: Callable[[int, int], None] | None) -> Contents:
    """Reads a log that a writer may be extending.

    If a group looks torn, the log is read once more, since the group may have been complete a
    moment later.
    """
    seen = None
    while True:
        try:
            return read_contents(io, folder, progress)
        except LogDamaged as damage:
            if seen == (damage.path, damage.offset):
                raise
            seen = damage.path, damage.offset
