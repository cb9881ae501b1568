"""What an ingester must know after a crash: the batches in flight, and where each source stands.

The journal is a file of lines. Each has a CRC and the JSON of one batch, or of a position alone. A
line is synced before its batch is pushed. A line that was torn by a crash was never pushed, so it
is cut off. When the file is large, the lines that are still needed move to a new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

BYTES_MAX = 64 << 20
"""A longer journal is written anew, without the batches that were acknowledged."""

_NAME = "journal"


class JournalError(RuntimeError):
    """The state folder cannot be used. The text says why."""


@dataclass(slots=True)
class Progress:
    """How far one partition is done.

    after: every event up to this position has its outcome: it is in the journal, a dead letter, or
    left out by a filter. partial: of messages behind it, which events have theirs, as a bit mask.
    """

    after: int | None = None
    partial: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Entry:
    """One batch: its sequence, its columns, and the progress of all partitions.

    rows: the columns of `mapping.Rows` behind `numbers`; none for progress alone. letters: the
    lines of the dead letters since the entry before.
    """

    sequence: int
    rows: list[list[Any]]
    progress: dict[str, Progress]
    letters: list[str] = field(default_factory=list)


class Journal:
    """The journal in a state folder, which one process may use at a time.

    Raises JournalError if another process uses the folder, or a line before the last is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / _NAME
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise JournalError(f"{folder}: another ingester uses this folder") from None
        self.entries: list[Entry] = []
        """The batches not known to be applied, oldest first; the newest line is the last."""
        self._file = self._open()

    def append(self, entry: Entry) -> None:
        """Write an entry and sync it. Raises OSError; the entry then counts as not written."""
        start = self._file.tell()
        try:
            self._file.write(_line(entry))
            self._file.flush()
            os.fdatasync(self._file.fileno())
        except OSError:
            # A later line must not stand behind a torn one.
            self._file.truncate(start)
            self._file.seek(start)
            raise
        self.entries.append(entry)
        if self._file.tell() > BYTES_MAX:
            self._rewrite()

    def applied(self, sequence: int) -> None:
        """Forget the batches up to a sequence. The newest entry stays: it has the progress."""
        keep = [entry for entry in self.entries[:-1] if entry.sequence > sequence]
        self.entries = [*keep, *self.entries[-1:]]

    @property
    def sequence(self) -> int:
        """The newest sequence; 0 in an empty journal."""
        return self.entries[-1].sequence if self.entries else 0

    def close(self) -> None:
        """Close the files and give the folder back."""
        self._file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> IO[bytes]:
        file = self._path.open("a+b")
        file.seek(0)
        end = 0
        for number, line in enumerate(file, 1):
            entry = _entry(line)
            if entry is None:
                rest = file.read()
                if rest.strip():
                    raise JournalError(
                        f"{self._path}: line {number} is damaged, and there are lines behind it"
                    )
                break
            end += len(line)
            self.entries.append(entry)
        file.truncate(end)
        file.seek(end)
        return file

    def _rewrite(self) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            for entry in self.entries:
                file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._file.close()
        self._file = self._path.open("a+b")


def _line(entry: Entry) -> bytes:
    progress = {
        name: [each.after, {str(position): f"{mask:x}" for position, mask in each.partial.items()}]
        for name, each in entry.progress.items()
    }
    # The first column says how many rows there are.
    rows = [*entry.rows[:1], *map(_shortened, entry.rows[1:])]
    content = [entry.sequence, rows, progress, entry.letters]
    body = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _shortened(column: list[Any]) -> list[Any]:
    """A column of equal values as one value: it takes long to write them, and most are equal."""
    is_constant = len(column) > 1 and column.count(column[0]) == len(column)
    return column[:1] if is_constant else column


def _entry(line: bytes) -> Entry | None:
    """The entry of a line; None if the line is torn or damaged."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    sequence, rows, progress, letters = json.loads(body)
    n = len(rows[0]) if rows else 0
    return Entry(
        sequence,
        [column if len(column) == n else column * n for column in rows],
        {
            name: Progress(after, {int(position): int(mask, 16) for position, mask in partial.items()})
            for name, (after, partial) in progress.items()
        },
        letters,
    )
