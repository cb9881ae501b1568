"""Writes the stream of a log: full blocks to their place, the last one to a tail slot (`tail.py`).

`StreamWriter.write` commits records. When it returns, they are durable.

A tail slot is written whole at each commit. So a group that lies in the last block can still grow:
the next slot holds it again, with the new records. The other slot holds it as it was acknowledged
before. Many small commits thereby share one group header. When the group fills the block, the next
commit starts a new group. A group that an earlier start of the server wrote never grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from livefactor_server.log.acts import ALONE
from livefactor_server.log.disk import BLOCK_BYTES, DISK_FULL_ERRORS, FileIO, write_all
from livefactor_server.log.errors import LogFailed, LogFull
from livefactor_server.log.format import (
    DATA_START,
    GROUP_ALIGN,
    PRODUCER_BYTES_MAX,
    SALT_BYTES,
    Entry,
    Kind,
    align,
)
from livefactor_server.log.packing import GroupBuffer, PackedGroup, Stamp, can_grow, lay_out, pack_group
from livefactor_server.log.recovery import Contents
from livefactor_server.log.sealing import SEAL_BYTES, seal_of
from livefactor_server.log.segments import Preallocator, zero_range
from livefactor_server.log.tail import CONTENT_BYTES_MAX, SLOTS, Slot, write_slot
from livefactor_server.log.walk import Segment, StreamEnd, segment_name

FIRST_SEGMENT_BYTES_MAX = 8 << 20
"""Maximum size of the first segment in bytes, so that the log of a small model is small."""

SEGMENT_BYTES_MIN = DATA_START + BLOCK_BYTES
"""Minimum size of a segment in bytes: the tail slots and one block."""

PADDED_FROM_BYTES = 64 << 10
"""A group of at least this size is padded to a full block, which saves the slot write."""


class StreamWriter:
    """The segment files of a log, open for writing. One thread uses it at a time.

    Attributes:
        segments: all segments, in order.
        end: where the stream of the last segment ends.
        failed: the reason why nothing more can be written, or None.
    """

    def __init__(self, io: FileIO, folder: Path, contents: Contents, segment_bytes: int, ahead: bool) -> None:
        """Opens the last segment for writing.

        Args:
            io: the disk.
            folder: the folder of the log.
            contents: what is in the log. The log moves its cursor along the chain.
            segment_bytes: size of a new segment, a multiple of 4,096.
            ahead: make the next segment in a background thread.

        Raises:
            OSError: the segment cannot be opened.
            ValueError: `segment_bytes` is too small or no multiple of 4,096.
        """
        if segment_bytes < SEGMENT_BYTES_MIN or segment_bytes % BLOCK_BYTES:
            raise ValueError(
                f"segment_bytes must be a multiple of {BLOCK_BYTES} and at least {SEGMENT_BYTES_MIN}, "
                f"got {segment_bytes}"
            )
        self._io, self._folder, self._segment_bytes = io, folder, segment_bytes
        self._cursor, self._incarnation = contents.cursor, contents.cursor.incarnation
        self._seal = seal_of(self._cursor.log_id)
        self._seal_bytes = SEAL_BYTES if self._seal is not None else 0
        self._buffer, self._slot_buffer = GroupBuffer(), GroupBuffer().reserve(BLOCK_BYTES)
        self._preallocator = Preallocator(io, folder, ahead)
        self._preallocator.discard()
        self.segments, self.end = contents.segments, contents.end
        self._open: PackedGroup | None = None
        self._open_at = 0
        self.failed: str | None = None
        self._fd = io.open(self.segments[-1].path) if self.segments else -1

    def close(self) -> None:
        """Ends the background thread and closes the files."""
        self._preallocator.close()
        if self._fd >= 0:
            self._io.close(self._fd)
            self._fd = -1
        self.failed = self.failed or "it is closed"

    def write(
        self, entries: Sequence[Entry], opens: bool = False
    ) -> tuple[list[bytes], tuple[int, int] | None]:
        """Makes the records durable after the last one. If it `opens`, they begin a segment.

        Returns:
            The chain hash of each record. If the records began a group, also the index of its
            segment and the byte of the file at which it starts; if a group grew, None.

        Raises:
            LogFull: the disk has no room. Nothing of the records remains.
            LogFailed: a write or a sync failed. Nothing more can be written.
            ValueError: the group has over 255 producers, or a record has 4 GiB or more.
        """
        cursor, grown = self._cursor, None if opens else self._open
        assert cursor.new_hash is not None
        if grown is not None and not can_grow(
            grown, entries, self.end.base + CONTENT_BYTES_MAX - self._open_at
        ):
            grown = None
        group, hashes = pack_group(
            entries, cursor.hash, cursor.hash_id, cursor.new_hash, grown, self._seal_bytes
        )
        if grown is not None:
            start, size = self._open_at, align(group.size, GROUP_ALIGN)
        else:
            size = self._make_room(group, opens)
            start = self.end.end
        self._write_and_sync(group, start, size)
        # It can grow if it lies in the last block. The erasures of a group stand behind all heads.
        may_grow = start >= self.end.base and self.end.content
        self._open = group if may_grow and not any(entry.erasure for entry in entries) else None
        self._open_at = start
        return hashes, None if grown is not None else (len(self.segments) - 1, start)

    def mark(self) -> None:
        """Writes a tail slot that shows that everything in the log was synced.

        It raises the same errors as `write`.
        """
        segment = self.segments[-1]
        try:
            self._write_slot(self.end.base, self.end.content, segment.end)
        except OSError as error:
            self._undo_write(segment, 0, error)
        self._sync()

    def _padded_size(self, group: PackedGroup, used: int) -> int:
        """Bytes of the group with its padding, if `used` bytes of its first block are taken."""
        size = align(group.size, GROUP_ALIGN)
        rest = (used + size) % BLOCK_BYTES
        # The first group of a log is padded to full blocks and written to its place. So a log that
        # lost both tail slots counts as damaged, and not as an unfinished creation.
        if len(self.segments) == 0 or size >= PADDED_FROM_BYTES or rest > CONTENT_BYTES_MAX:
            size += -(used + size) % BLOCK_BYTES
        return size

    def _make_room(self, group: PackedGroup, opens: bool) -> int:
        """Starts a new segment if the last one has no room. Returns the group's padded size.

        If the group `opens`, it starts one unless the last one is empty.
        """
        segment = self.segments[-1] if self.segments else None
        if segment is not None:
            size = self._padded_size(group, len(self.end.content))
            may_follow = not opens or segment.first > self._cursor.revision
            if may_follow and align(segment.end + size, BLOCK_BYTES) <= segment.size:
                return size
            self._close_segment()
        size = self._padded_size(group, 0)
        new_size, zeroed = max(DATA_START + align(size, BLOCK_BYTES), self._segment_bytes), 0
        if segment is None:
            new_size = zeroed = max(
                DATA_START + align(size, BLOCK_BYTES), min(self._segment_bytes, FIRST_SEGMENT_BYTES_MAX)
            )
        first = self._cursor.revision + 1
        path = self._folder / segment_name(first)
        try:
            # A last segment that holds no revision and is too small for this group has the same
            # name. The new segment replaces it.
            self._preallocator.take(path, new_size, zeroed)
            fd = self._io.open(path)
            if self._fd >= 0:
                self._io.close(self._fd)
            self._fd = fd
            made = Segment(path, first, self._io.size(path))
            for counter in range(1, 1 + SLOTS):
                slot = self._slot(counter, DATA_START, b"", made, DATA_START)
                write_slot(self._io, fd, slot, self._slot_buffer)
                self._io.fdatasync(fd)
        except (LogFailed, OSError) as error:
            self.failed = str(error)
            raise LogFailed(self.failed) from error
        self.end, self._open = StreamEnd(DATA_START, b"", 1 + SLOTS), None
        if segment is not None and segment.first == first:
            self.segments.pop()
        self.segments.append(made)
        return size

    def _close_segment(self) -> None:
        """Writes the last block to its place, so that the slots of this segment are not needed.

        Its last group grows no more, since a reader finds it in its place before it reads a slot.
        """
        content, self._open = self.end.content, None
        if not content:
            return
        block = self._buffer.reserve(BLOCK_BYTES)
        block[:BLOCK_BYTES] = content.ljust(BLOCK_BYTES, b"\0")
        try:
            write_all(self._io, self._fd, block[:BLOCK_BYTES], self.end.base)
        except OSError as error:
            self._undo_write(self.segments[-1], BLOCK_BYTES, error)
        self._sync()

    def _write_and_sync(self, group: PackedGroup, start: int, size: int) -> None:
        """Makes the group durable from byte `start` of the file on, in the place of what follows.

        Its full blocks go to their place, and the rest goes to a tail slot. Raises LogFull or
        LogFailed if the group is not durable.
        """
        segment, preallocator, end = self.segments[-1], self._preallocator, self.end
        used = start - end.base
        total = used + size
        whole = total - total % BLOCK_BYTES
        stamp = Stamp(
            self._cursor.log_id, self._cursor.hash_id, self._incarnation, start,
            segment.size // BLOCK_BYTES, max(self._cursor.revision, 0), self._seal,
        )  # fmt: skip
        buffer = self._buffer.reserve(total)
        buffer[:used] = end.content[:used]
        lay_out(buffer, used, group, stamp, size)
        content, base = bytes(buffer[whole:total]), end.base + whole
        preallocator.busy = True
        try:
            try:
                if whole:
                    write_all(self._io, self._fd, buffer[:whole], end.base)
                if content:
                    self._write_slot(base, content, end.end)
            except OSError as error:
                self._undo_write(segment, whole, error)
            self._sync()
        finally:
            preallocator.busy = False
        segment.end = base + len(content)
        self.end = StreamEnd(base, content, self.end.counter)
        if segment.end >= segment.size // 2:
            preallocator.prepare(self._segment_bytes)

    def _slot(self, counter: int, base: int, content: bytes, segment: Segment, synced: int) -> Slot:
        blocks, log_id = segment.size // BLOCK_BYTES, self._cursor.log_id
        return Slot(counter, base, synced, self._incarnation, blocks, log_id, content)

    def _write_slot(self, base: int, content: bytes, synced: int) -> None:
        """Writes the next tail slot. The next sync makes it durable. Raises OSError."""
        counter = self.end.counter
        slot = self._slot(counter, base, content, self.segments[-1], synced)
        write_slot(self._io, self._fd, slot, self._slot_buffer)
        self.end = StreamEnd(self.end.base, self.end.content, counter + 1)

    def _sync(self) -> None:
        try:
            self._io.fdatasync(self._fd)
        except OSError as error:
            # The contents of the disk are unknown now. A second sync could report a false success.
            self.failed = f"fdatasync failed: {error}"
            raise LogFailed(self.failed) from error

    def _undo_write(self, segment: Segment, size: int, error: OSError) -> NoReturn:
        """Removes what a failed write may have left.

        It writes the last state to a tail slot, and zeros over the blocks of the group. Raises
        LogFull if the disk was full and this worked, otherwise LogFailed.
        """
        try:
            if error.errno not in DISK_FULL_ERRORS:
                raise error
            self._write_slot(self.end.base, self.end.content, self.end.end)
            self._io.fdatasync(self._fd)
            if size:
                zero_range(self._io, self._fd, self.end.base, self.end.base + size)
        except OSError as second:
            self.failed = f"a write failed: {error}"
            raise LogFailed(self.failed) from second
        raise LogFull(f"the disk has no room for a group in {segment.path}: {error.strerror}") from error


def check_entries(entries: Sequence[Entry], last_revision: int) -> None:
    """Checks the entries of a commit that follows a revision.

    Raises:
        ValueError: see `Log.append`.
    """
    for revision, entry in enumerate(entries, last_revision + 1):
        if entry.revision != revision:
            raise ValueError(f"revision {revision} expected, got {entry.revision}")
        if len(entry.producer) > PRODUCER_BYTES_MAX:
            raise ValueError(
                f"a producer id has at most {PRODUCER_BYTES_MAX} bytes, got {len(entry.producer)}"
            )
        if entry.kind in ALONE and len(entries) > 1:
            raise ValueError(f"a {Kind(entry.kind).name} record is a group of its own")
        if len(entry.salt) != SALT_BYTES:
            raise ValueError(f"a salt has {SALT_BYTES} bytes, got {len(entry.salt)}")
