"""What opening a log for writing does to its tail.

    read what follows the newest snapshot ── damage? ──▶ LogDamaged: nothing is changed
          │
          ├─ unsynced tail? ──▶ copy it to a `.broken` file, sync the copy and the folder
          │
          └─▶ write the last block's bytes to the tail slot that does not hold them, sync;
              zero what follows the stream in its place, sync

The slot write raises the log's incarnation. Afterwards the last segment and the folder are synced,
so that everything that was read is durable. After a crash at any step, the next open repeats all
steps.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from livefactor_server.log import gaps
from livefactor_server.log.acts import Acts
from livefactor_server.log.disk import BLOCK_BYTES, DISK_FULL_ERRORS, FileIO, aligned_buffer, write_all
from livefactor_server.log.errors import LogDamaged, LogFailed, LogFull, LogGap, LogMissing
from livefactor_server.log.format import (
    DATA_START,
    HASH_IDS,
    SALT_BYTES,
    BadGroup,
    Entry,
    Kind,
    Record,
    align,
    commitment_of,
    default_hash_name,
    first_previous,
    hash_function,
    hash_name_of,
    is_zero,
    new_id,
)
from livefactor_server.log.parsing import read_group_head
from livefactor_server.log.sealing import opened
from livefactor_server.log.segments import zero_range
from livefactor_server.log.tail import Slot, write_slot
from livefactor_server.log.walk import (
    Cursor,
    Group,
    Segment,
    StreamEnd,
    Tail,
    Walk,
    list_segments,
    read_group,
    start_cursor,
)

INDEX_BYTES = 1 << 20
"""The index has an entry about every INDEX_BYTES of the log."""


@dataclass(slots=True)
class Place:
    """The start of a group at which reading can begin, with the fields of the `Cursor` there."""

    # Last revision before it.
    revision: int
    hash: bytes
    incarnation: int
    segment: int
    offset: int


@dataclass(slots=True)
class Contents:
    """The result of reading a log.

    Opening did not read the segments before number `read_from`. The chain hash before that segment
    is `read_from_hash`. `acts` has the records that were read and say what others mean. `note` is
    the last RETENTION record that was read, and `gap` what is missing.
    """

    segments: list[Segment]
    cursor: Cursor
    lineage: bytes
    spec_body: bytes
    end: StreamEnd
    tail: Tail | None
    places: list[Place] = field(default_factory=list)
    read_from: int = 0
    read_from_hash: bytes = b""
    acts: Acts = field(default_factory=Acts)
    note: gaps.Retained | None = None
    gap: gaps.Gap | None = None


def note_place(places: list[Place], cursor: Cursor, segment: int, offset: int) -> None:
    """Adds the group start (segment, offset) to the index if the last entry is far enough."""
    last = places[-1] if places else None
    if last is None or last.segment != segment or offset - last.offset >= INDEX_BYTES:
        places.append(Place(cursor.revision, cursor.hash, cursor.incarnation, segment, offset))


def cursor_at(io: FileIO, segments: list[Segment], revision: int) -> tuple[int, Cursor]:
    """The segment with `revision`, or one before it: its index, and the cursor at its start.

    The cursor comes from the header of the segment's first group. The chain up to it is not
    verified. A later hash that is known from elsewhere proves it.

    Raises:
        LogDamaged: the header is damaged.
    """
    index = max([i for i, segment in enumerate(segments) if segment.first <= revision], default=0)
    while index:
        path, first = segments[index].path, segments[index].first
        view = io.map(path)
        try:
            head = read_group_head(view, DATA_START, DATA_START, path)
        except BadGroup as bad:
            # In a new segment the first group stands only in a tail slot, or nowhere yet.
            if not is_zero(view[DATA_START : DATA_START + BLOCK_BYTES]):
                raise LogDamaged(path, bad.offset, bad.reason) from None
            index -= 1
            continue
        new_hash = hash_function(hash_name_of(head.hash_id))
        return index, Cursor(first - 1, head.previous, 0, head.log_id, head.hash_id, new_hash)
    return 0, start_cursor(segments[0].first)


def read_contents(
    io: FileIO, folder: Path, progress: Callable[[int, int], None] | None = None, since: int = 0
) -> Contents:
    """Reads and verifies the log from the segment with revision `since` on. It changes nothing.

    Of earlier segments it reads only the first group of the log, which has the spec.

    Raises:
        LogMissing: the folder has no log, or its creation did not finish.
        LogDamaged: synced bytes differ from what was written.
    """
    segments = list_segments(io, folder)
    if not segments:
        raise LogMissing(f"no log in {folder}")
    index, cursor = cursor_at(io, segments, since)
    places: list[Place] = []
    acts = Acts()
    spec = _read_spec(io, segments, cursor) if index else None
    if spec is not None:
        places.append(Place(segments[0].first - 1, spec.previous, 0, 0, DATA_START))
    for segment in segments[:index]:
        segment.end = 0
    read_from_hash = cursor.hash
    holes: list[gaps.Hole] = []
    note: gaps.Retained | None = None
    walk = Walk(io, segments, cursor, index, progress=progress, holes=holes)
    before = Cursor(cursor.revision, cursor.hash)
    for group in walk.groups():
        if spec is None:
            spec = group.records[0]
            before.hash = spec.previous
        if holes and holes[-1].last >= before.revision:
            before.revision, before.hash = holes[-1].last, holes[-1].hash
        note_place(places, before, group.segment, group.offset)
        acts.note(group.records)
        note = gaps.last_note(group.records) or note
        last = group.records[-1]
        before.revision, before.hash, before.incarnation = last.revision, last.hash, last.group.incarnation
    if spec is None:
        raise LogMissing(f"the log in {folder} was never completely created")
    lineage, body = spec.previous[:16], bytes(spec.body)
    gap = gaps.check(holes, note, [segment.path for segment in segments])
    if gap is not None and note is not None:
        acts = acts.after(Acts(dict(note.switches)))
    if index:
        earlier = gaps.missing_after(io, segments[0].path, segments[1].first)
        if earlier is not None:
            gap = gaps.Gap(earlier.first, earlier.last if gap is None else gap.last, note)
    return Contents(
        segments, cursor, lineage, body, walk.end, walk.tail, places, index, read_from_hash, acts,
        note, gap,
    )  # fmt: skip


def new_contents(
    spec_body: bytes, base_revision: int, lineage: uuid.UUID | None, hash_name: str | None, time_us: int
) -> tuple[Contents, Entry]:
    """The contents of a log that has no record yet, and its first one. See `Log.create`."""
    hash_name = hash_name or default_hash_name()
    new_hash, lineage, salt = hash_function(hash_name), lineage or uuid.uuid4(), os.urandom(SALT_BYTES)
    commitment = commitment_of(new_hash, salt, b"", spec_body)
    entry = Entry(Kind.SPEC, base_revision, time_us=time_us, body=spec_body, salt=salt, commitment=commitment)
    cursor = Cursor(
        base_revision - 1, first_previous(lineage.bytes), 1, new_id(), HASH_IDS[hash_name], new_hash
    )
    end = StreamEnd(DATA_START, b"", 1)
    return Contents([], cursor, lineage.bytes, bytes(spec_body), end, None), entry


def earlier_groups(
    io: FileIO, segments: list[Segment], count: int, last_hash: bytes, holes: list[gaps.Hole]
) -> Iterator[Group]:
    """Yields the verified groups of the first `count` segments. The last hash is `last_hash`.

    Raises:
        LogDamaged: synced bytes differ from what was written.
    """
    cursor, stop = start_cursor(segments[0].first), (count, StreamEnd(DATA_START, b"", 1))
    yield from Walk(io, segments, cursor, stop=stop, holes=holes).groups()
    if cursor.hash != last_hash:
        reason = f"revision {segments[count].first} does not follow the record before it in the chain"
        raise LogDamaged(segments[count].path, DATA_START, reason)


def with_one_place(places: list[Place], segment: int) -> list[Place]:
    """The index with only the beginning of a segment, because its groups have moved."""
    seen, left = False, list[Place]()
    for place in places:
        if place.segment != segment or not seen:
            left.append(place)
        seen |= place.segment == segment
    return left


def with_more_before(places: list[Place], count: int) -> list[Place]:
    """The index after `count` segments have come behind the first one."""
    return [replace(each, segment=each.segment + count if each.segment else 0) for each in places]


def _read_spec(io: FileIO, segments: list[Segment], later: Cursor) -> Record:
    """The first record of a log, whose later segments start at the cursor `later`."""
    first = segments[0]
    cursor = start_cursor(first.first)
    try:
        memory, origin = opened(io.map(first.path), 0, DATA_START, first.path, 1)
        records, _ = read_group(memory, DATA_START - origin, DATA_START, cursor, first.path)
    except BadGroup as bad:
        raise LogDamaged(first.path, bad.offset, bad.reason) from None
    if (cursor.log_id, cursor.hash_id) != (later.log_id, later.hash_id):
        raise LogDamaged(first.path, DATA_START, "the group belongs to another log")
    return records[0]


def clear_unfinished(io: FileIO, folder: Path) -> None:
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


def read_beside_a_writer(
    io: FileIO, folder: Path, progress: Callable[[int, int], None] | None, since: int
) -> Contents:
    """Reads a log that a writer may be extending.

    If the log looks damaged, it is read again, because the writer may have completed the write
    meanwhile. If the same byte still looks damaged, LogDamaged is raised.
    """
    seen: object = None
    while True:
        try:
            return read_contents(io, folder, progress, since)
        except LogDamaged as damage:
            if seen == (damage.path, damage.offset):
                raise
            seen = damage.path, damage.offset
        except (FileNotFoundError, LogGap) as gone:
            # A retention policy deleted a segment that was listed.
            if seen == str(gone):
                raise
            seen = str(gone)


def trim_tail(io: FileIO, contents: Contents) -> None:
    """Copies and zeroes the unsynced tail, if there is one, and makes what was read durable.

    `contents` gets the raised incarnation and the counter of the next slot write.

    Raises:
        LogFull: the disk has no room for the copy.
        LogFailed: the disk reported any other error.
    """
    tail, last, end = contents.tail, contents.segments[-1], contents.end
    contents.cursor.incarnation += 1
    slot = Slot(
        end.counter, end.base, end.end, contents.cursor.incarnation, last.size // BLOCK_BYTES,
        contents.cursor.log_id, end.content,
    )  # fmt: skip
    try:
        if tail is not None:
            _keep_copy(io, tail)
        fd = io.open(last.path)
        try:
            io.fdatasync(fd)
            write_slot(io, fd, slot, memoryview(aligned_buffer(BLOCK_BYTES)))
            io.fdatasync(fd)
            if tail is not None and tail.end > tail.start:
                zero_range(io, fd, end.base, align(tail.end, BLOCK_BYTES))
            io.fdatasync(fd)
        finally:
            io.close(fd)
        io.fsync_dir(last.path.parent)
    except OSError as error:
        if error.errno in DISK_FULL_ERRORS:
            raise LogFull(f"the disk has no room for a copy of the unsynced tail of {last.path}") from error
        raise LogFailed(f"the unsynced tail of {last.path} could not be removed: {error}") from error
    contents.end = end._replace(counter=end.counter + 1)
    contents.tail = None


def _keep_copy(io: FileIO, tail: Tail) -> None:
    """Copies the bytes from the last block of the stream on, and the unusable tail slot."""
    view = io.map(tail.path)
    pieces = [view[tail.start - tail.start % BLOCK_BYTES : align(tail.end, BLOCK_BYTES)]]
    if tail.slot is not None:
        pieces.append(view[tail.slot : tail.slot + BLOCK_BYTES])
    data = b"".join(pieces)
    names = set(io.names(tail.path.parent))
    stem = f"{tail.path.name}.{tail.start}"
    number = next(n for n in range(len(names) + 1) if f"{stem}.{n}.broken" not in names)
    path = tail.path.parent / f"{stem}.{number}.broken"
    buffer = aligned_buffer(len(data))
    buffer[: len(data)] = data
    fd = io.open(path, create=True)
    try:
        write_all(io, fd, memoryview(buffer), 0)
        io.fdatasync(fd)
    except OSError:
        io.unlink(path)
        raise
    finally:
        io.close(fd)
    io.fsync_dir(path.parent)
