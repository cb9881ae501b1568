"""Walks a log group by group, and decides whether it ends cleanly, unsynced or damaged.

The rule: a group is written only after the group before it was synced. Suppose that a group cannot
be read. If the log holds anything that was written later, then the group was complete on the disk,
and the disk lost it. Evidence for a later write is:

- a later segment file;
- a tail slot whose `synced` is after the start of the group;
- a whole group of this log in its place, if it starts later or its mark is at or after the missing
  revision.

Three more findings cannot come from an interrupted write: a whole group header in a wrong place, a
truncated file, and two damaged tail slots. In all these cases the log is damaged. Without such
evidence the group was never acknowledged, and it is an unsynced tail.

The rule has two limits. The last group has no evidence until its mark is written, after some time
without updates, or until the next group. Damage to it in this time looks like an unsynced tail. If
everything after some point is destroyed, the log looks as if it ended there. Only a snapshot or a
stored acknowledgement with a later revision reveals this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from livefactor_server.log.columns import ColumnReader
from livefactor_server.log.disk import BLOCK_BYTES, FileIO
from livefactor_server.log.errors import LogDamaged, LogError, LogGap
from livefactor_server.log.format import (
    DATA_START,
    GROUP_MAGIC,
    NO_HASH,
    BadGroup,
    GroupHead,
    Kind,
    MisplacedGroup,
    Record,
    first_previous,
    hash_function,
    hash_name_of,
    is_earlier_layout,
    nonzero_end,
)
from livefactor_server.log.gaps import Gap, Hole
from livefactor_server.log.parsing import read_group_head, read_records
from livefactor_server.log.sealing import opened
from livefactor_server.log.tail import Slot, both_used, place_of, read_slots, with_tail

SEGMENT_NAME = re.compile(r"(\d{20})\.log")
_NO_MAGIC = bytes(len(GROUP_MAGIC))


@dataclass(slots=True)
class Segment:
    """A segment file.

    `first` is its first revision. `size` of the file and `end` of the stream in it are in bytes.
    `end` is 0 if the segment was not read yet.
    """

    path: Path
    first: int
    size: int
    end: int = DATA_START


@dataclass(slots=True)
class Cursor:
    """A position in the chain: what the next record must follow."""

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


class Group(NamedTuple):
    """Verified commit groups, one or more, with their records.

    They stand from byte `offset` to `end` of the segment with index `segment`.
    """

    segment: int
    offset: int
    end: int
    records: Sequence[Record]


@dataclass(slots=True)
class Tail:
    """What an interrupted write left in the last segment.

    The stream ends at byte `start`. Nonzero bytes may follow it up to byte `end`. `slot` is the
    byte at which an unusable tail slot starts, or None.
    """

    path: Path
    start: int
    end: int
    reason: str
    slot: int | None = None


class StreamEnd(NamedTuple):
    """The end of the stream in the last segment, where a writer goes on and a reader stops.

    The last block starts at byte `base`, and `content` holds its bytes. `counter` is the counter of
    the next slot write.
    """

    base: int
    content: bytes
    counter: int

    @property
    def end(self) -> int:
        """The byte after the last group."""
        return self.base + len(self.content)


def list_segments(io: FileIO, folder: Path) -> list[Segment]:
    """The segments of the folder in the order of their revisions."""
    matches = sorted(filter(None, map(SEGMENT_NAME.fullmatch, io.names(folder))), key=lambda match: match[1])
    return [Segment(folder / m[0], int(m[1]), io.size(folder / m[0])) for m in matches]


def segment_name(first_revision: int) -> str:
    """The file name of the segment whose first revision is given."""
    return f"{first_revision:020d}.log"


def read_group(
    memory: memoryview, at: int, place: int, cursor: Cursor, path: Path
) -> tuple[list[Record], int]:
    """Reads and verifies the group at `memory[at:]`, which is byte `place` of the file.

    The cursor moves past the group only if all of it is valid.

    Returns the records, and the byte of the file after the group. Raises BadGroup.
    """
    head = read_group_head(memory, at, place, path)
    is_first = not cursor.begun
    if is_first:
        if head.previous != first_previous(head.previous[:16]):
            raise MisplacedGroup(place, "the log does not start with a spec")
        expected = replace(
            cursor, hash=head.previous, log_id=head.log_id, hash_id=head.hash_id,
            new_hash=hash_function(hash_name_of(head.hash_id)),
        )  # fmt: skip
    else:
        expected = cursor
    if (
        head.revision != expected.revision + 1
        or head.previous != expected.hash
        or head.incarnation < expected.incarnation
        or head.place != place
        or head.log_id != expected.log_id
        or head.hash_id != expected.hash_id
    ):
        raise MisplacedGroup(place, _why_misplaced(head, expected, place))
    assert expected.new_hash is not None
    records = read_records(memory, at, head, path, expected.new_hash)
    if is_first:
        if records[0].kind != Kind.SPEC:
            raise MisplacedGroup(place, "the log does not start with a spec")
        cursor.log_id, cursor.hash_id, cursor.new_hash = expected.log_id, expected.hash_id, expected.new_hash
    cursor.revision, cursor.hash, cursor.incarnation = records[-1].revision, head.last, head.incarnation
    return records, place + head.size


def _why_misplaced(head: GroupHead, cursor: Cursor, place: int) -> str:
    if head.log_id != cursor.log_id or head.hash_id != cursor.hash_id:
        return "the group belongs to another log"
    if head.revision != cursor.revision + 1:
        return f"revision {cursor.revision + 1} expected, {head.revision} found"
    if head.place != place:
        return f"revision {head.revision} belongs to byte {head.place} of its file"
    return f"revision {head.revision} does not follow the record before it in the chain"


class Walk:
    """One pass over `segments` from a known place in the chain.

    Args:
        io: the disk.
        segments: all segments of the log, in order. The walk sets the `end` of each one.
        cursor: what the first group must follow. The walk moves it to the end of the log.
        index, offset: the index of a segment and the byte in it at which the first group starts.
        stop: the index of the segment in which the walk ends, and the end of the stream in it. None
            finds the end of the log.
        progress: called with (bytes passed, bytes of all segments).
        holes: gets the holes that the walk passes (`gaps.check`). None refuses to pass one.

    `groups()` yields every whole group. It raises LogDamaged if the log is damaged, or LogGap.
    Afterwards `tail` is the unsynced tail or None, and `end` is the end of the stream.
    """

    def __init__(
        self,
        io: FileIO,
        segments: list[Segment],
        cursor: Cursor,
        index: int = 0,
        offset: int = DATA_START,
        stop: tuple[int, StreamEnd] | None = None,
        progress: Callable[[int, int], None] | None = None,
        holes: list[Hole] | None = None,
    ) -> None:
        self.io, self.segments, self.cursor, self.holes = io, segments, cursor, holes
        self.index, self.offset = index, offset
        self.stop, self.progress = stop, progress
        self.tail: Tail | None = None
        self.end = StreamEnd(DATA_START, b"", 1)
        self._bad: BadGroup | None = None
        self._reader: ColumnReader | None = None

    def groups(self) -> Iterator[Group]:
        """Yields every whole group from the start on, verified. Raises LogDamaged or LogGap."""
        last = len(self.segments) - 1 if self.stop is None else self.stop[0]
        offset = self.offset
        for index in range(self.index, last + 1):
            view = self._map(index)
            if offset == DATA_START and self.cursor.begun:
                self._pass_hole(index, view)
            if self.stop is None:
                yield from self._unknown(index, view, offset, index == last)
            elif index == last or self.segments[index].end:
                limit = self.stop[1].end if index == last else self.segments[index].end
                yield from self._known(index, view, offset, limit, index == last)
            else:
                yield from self._unknown(index, view, offset, False)
            offset = DATA_START

    def _map(self, index: int) -> memoryview:
        segment = self.segments[index]
        try:
            return self.io.map(segment.path)
        except FileNotFoundError:
            # A retention policy deleted it after it was listed.
            later = [each.first for each in self.segments[index + 1 :]]
            raise LogGap(str(Gap(segment.first, min(later, default=segment.first + 1) - 1))) from None

    def _pass_hole(self, index: int, view: memoryview) -> None:
        """Moves the cursor over revisions that are missing before the segment."""
        segment, cursor = self.segments[index], self.cursor
        first, before = cursor.revision + 1, cursor.hash
        if segment.first <= first:
            return
        try:
            head = read_group_head(view, DATA_START, DATA_START, segment.path)
        except BadGroup:
            # No retention policy leaves this. The checks of the file name what is missing.
            return
        if self.holes is None:
            raise LogGap(str(Gap(first, segment.first - 1)))
        self.holes.append(Hole(first, segment.first - 1, before, head.previous, index))
        cursor.revision, cursor.hash = segment.first - 1, head.previous

    def _known(self, index: int, view: memoryview, offset: int, limit: int, is_last: bool) -> Iterator[Group]:
        """Yields the groups of a segment up to byte `limit`. All of them were synced."""
        self._check_file(index, view, offset)
        assert self.stop is not None
        base = self.stop[1].base if is_last else limit
        yield from self._groups(index, view, 0, offset, min(base, limit))
        at = self._at
        if is_last and at < limit:
            memory = with_tail(view, at, base, self.stop[1].content)
            yield from self._groups(index, memory, at, at, limit)
        if self._at < limit:
            bad = self._bad or BadGroup(self._at, "zeros where a group should start")
            raise LogDamaged(self.segments[index].path, bad.offset, f"{bad.reason}, but it was synced")

    def _unknown(self, index: int, view: memoryview, offset: int, is_last: bool) -> Iterator[Group]:
        """Yields the groups of a segment. Where they end is not known."""
        segment = self.segments[index]
        self._check_file(index, view, offset)
        yield from self._groups(index, view, 0, offset, len(view))
        if is_last:
            yield from self._last_block(index, view)
            segment.end = self.end.end
        elif self._bad is not None:
            reason = f"{self._bad.reason}, but a later segment shows that it was synced"
            raise LogDamaged(segment.path, self._bad.offset, reason)
        else:
            segment.end = self._at

    def _groups(
        self, index: int, memory: memoryview, origin: int, offset: int, limit: int
    ) -> Iterator[Group]:
        """Yields the whole groups from byte `offset` of the file on.

        `memory` starts at byte `origin` of the file. Afterwards `_at` is the byte after the last
        whole group, and `_bad` is the error of the bytes that follow it, or None.
        """
        path, self._bad, self._at = self.segments[index].path, None, offset
        given, given_origin, until = memory, origin, offset
        while self._at < limit:
            if self._at >= until:
                memory, origin = opened(given, given_origin, self._at, path)
                until = limit if memory is given else origin + len(memory)
            at = self._at - origin
            if memory[at : at + len(_NO_MAGIC)] == _NO_MAGIC:
                return
            try:
                records, end = self._read(memory[: limit - origin], memory, origin, path)
            except BadGroup as bad:
                # A traceback would keep the file mapped.
                self._bad = bad.with_traceback(None)
                return
            group, self._at = Group(index, self._at, end, records), end
            yield group
            self._report(index, end)

    def _read(
        self, small: memoryview, memory: memoryview, origin: int, path: Path
    ) -> tuple[Sequence[Record], int]:
        """Reads one group at `_at` from `memory`, or several small ones from `small`.

        Returns the records, and the byte of the file after them. Raises BadGroup.
        """
        cursor, at = self.cursor, self._at - origin
        if cursor.begun:
            self._reader = self._reader or ColumnReader(cursor.log_id, cursor.hash_id)
            position = cursor.revision, cursor.hash, cursor.incarnation
            found = self._reader.read(small, at, origin, *position, path)
            if found is not None:
                records, end, cursor.incarnation = found
                cursor.revision += len(records)
                cursor.hash = records.hashes[-1].tobytes()
                return records, origin + end
        return read_group(memory, at, self._at, cursor, path)

    def _last_block(self, index: int, view: memoryview) -> Iterator[Group]:
        """Yields the groups that end in the last block of the log. Sets `end` and `tail`."""
        segment, first_bad = self.segments[index], self._bad
        slots = [slot for slot in read_slots(view) if self._is_ours(slot)]
        if not slots and (nonzero_end(view, DATA_START) > DATA_START or both_used(view)):
            raise LogDamaged(segment.path, 0, "both tail slots are damaged")
        start, chosen = self._at, None
        for slot in slots:
            if slot.end <= start:
                break
            groups = self._groups_of(slot, index, view, start)
            if groups is not None:
                chosen = slot
                yield from groups
                break
        end = chosen.end if chosen is not None else start
        bad = first_bad if chosen is None else None
        last = nonzero_end(view, end)
        self._refuse_damage(segment, view, end, last, bad, slots)
        self.end = _stream_end(view, end, chosen, slots)
        self.tail = _find_tail(segment, view, end, last, bad, slots)

    def _is_ours(self, slot: Slot) -> bool:
        return not self.cursor.begun or slot.log_id == self.cursor.log_id

    def _groups_of(self, slot: Slot, index: int, view: memoryview, start: int) -> list[Group] | None:
        """The groups from byte `start` to the end of the slot, or None if they are not whole."""
        before = replace(self.cursor)
        memory = with_tail(view, start, slot.base, slot.content)
        groups = list(self._groups(index, memory, start, start, slot.end))
        if self._at == slot.end:
            return groups
        self.cursor.revision, self.cursor.hash = before.revision, before.hash
        self.cursor.incarnation, self.cursor.log_id = before.incarnation, before.log_id
        self.cursor.hash_id, self.cursor.new_hash = before.hash_id, before.new_hash
        return None

    def _refuse_damage(
        self, segment: Segment, view: memoryview, end: int, last: int, bad: BadGroup | None, slots: list[Slot]
    ) -> None:
        """Raises LogDamaged if anything proves that synced bytes followed the end of the stream."""
        found = bad or BadGroup(end, "the stream ends here")
        if isinstance(bad, MisplacedGroup):
            raise LogDamaged(segment.path, bad.offset, bad.reason)
        if any(slot.synced > end for slot in slots):
            reason = f"{found.reason}, but a tail slot shows that it was synced"
            raise LogDamaged(segment.path, found.offset, reason)
        later = None
        if last > end:
            later = find_later_group(view, end, self.cursor, segment.path)
        if later is not None:
            what = f"revision {later.revision} at byte {later.place}"
            reason = f"{found.reason}, but {what} was written after it was synced"
            raise LogDamaged(segment.path, found.offset, reason)

    def _check_file(self, index: int, view: memoryview, offset: int) -> None:
        segment = self.segments[index]
        if is_earlier_layout(view):
            raise LogError(f"an earlier version wrote {segment.path}; this version cannot read its layout")
        made = made_size(view, segment.path)
        if len(view) < max(made, DATA_START) or len(view) % BLOCK_BYTES:
            reason = f"the file was cut short: it was made {made or 'whole blocks of 4096'} bytes long"
            raise LogDamaged(segment.path, len(view), reason)
        if offset == DATA_START and self.cursor.begun and segment.first != self.cursor.revision + 1:
            expected = self.cursor.revision + 1
            reason = f"revision {expected} expected at its start: records or a whole segment are missing"
            raise LogDamaged(segment.path, 0, reason)

    def _report(self, index: int, offset: int) -> None:
        if self.progress is not None:
            before = sum(segment.size for segment in self.segments[:index])
            self.progress(before + offset, sum(segment.size for segment in self.segments))


def _stream_end(view: memoryview, end: int, chosen: Slot | None, slots: list[Slot]) -> StreamEnd:
    """The end of the stream at byte `end`.

    Its counter is chosen so that the next slot write does not go to the slot that holds this end.
    """
    base = end - end % BLOCK_BYTES
    content = chosen.content if chosen is not None and chosen.base == base else bytes(view[base:end])
    newest = slots[0].counter if slots else 0
    holder = next((slot for slot in slots if slot.end == end), chosen)
    counter = newest + 1
    if holder is not None and place_of(counter) == place_of(holder.counter):
        counter += 1
    return StreamEnd(base, content, counter)


def _find_tail(
    segment: Segment, view: memoryview, end: int, last: int, bad: BadGroup | None, slots: list[Slot]
) -> Tail | None:
    """What an interrupted write left behind the stream. All bytes from `last` on are zero."""
    unusable = _unusable_slot(view, end, slots)
    if last == end and unusable is None:
        return None
    reason = bad.reason if bad is not None else "a tail slot is incomplete"
    if bad is None and last > end:
        reason = "zeros where a group should start"
    return Tail(segment.path, end, last, reason, unusable)


def _unusable_slot(view: memoryview, end: int, slots: list[Slot]) -> int | None:
    """The byte at which a torn tail slot starts, or one with an incomplete group, or None."""
    whole = {place_of(slot.counter): slot for slot in slots}
    for place in (place_of(0), place_of(1)):
        if place in whole:
            if whole[place].end > end:
                return place
        elif slots:
            return place
    return None


def made_size(view: memoryview, path: Path) -> int:
    """The length of a segment file when it was made, in bytes; 0 if nothing in it can be read."""
    slots = read_slots(view)
    if slots:
        return slots[0].segment * BLOCK_BYTES
    try:
        return read_group_head(view, DATA_START, DATA_START, path).segment * BLOCK_BYTES
    except BadGroup:
        return 0


def find_later_group(view: memoryview, start: int, cursor: Cursor, path: Path) -> GroupHead | None:
    """A whole group at or after byte `start` that proves that byte `start` was synced before it."""
    data: Any = view.obj
    position = data.find(GROUP_MAGIC, start)
    while position >= 0:
        head = _whole_group(view, position, cursor, path)
        if head is not None and (head.place > start or head.mark > cursor.revision):
            return head
        position = data.find(GROUP_MAGIC, position + 1)
    return None


def _whole_group(view: memoryview, offset: int, cursor: Cursor, path: Path) -> GroupHead | None:
    try:
        view, origin = opened(view, 0, offset, path, 1)
        head = read_group_head(view, offset - origin, offset, path)
        if head.place != offset or (cursor.begun and head.log_id != cursor.log_id):
            return None
        if cursor.begun and head.incarnation < cursor.incarnation:
            return None
        read_records(
            view, offset - origin, head, path, cursor.new_hash or hash_function(hash_name_of(head.hash_id))
        )
    except BadGroup:
        return None
    return head


def start_cursor(first_revision: int) -> Cursor:
    """The position before a log's first record."""
    return Cursor(first_revision - 1, NO_HASH)
