"""What happens to the tail of a log when it is opened for writing.

    read everything ── damaged? ──▶ LogDamaged, and nothing is changed
          │
          └─ unsynced tail? ──▶ copy it to a `.broken` file, sync the copy and the folder
                                ──▶ overwrite it with zeros, sync

Afterwards the last segment and the folder are synced, so that everything that was read is durable.
The log then writes a bare mark with the next incarnation, before it takes a record. After a crash
at any point, the next open repeats these steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from livefactor_server.log.disk import BLOCK_BYTES, DISK_FULL_ERRORS, FileIO, aligned_buffer, write_all
from livefactor_server.log.errors import LogFailed, LogFull, LogMissing
from livefactor_server.log.format import align
from livefactor_server.log.segments import zero_range
from livefactor_server.log.walk import Cursor, Segment, Tail, Walk, list_segments, start_cursor

INDEX_BYTES = 1 << 20
"""Distance in bytes between the places where reading can start."""


@dataclass(slots=True)
class Place:
    """The start of a group where reading can begin, with the fields of `Cursor` at that point.

    `revision` is the last revision before the group, and `hash` its chain hash. `segment` is an
    index into the segments, and `offset` a byte in that file.
    """

    revision: int
    hash: bytes
    incarnation: int
    segment: int
    offset: int


@dataclass(slots=True)
class Contents:
    """The result of reading a whole log."""

    segments: list[Segment]
    cursor: Cursor
    lineage: bytes
    spec_body: bytes
    tail: Tail | None
    places: list[Place] = field(default_factory=list)


def note_place(places: list[Place], cursor: Cursor, segment: int, offset: int) -> None:
    """Adds the group start (segment, offset) if it is INDEX_BYTES after the last place.

    `cursor` holds the state of the chain before that group.
    """
    last = places[-1] if places else None
    if last is None or last.segment != segment or offset - last.offset >= INDEX_BYTES:
        places.append(Place(cursor.revision, cursor.hash, cursor.incarnation, segment, offset))


def read_contents(io: FileIO, folder: Path, progress: Callable[[int, int], None] | None = None) -> Contents:
    """Reads and verifies the whole log. It changes nothing.

    Args:
        io: the disk.
        folder: the folder of the log.
        progress: called with (bytes read, bytes to read).

    Raises:
        LogMissing: the folder has no log, or its creation did not finish.
        LogDamaged: the log is damaged.
    """
    segments = list_segments(io, folder)
    if not segments:
        raise LogMissing(f"no log in {folder}")
    cursor, spec = start_cursor(segments[0].first), None
    places: list[Place] = []
    walk = Walk(io, segments, cursor, progress=progress)
    before = Cursor(cursor.revision, cursor.hash)
    for group in walk.groups():
        if spec is None:
            spec = next(group.records())
            before.hash = spec.previous
        note_place(places, before, group.segment, group.offset)
        before.revision, before.hash, before.incarnation = cursor.revision, cursor.hash, cursor.incarnation
    if spec is None:
        raise LogMissing(f"the creation of the log in {folder} did not finish")
    return Contents(segments, cursor, spec.previous[:16], bytes(spec.body), walk.tail, places)


def trim_tail(io: FileIO, contents: Contents) -> None:
    """Copies the unsynced tail, if there is one, overwrites it with zeros, and syncs the log.

    Raises:
        LogFull: the disk has no room for the copy.
        LogFailed: the disk reported any other error.
    """
    tail, last = contents.tail, contents.segments[-1]
    try:
        if tail is not None:
            _keep_copy(io, tail)
        fd = io.open(last.path)
        try:
            if tail is not None:
                zero_range(io, fd, tail.start, align(tail.end, BLOCK_BYTES))
            io.fdatasync(fd)
        finally:
            io.close(fd)
        io.fsync_dir(last.path.parent)
    except OSError as error:
        if error.errno in DISK_FULL_ERRORS:
            raise LogFull(f"no room for a copy of the unsynced tail of {last.path}") from error
        raise LogFailed(f"the unsynced tail of {last.path} could not be removed: {error}") from error


def _keep_copy(io: FileIO, tail: Tail) -> None:
    view = io.map(tail.path)[tail.start : align(tail.end, BLOCK_BYTES)]
    names = set(io.names(tail.path.parent))
    stem = f"{tail.path.name}.{tail.start}"
    number = next(n for n in range(len(names) + 1) if f"{stem}.{n}.broken" not in names)
    path = tail.path.parent / f"{stem}.{number}.broken"
    buffer = aligned_buffer(len(view))
    buffer[: len(view)] = bytes(view)
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
