"""Walks a log group by group, and decides whether it ends cleanly, unsynced or damaged.

The rule: a group is written only after the group before it was synced. Suppose that a group cannot
be read. If the log holds anything that was written later, then the group was complete on the disk,
and the disk lost it. Evidence for a later write is:

- a later segment file;
- a valid record with the same or a later incarnation, which belongs to a later group or has a mark
  at or after the missing revision.

Two more findings cannot come from an interrupted write: a valid record in a wrong place, and a
truncated file. In all these cases the log is damaged. Without such evidence the group was never
acknowledged, and it is an unsynced tail.

The rule has two limits. The last group has no evidence until its bare mark is written, after 10 ms
without updates, or until the next group. Damage to it in this time looks like an unsynced tail. If
everything after some point is destroyed, the log looks as if it ended there. Only a snapshot or a
stored acknowledgement with a later revision reveals this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livefactor_server.log.disk import BLOCK_BYTES, FileIO
from livefactor_server.log.errors import LogDamaged
from livefactor_server.log.format import (
    FLAG_LAST,
    HEADER_BYTES,
    MAGIC,
    NO_HASH,
    RECORD_ALIGN,
    STORAGE_BYTES,
    BadRecord,
    Head,
    Kind,
    MisplacedRecord,
    Record,
    align,
    check_payload,
    first_previous,
    hash_function,
    hash_name_of,
    made_size,
    read_head,
    record_of,
)

SEGMENT_NAME = re.compile(r"(\d{20})\.log")
_ZEROS = bytes(1 << 20)
_MARK = int(Kind.MARK)


@dataclass(slots=True)
class Segment:
    """A segment file.

    `first` is its first revision, `size` its bytes, `end` the bytes that hold groups.
    """

    path: Path
    first: int
    size: int
    end: int = 0


@dataclass(slots=True)
class Cursor:
    """The state of the chain at some point, which the next record must continue."""

    revision: int
    hash: bytes
    incarnation: int = 0
    log_id: bytes = b""
    hash_id: int = 0
    new_hash: Callable[..., Any] | None = None

    @property
    def begun(self) -> bool:
        """Whether the log's first record was read."""
        return self.new_hash is not None


@dataclass(slots=True)
class Group:
    """A complete, verified commit group in [offset, end) of a segment file.

    `segment` is the index of the segment, `view` the whole file, and `found` the offset, headers
    and hash of each record.
    """

    segment: int
    path: Path
    view: memoryview
    offset: int
    end: int
    found: list[tuple[int, Head, bytes]]

    def records(self) -> Iterator[Record]:
        """The records of the group."""
        return (record_of(self.view, at, head, chain, self.path) for at, head, chain in self.found)


@dataclass(slots=True)
class Tail:
    """A group in the last segment that was never synced. Its nonzero bytes lie in [start, end)."""

    path: Path
    start: int
    end: int
    reason: str


def list_segments(io: FileIO, folder: Path) -> list[Segment]:
    """The segments in the folder, ordered by revision."""
    matches = sorted(filter(None, map(SEGMENT_NAME.fullmatch, io.names(folder))), key=lambda match: match[1])
    return [Segment(folder / m[0], int(m[1]), io.size(folder / m[0])) for m in matches]


def segment_name(first_revision: int) -> str:
    """The file name of the segment that starts with `first_revision`."""
    return f"{first_revision:020d}.log"


def nonzero_end(view: memoryview, start: int) -> int:
    """The offset after the last nonzero byte of `view[start:]`; `start` if all bytes are zero."""
    end = len(view)
    while end > start:
        step = min(len(_ZEROS), end - start)
        piece = view[end - step : end]
        if piece != _ZEROS[:step]:
            return end - step + len(bytes(piece).rstrip(b"\0"))
        end -= step
    return start


def read_group(
    view: memoryview, at: int, cursor: Cursor, path: Path, verify_from: int
) -> tuple[list[tuple[int, Head, bytes]], int]:
    """Reads and verifies the group at `at`.

    `cursor` moves past the group only if all of it is valid.

    Payloads of revisions below `verify_from` are not verified.

    Returns:
        The records (offset, headers and hash of each), and the offset of the next group.

    Raises:
        BadRecord: a record of the group is not valid.
    """
    if not cursor.begun:
        _begin(cursor, view, at, path)
    revision, chain, incarnation, new_hash = cursor.revision, cursor.hash, cursor.incarnation, cursor.new_hash
    assert new_hash is not None
    found, offset, size, block = [], at, len(view), at // BLOCK_BYTES
    while True:
        raw = bytes(view[offset : offset + HEADER_BYTES])
        head = read_head(raw, offset, size, path)
        is_mark = head.kind == _MARK
        if (
            head.revision != revision + (not is_mark)
            or head.previous != chain
            or head.incarnation < incarnation
            or head.group != block
            or head.log_id != cursor.log_id
            or head.hash_id != cursor.hash_id
        ):
            raise MisplacedRecord(offset, _why_misplaced(head, cursor, revision + (not is_mark), block))
        if head.revision >= verify_from:
            check_payload(view, offset, head, new_hash)
        if not is_mark:
            revision, chain = head.revision, new_hash(raw[STORAGE_BYTES:]).digest()
        incarnation = head.incarnation
        found.append((offset, head, chain))
        offset += HEADER_BYTES + head.length
        if head.flags & FLAG_LAST:
            break
        offset += -offset % RECORD_ALIGN
    cursor.revision, cursor.hash, cursor.incarnation = revision, chain, incarnation
    return found, align(offset, BLOCK_BYTES)


def _why_misplaced(head: Head, cursor: Cursor, revision: int, block: int) -> str:
    if head.log_id != cursor.log_id or head.hash_id != cursor.hash_id:
        return "a record of another log"
    if head.revision != revision:
        return f"revision {revision} expected, {head.revision} found"
    if head.group != block:
        return f"revision {head.revision} was written for the group at byte {head.group * BLOCK_BYTES}"
    return f"revision {head.revision} does not follow the record before it in the chain"


def _begin(cursor: Cursor, view: memoryview, at: int, path: Path) -> None:
    """Sets the log's hash and identity from its first record, whose `previous` is the lineage."""
    head = read_head(bytes(view[at : at + HEADER_BYTES]), at, len(view), path)
    new_hash = hash_function(hash_name_of(head.hash_id))
    check_payload(view, at, head, new_hash)
    if head.kind != Kind.SPEC or head.previous != first_previous(head.previous[:16]):
        raise MisplacedRecord(at, "the log does not start with a spec")
    cursor.hash, cursor.hash_id, cursor.log_id, cursor.new_hash = (
        head.previous,
        head.hash_id,
        head.log_id,
        new_hash,
    )


class Walk:
    """One pass over `segments` from a known point of the chain.

    Args:
        io: the disk.
        segments: all segments of the log, in order. The walk sets their `end`.
        cursor: the state of the chain before the first group. It ends as the state at the end of
            the log.
        index: the segment to start in.
        offset: the byte to start at, which is the start of a group.
        verify_from: payloads of earlier revisions are not verified.
        stop: (segment index, offset) of the end of the synced part; None makes the walk find the
            end.
        progress: called with (bytes walked, bytes of all segments).

    `groups()` yields every complete group. Afterwards `tail` is the unsynced tail or None.
    """

    def __init__(
        self,
        io: FileIO,
        segments: list[Segment],
        cursor: Cursor,
        index: int = 0,
        offset: int = 0,
        verify_from: int = 0,
        stop: tuple[int, int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.io, self.segments, self.cursor = io, segments, cursor
        self.index, self.offset = index, offset
        self.verify_from, self.stop, self.progress = verify_from, stop, progress
        self.tail: Tail | None = None

    def groups(self) -> Iterator[Group]:
        """Yields every complete group from the start on, verified. Raises LogDamaged."""
        last = len(self.segments) - 1 if self.stop is None else self.stop[0]
        offset = self.offset
        for index in range(self.index, last + 1):
            yield from self._segment(index, offset, index == last)
            offset = 0

    def _segment(self, index: int, offset: int, is_last: bool) -> Iterator[Group]:
        segment, cursor = self.segments[index], self.cursor
        view = self.io.map(segment.path)
        limit = len(view) if self.stop is None else self.stop[1] if is_last else segment.end
        self._check_file(segment, view, offset)
        bad = None
        while offset < limit and (self.stop or view[offset : offset + HEADER_BYTES] != _ZEROS[:HEADER_BYTES]):
            try:
                found, end = read_group(view, offset, cursor, segment.path, self.verify_from)
            except BadRecord as error:
                bad = error
                break
            segment.end = max(segment.end, end)
            yield Group(index, segment.path, view, offset, end, found)
            offset = end
            self._report(index, offset)
        if bad is not None and (self.stop or not is_last):
            raise LogDamaged(segment.path, bad.offset, f"{bad.reason}, in a part of the log that was synced")
        if is_last and not self.stop:
            self.tail = self._find_tail(segment, view, offset, bad)

    def _check_file(self, segment: Segment, view: memoryview, offset: int) -> None:
        made = made_size(view)
        if len(view) < max(made, BLOCK_BYTES) or len(view) % BLOCK_BYTES:
            reason = f"the file was cut short: it had {made or 'whole blocks of 4096'} bytes when it was made"
            raise LogDamaged(segment.path, len(view), reason)
        if offset == 0 and self.cursor.begun and segment.first != self.cursor.revision + 1:
            expected = self.cursor.revision + 1
            reason = f"revision {expected} expected at its start: records or a whole segment are missing"
            raise LogDamaged(segment.path, 0, reason)

    def _find_tail(
        self, segment: Segment, view: memoryview, start: int, bad: BadRecord | None
    ) -> Tail | None:
        end = nonzero_end(view, start)
        if end == start:
            return None
        bad = bad or BadRecord(start, "zeros where a group should start")
        if isinstance(bad, MisplacedRecord):
            raise LogDamaged(segment.path, bad.offset, bad.reason)
        proof = find_later_record(view, start, self.cursor, segment.path)
        if proof is not None:
            offset, head = proof
            what = "a mark" if head.kind == Kind.MARK else f"revision {head.revision}"
            reason = f"{bad.reason}, but {what} at byte {offset} was written after it was synced"
            raise LogDamaged(segment.path, bad.offset, reason)
        return Tail(segment.path, start, end, bad.reason)

    def _report(self, index: int, offset: int) -> None:
        if self.progress is not None:
            before = sum(segment.size for segment in self.segments[:index])
            self.progress(before + offset, sum(segment.size for segment in self.segments))


def find_later_record(view: memoryview, start: int, cursor: Cursor, path: Path) -> tuple[int, Head] | None:
    """Searches for a valid record that proves that the group at `start` was synced.

    Returns:
        The offset and the headers of that record, or None.
    """
    data: Any = view.obj
    position = data.find(MAGIC, start)
    while position >= 0:
        offset = position - STORAGE_BYTES
        if offset >= start and offset % RECORD_ALIGN == 0:
            head = _self_valid(view, offset, cursor, path)
            if head is not None and (head.group * BLOCK_BYTES > start or head.mark > cursor.revision):
                return offset, head
        position = data.find(MAGIC, position + 1)
    return None


def _self_valid(view: memoryview, offset: int, cursor: Cursor, path: Path) -> Head | None:
    try:
        head = read_head(bytes(view[offset : offset + HEADER_BYTES]), offset, len(view), path)
        check_payload(view, offset, head, cursor.new_hash or hash_function(hash_name_of(head.hash_id)))
    except BadRecord:
        return None
    if cursor.begun and (head.log_id != cursor.log_id or head.incarnation < cursor.incarnation):
        return None
    return head


def start_cursor(first_revision: int) -> Cursor:
    """The state of the chain before a log's first record."""
    return Cursor(first_revision - 1, NO_HASH)
