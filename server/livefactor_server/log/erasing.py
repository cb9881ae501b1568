"""Takes rows out of the payloads of a log. All hashes of the chain stay, and so do all revisions.

A record that loses rows keeps its head, and the commitment to its payload as it was acknowledged.
It gets the flag of erased rows, an entry in the erasures of its group, and a new salt
(`format.py`). So its header, which the chain covers, is the same. Without the old salt nobody can
try out what the payload was. A segment is rewritten as a whole:

    <first>.rewritten is written, synced and verified ─▶ <first>.log gets the second name
    <first>.log.old, synced ─▶ <first>.rewritten takes the name <first>.log, synced ─▶
    <first>.log.old is overwritten with zeros, synced and removed

After a crash at any step the log opens, and `clean` with a further `rewrite` does the rest. The
last segment is not rewritten, because it is being written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from livefactor_server.log.disk import BLOCK_BYTES, FileIO, aligned_buffer, write_all
from livefactor_server.log.errors import LogError
from livefactor_server.log.format import (
    DATA_START,
    GROUP_ALIGN,
    NO_HASH,
    SALT_BYTES,
    Entry,
    Erasure,
    GroupHead,
    Record,
    align,
    commitment_of,
    hash_function,
    hash_name_of,
)
from livefactor_server.log.packing import PackedGroup, Stamp, lay_out, pack_group
from livefactor_server.log.sealing import SEAL_BYTES, seal_of
from livefactor_server.log.segments import zero_range
from livefactor_server.log.store import Log
from livefactor_server.log.walk import Cursor, Segment, StreamEnd, Walk

REWRITTEN, OLD, BROKEN = ".rewritten", ".old", ".broken"
_WRITE_BYTES = 1 << 20


class Left(NamedTuple):
    """What is left of a record: the body, and the number of its rows."""

    body: bytes
    rows: int


Erase = Callable[[Record], Left | None]
"""What an erasure leaves of a record. None if it takes nothing."""


def entry_of(record: Record) -> Entry:
    """The entry with which a record is written again as it is."""
    entry = Entry(
        record.kind, record.revision, record.producer, record.epoch, record.sequence, record.time_us,
        record.count, record.rejects, record.body, record.salt, record.commitment,
    )  # fmt: skip
    if record.erased_at:
        new_hash = hash_function(hash_name_of(record.group.hash_id))
        current = commitment_of(new_hash, record.salt, record.rejects, record.body)
        entry.erasure = Erasure(record.rows, record.erased_at, record.commitment, current).to_bytes()
    return entry


def _erased(record: Record, left: Left, erased_at: int) -> Entry:
    """The entry with which a record is written again without the rows that it loses."""
    entry, new_hash = entry_of(record), hash_function(hash_name_of(record.group.hash_id))
    entry.salt, entry.body = os.urandom(SALT_BYTES), left.body
    # The summary begins with a hash of all received rows.
    entry.rejects = NO_HASH + record.rejects[len(NO_HASH) :] if record.rejects else b""
    current = commitment_of(new_hash, entry.salt, entry.rejects, entry.body)
    entry.erasure = Erasure(left.rows, erased_at, record.commitment, current).to_bytes()
    return entry


def groups_of(groups: Iterator[Sequence[Record]]) -> Iterator[list[Record]]:
    """Yields the records of each commit group, from what `Log.read_groups` yields."""
    for records in groups:
        each = (records[number] for number in range(len(records)))
        for _, group in groupby(each, key=lambda record: (record.path, record.offset)):
            yield list(group)


def rewrite(log: Log, io: FileIO, segment: Segment, erase: Erase, erased_at: int) -> bool:
    """Rewrites a segment of a log, unless nothing would change. The last one is not allowed.

    A file that is longer than its stream gets shorter. Returns whether it was rewritten.

    Raises:
        LogError: the segment is damaged, or the log was read all the time.
        OSError: the disk reports an error. The segment is whole.
    """
    last = min(each.first for each in log.segments if each.first > segment.first) - 1
    packed, changed = _packed(log, segment.first, last, erase, erased_at)
    if not changed and segment.size <= align(segment.end or segment.size, BLOCK_BYTES):
        return False
    path = segment.path.with_suffix(REWRITTEN)
    made = _write(io, path, segment.first, packed)
    _verify(io, made, packed)
    old = segment.path.with_name(segment.path.name + OLD)

    def swap() -> None:
        if old.name in io.names(old.parent):
            clean(io, old.parent)
        io.link(segment.path, old)
        io.fsync_dir(old.parent)
        io.rename(path, segment.path)
        io.fsync_dir(old.parent)

    log.swap(segment.first, made.size, made.end, swap)
    _destroy(io, old)
    return True


_Packed = list[tuple[GroupHead, PackedGroup]]


def _packed(log: Log, first: int, last: int, erase: Erase, erased_at: int) -> tuple[_Packed, bool]:
    """The groups of a segment without the rows that they lose, and whether any is lost."""
    found, changed = [], False
    for records in groups_of(log.read_groups(first)):
        if records[0].revision > last:
            break
        head, entries = records[0].group, []
        for record in records:
            left = erase(record)
            changed |= left is not None
            entries.append(entry_of(record) if left is None else _erased(record, left, erased_at))
        seal = SEAL_BYTES if seal_of(head.log_id) is not None else 0
        new_hash = hash_function(hash_name_of(head.hash_id))
        group, hashes = pack_group(entries, head.previous, head.hash_id, new_hash, seal_bytes=seal)
        if hashes != [record.hash for record in records]:
            raise LogError(f"revision {records[0].revision}: its hash would change")
        found.append((head, group))
    return found, changed


def _write(io: FileIO, path: Path, first: int, packed: _Packed) -> Segment:
    """Writes a segment file without tail slots, durably."""
    sizes = [align(group.size, GROUP_ALIGN) for _, group in packed]
    end = DATA_START + sum(sizes)
    size = align(end, BLOCK_BYTES)
    if path.name in io.names(path.parent):
        io.unlink(path)
    fd = io.open(path, create=True)
    try:
        io.fallocate(fd, size)
        memory = memoryview(aligned_buffer(_WRITE_BYTES + BLOCK_BYTES + max(sizes)))
        # The bytes from `base` on are in `memory`, and those before are written.
        base, used = DATA_START, 0
        for (head, group), group_size in zip(packed, sizes, strict=True):
            stamp = Stamp(
                head.log_id, head.hash_id, head.incarnation, base + used, size // BLOCK_BYTES, head.mark,
                seal_of(head.log_id),
            )  # fmt: skip
            lay_out(memory, used, group, stamp, group_size)
            used += group_size
            if used >= _WRITE_BYTES:
                whole = used - used % BLOCK_BYTES
                write_all(io, fd, memory[:whole], base)
                memory[: used - whole] = bytes(memory[whole:used])
                base, used = base + whole, used - whole
        if used:
            memory[used : align(used, BLOCK_BYTES)] = bytes(align(used, BLOCK_BYTES) - used)
            write_all(io, fd, memory[: align(used, BLOCK_BYTES)], base)
        io.fdatasync(fd)
    finally:
        io.close(fd)
    return Segment(path, first, size, end)


def _verify(io: FileIO, made: Segment, packed: _Packed) -> None:
    """Reads a rewritten segment back.

    Raises:
        LogError: it is not what was written.
    """
    head = packed[0][0]
    new_hash = hash_function(hash_name_of(head.hash_id))
    cursor = Cursor(made.first - 1, head.previous, 0, head.log_id, head.hash_id, new_hash)
    for _ in Walk(io, [made], cursor, stop=(0, StreamEnd(made.end, b"", 1))).groups():
        pass
    if cursor.hash != packed[-1][1].last:
        raise LogError(f"{made.path}: what was written reads back differently")


def clean(io: FileIO, folder: Path) -> None:
    """Ends what a crash interrupted: removes unfinished segments, and destroys replaced ones.

    Raises:
        OSError: the disk reports an error.
    """
    for name in sorted(io.names(folder)):
        path = folder / name
        if name.endswith(REWRITTEN):
            io.unlink(path)
        elif name.endswith(OLD):
            if io.same_file(path, path.with_name(name.removesuffix(OLD))):
                # The new segment did not take its place.
                io.unlink(path)
            else:
                _destroy(io, path)
    io.fsync_dir(folder)


def destroy_broken(io: FileIO, folder: Path) -> list[str]:
    """Destroys the copies of unsynced tails, which may have any rows. Returns their names."""
    names = sorted(name for name in io.names(folder) if name.endswith(BROKEN))
    for name in names:
        _destroy(io, folder / name)
    return names


def _destroy(io: FileIO, path: Path) -> None:
    """Overwrites a file with zeros, syncs and removes it."""
    fd = io.open(path)
    try:
        zero_range(io, fd, 0, align(io.size(path), BLOCK_BYTES))
    finally:
        io.close(fd)
    io.unlink(path)
    io.fsync_dir(path.parent)
