"""Small logs that tests damage, fill and read back."""

from __future__ import annotations

import random
from pathlib import Path

from crash_io import CrashIO, Image
from livefactor_server.log.store import Entry, Kind, Log

FOLDER = Path("/data/model")
ROOT = Image({Path("/"): -1, Path("/data"): -1})
SEGMENT_BYTES = 64 * 1024


def body_of(revision: int) -> bytes:
    """Return the body of a record, which depends on its revision."""
    return random.Random(revision).randbytes(700 + revision % 5)


def append(log: Log, count: int, size: int | None = None) -> None:
    """Append one group of `count` records, with bodies of `size` bytes if a size is given."""
    entries = []
    for revision in range(log.last_revision + 1, log.last_revision + 1 + count):
        salt = bytes([revision % 256]) * 16
        body = body_of(revision) if size is None else bytes([revision % 256]) * size
        commitment = log.seal(salt, b"", body)
        entries.append(
            Entry(Kind.INTERACTIONS, revision, b"p", 1, revision, 0, 3, b"", body, salt, commitment)
        )
    log.append(entries)


def new_log(io: CrashIO | None = None, folder: Path = FOLDER, segment_bytes: int = SEGMENT_BYTES) -> Log:
    return Log.create(folder, b"spec", io=io, segment_bytes=segment_bytes, ahead=False)


def check_clean(io: CrashIO, last: int) -> None:
    log = Log.open(FOLDER, io, read_only=True)
    assert log.last_revision == last
    assert log.tail is None
    assert [bytes(record.body) for record in log.read(1)] == [body_of(r) for r in range(1, last + 1)]
