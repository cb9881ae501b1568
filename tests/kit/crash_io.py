"""A simulated disk, and every state that a power cut could leave it in.

`CrashIO` has the methods of `FileIO`, works in memory, and records each operation, sync and
acknowledgement. `crash_states` goes through that record. At every point, each operation that no
sync covers may or may not have reached the disk, in any combination. A write may have reached it
in only some of its sectors. `fdatasync` on a file makes its bytes and its length durable.
`fsync_dir` on a folder makes the names in it durable.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from livefactor_server.log.disk import BLOCK_BYTES, FileIO

SECTOR_BYTES = 512
OPEN_OPERATIONS_MAX = 8
"""So many of the last unsynced operations are taken in all combinations; earlier ones have reached
the disk.
"""

FOLDER = -1


@dataclass(frozen=True)
class Name:
    """From now on, `path` names file number `file`, a folder (FOLDER) or nothing (None).

    In a rename, `old` is the path that names nothing any more.
    """

    path: Path
    file: int | None
    old: Path | None = None


@dataclass(frozen=True)
class Length:
    file: int
    size: int


@dataclass(frozen=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class FileSync:
    file: int


@dataclass(frozen=True)
class FolderSync:
    folder: Path


@dataclass(frozen=True)
class Ack:
    revision: int


Event = Name | Length | Write | FileSync | FolderSync | Ack


@dataclass
class Image:
    """The contents of a disk: file numbers by path, and bytes by file number."""

    names: dict[Path, int] = field(default_factory=dict)
    contents: dict[int, bytearray] = field(default_factory=dict)

    def copy(self) -> Image:
        return Image(dict(self.names), {number: bytearray(data) for number, data in self.contents.items()})

    def apply(self, event: Event) -> None:
        if isinstance(event, Name):
            if event.old is not None:
                self.names.pop(event.old, None)
            if event.file is None:
                self.names.pop(event.path, None)
            else:
                self.names[event.path] = event.file
        elif isinstance(event, Length):
            data = self.contents.setdefault(event.file, bytearray())
            data.extend(bytes(max(0, event.size - len(data))))
        elif isinstance(event, Write):
            data = self.contents.setdefault(event.file, bytearray())
            data.extend(bytes(max(0, event.offset + len(event.data) - len(data))))
            data[event.offset : event.offset + len(event.data)] = event.data

    def reachable(self) -> Image:
        """Return the image without files whose folder lost its name."""
        kept = {
            path: number
            for path, number in self.names.items()
            if number == FOLDER or self.names.get(path.parent) == FOLDER
        }
        return Image(
            kept, {number: self.contents.get(number, bytearray()) for number in kept.values() if number >= 0}
        )

    def fingerprint(self) -> int:
        names = tuple(
            sorted((str(path), bytes(self.contents.get(file, b""))) for path, file in self.names.items())
        )
        return hash(names)


class CrashIO(FileIO):
    """A disk in memory.

    `short` makes some writes short, as on real disks. `full` makes the disk run out of room.

    Args:
        image: the initial contents of the disk.
        short: the generator that draws the lengths of short writes, or None for whole writes.
    """

    def __init__(self, image: Image | None = None, short: random.Random | None = None) -> None:
        self.live = image.copy() if image else Image({Path("/"): FOLDER})
        self.initial = self.live.copy()
        self.events: list[Event] = []
        self.short = short
        self.write_errors: list[int | None] = []
        """Errors of the next writes, None for success; a write that fails has written one sector
        before.
        """
        self.sync_errors: list[int | None] = []
        self.allocate_errors: list[int | None] = []
        self._fds: dict[int, int] = {}
        self._next = itertools.count(1 + max([0, *self.live.contents]))

    def ack(self, revision: int) -> None:
        """Record that the caller was told that `revision` is durable."""
        self.events.append(Ack(revision))

    def _do(self, event: Event) -> None:
        self.events.append(event)
        self.live.apply(event)

    def _file(self, path: Path) -> int:
        if path not in self.live.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self.live.names[path]

    def open(self, path: Path, create: bool = False) -> int:
        if create:
            if path in self.live.names:
                raise FileExistsError(errno.EEXIST, "it is there", str(path))
            if self.live.names.get(path.parent) != FOLDER:
                raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
            self._do(Name(path, next(self._next)))
            self._do(Length(self.live.names[path], 0))
        fd = next(self._next)
        self._fds[fd] = self._file(path)
        return fd

    def close(self, fd: int) -> None:
        del self._fds[fd]

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        assert not offset % BLOCK_BYTES, "a direct write must be aligned"
        assert not len(data) % BLOCK_BYTES, "a direct write is of whole blocks"
        failure = self.write_errors.pop(0) if self.write_errors else None
        size = len(data)
        if failure is not None:
            size = min(size, SECTOR_BYTES)
        elif self.short is not None and self.short.random() < 0.5:
            size = SECTOR_BYTES * self.short.randrange(1, size // SECTOR_BYTES + 1)
        self._do(Write(self._fds[fd], offset, bytes(data[:size])))
        if failure is not None:
            raise OSError(failure, "planted")
        return size

    def fdatasync(self, fd: int) -> None:
        failure = self.sync_errors.pop(0) if self.sync_errors else None
        if failure is not None:
            raise OSError(failure, "planted")
        self.events.append(FileSync(self._fds[fd]))

    def fsync_dir(self, folder: Path) -> None:
        self.events.append(FolderSync(folder))

    def fallocate(self, fd: int, size: int) -> None:
        failure = self.allocate_errors.pop(0) if self.allocate_errors else None
        if failure is not None:
            raise OSError(failure, "planted")
        self._do(Length(self._fds[fd], size))

    def map(self, path: Path) -> memoryview:
        return memoryview(bytes(self.live.contents[self._file(path)]))

    def size(self, path: Path) -> int:
        return len(self.live.contents[self._file(path)])

    def names(self, folder: Path) -> list[str]:
        return [path.name for path in self.live.names if path.parent == folder and path != folder]

    def make_folder(self, folder: Path) -> None:
        if folder not in self.live.names:
            self._do(Name(folder, FOLDER))

    def rename(self, old: Path, new: Path) -> None:
        self._do(Name(new, self._file(old), old))

    def unlink(self, path: Path) -> None:
        self._file(path)
        self._do(Name(path, None))


def crash_states(io: CrashIO, acked: int, tears: int, seed: int) -> Iterator[tuple[int, Image]]:
    """Yield every distinct state that a power cut could leave, at any point in the record.

    Each is a pair: the last acknowledged revision, and the contents of the disk.

    Args:
        io: the disk with its record.
        acked: the last revision that was acknowledged before the record begins.
        tears: the number of random sector tears for each unsynced write. Its prefixes and its
            suffixes are always tried.
        seed: the seed for the random tears.
    """
    chance = random.Random(seed)
    durable, pending, seen = io.initial.copy(), [], set()
    for event in io.events:
        if isinstance(event, Ack):
            acked = event.revision
        elif isinstance(event, FileSync | FolderSync):
            covered = [op for op in pending if _covers(event, op)]
            for op in covered:
                durable.apply(op)
            pending = [op for op in pending if not _covers(event, op)]
        else:
            pending.append(event)
        for image in _states(durable, pending, tears, chance):
            state = image.reachable()
            key = acked, state.fingerprint()
            if key not in seen:
                seen.add(key)
                yield acked, state


def _covers(sync: FileSync | FolderSync, op: Event) -> bool:
    if isinstance(sync, FileSync):
        return isinstance(op, Write | Length) and op.file == sync.file
    return isinstance(op, Name) and op.path.parent == sync.folder


def _states(durable: Image, pending: list[Event], tears: int, chance: random.Random) -> Iterator[Image]:
    base = durable.copy()
    for op in pending[:-OPEN_OPERATIONS_MAX]:
        base.apply(op)
    last = pending[-OPEN_OPERATIONS_MAX:]
    for chosen in itertools.product((False, True), repeat=len(last)):
        image = base.copy()
        for op, done in zip(last, chosen, strict=True):
            if done:
                image.apply(op)
        yield image
    for torn in last:
        if isinstance(torn, Write):
            for pieces in _tears(torn, tears, chance):
                image = base.copy()
                for op in last:
                    for piece in pieces if op is torn else [op]:
                        image.apply(piece)
                yield image


def _tears(op: Write, random_tears: int, chance: random.Random) -> Iterator[list[Write]]:
    """Yield versions of the write in which only some of its sectors reached the disk.

    They are every prefix, every suffix, random choices, and one with a sector of noise.
    """
    sectors = [
        Write(op.file, op.offset + at, op.data[at : at + SECTOR_BYTES])
        for at in range(0, len(op.data), SECTOR_BYTES)
    ]
    for cut in range(1, len(sectors)):
        yield sectors[:cut]
        yield sectors[cut:]
    for _ in range(random_tears):
        yield [sector for sector in sectors if chance.random() < 0.5]
    noisy = list(sectors)
    at = chance.randrange(len(noisy))
    noisy[at] = Write(op.file, noisy[at].offset, chance.randbytes(len(noisy[at].data)))
    yield noisy
