"""Shows a log: one row per record, and where the log ends or is damaged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from livefactor_server.changes import change_of, decode_rejects
from livefactor_server.log import gaps
from livefactor_server.log.disk import FileIO
from livefactor_server.log.recovery import cursor_at
from livefactor_server.log.store import Kind, LogDamaged, LogMissing, Record
from livefactor_server.log.walk import Walk, list_segments
from livefactor_server.text import plain

COLUMNS = {
    "revision": 10,
    "kind": 13,
    "producer": 16,
    "epoch": 5,
    "sequence": 8,
    "time": 24,
    "rows": 8,
    "rejected": 8,
    "bytes": 10,
    "segment": 24,
    "offset": 10,
    "hash": 16,
    "change": 24,
}
"""The fields of a row and their widths in a plain table.

`bytes` is the size of the payload. `hash` is the chain hash in hex; tables show its first 16
digits. `change` describes the change of the record in words.
"""

_TEXT = frozenset({"kind", "producer", "time", "segment", "hash", "change"})


def rows(
    folder: str | os.PathLike[str],
    from_revision: int = 0,
    count: int | None = None,
    io: FileIO | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields a dict for each record from `from_revision` on, ready for JSON. It changes nothing.

    Records are verified while they are read. A record has the fields of COLUMNS. If the log is
    damaged, or if its tail is not synced (yet), the last dict has the fields "trouble" ("damaged"
    or "unsynced tail"), "segment", "offset" and "reason" instead. So has a dict where a retention
    policy deleted records (trouble "deleted").

    Args:
        folder: the folder of the log.
        from_revision: the first revision to show.
        count: the maximum number of rows; None shows all.
        io: the disk; None means the files of the operating system.

    Raises:
        LogMissing: the folder has no log.
    """
    return islice(_rows(io or FileIO(), Path(folder), from_revision), count)


def _rows(io: FileIO, folder: Path, from_revision: int) -> Iterator[dict[str, Any]]:
    segments = list_segments(io, folder)
    if not segments:
        raise LogMissing(f"no log in {folder}")
    try:
        index, cursor = cursor_at(io, segments, from_revision)
        holes: list[gaps.Hole] = []
        note, told = None, 0
        walk = Walk(io, segments, cursor, index, holes=holes)
        for group in walk.groups():
            for hole in holes[told:]:
                reason = str(gaps.Gap(hole.first, hole.last))
                yield _trouble("deleted", segments[hole.segment].path, 0, reason)
            note, told = gaps.last_note(group.records) or note, len(holes)
            for record in group.records:
                if record.revision >= from_revision:
                    yield _row(record)
        gaps.check(holes, note, [segment.path for segment in segments])
    except LogDamaged as damage:
        yield _trouble("damaged", damage.path, damage.offset, damage.reason)
        return
    if walk.tail is not None:
        yield _trouble("unsynced tail", walk.tail.path, walk.tail.start, walk.tail.reason)


def _row(record: Record) -> dict[str, Any]:
    return {
        "revision": record.revision,
        "kind": Kind(record.kind).name if record.kind in list(Kind) else str(record.kind),
        "producer": record.producer.decode("utf-8", "backslashreplace"),
        "epoch": record.epoch,
        "sequence": record.sequence,
        "time": datetime.fromtimestamp(record.time_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
        "rows": record.rows,
        "rejected": _rejected(record),
        "bytes": record.payload_bytes,
        "segment": record.path.name,
        "offset": record.offset,
        "hash": record.hash.hex(),
        "change": _described(record),
    }


def _described(record: Record) -> str | None:
    """Describes the change of a record. None if its body cannot be decoded."""
    try:
        left = change_of(record.kind, record.body).describe() if record.rows or not record.erased_at else ""
    except (ValueError, KeyError):
        return None
    if not record.erased_at:
        return left
    gone = f"{record.count - record.rows} rows erased by revision {record.erased_at}"
    return f"{left}; {gone}" if left else gone


def _rejected(record: Record) -> int | None:
    """Number of rejected rows. None if the summary cannot be decoded."""
    try:
        return decode_rejects(record.rejects, record.commitment)[0].count
    except ValueError:
        return None


def _trouble(what: str, path: Path, offset: int, reason: str) -> dict[str, Any]:
    return {"trouble": what, "segment": path.name, "offset": offset, "reason": reason}


def is_damaged(row: dict[str, Any]) -> bool:
    """Whether the row reports damage."""
    return row.get("trouble") == "damaged"


def trouble_text(row: dict[str, Any]) -> str:
    """One line of text for a row with the field "trouble"."""
    return f"{row['trouble']}: {row['segment']} at byte {row['offset']}: {row['reason']}"


def plain_lines(shown: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yields the heading and then the rows as aligned text, so that a long log streams.

    A row is one line of printable characters, whatever a peer wrote into the log.
    """
    for number, row in enumerate(shown):
        if not number:
            yield "  ".join(_pad(name, name) for name in COLUMNS).rstrip()
        if "trouble" in row:
            yield plain(trouble_text(row))
        else:
            yield "  ".join(_pad(name, _cell(name, row[name])) for name in COLUMNS).rstrip()


def _cell(name: str, value: Any) -> str:
    text = "?" if value is None else plain(str(value))
    return text[: COLUMNS[name]] if name == "hash" else text


def _pad(name: str, text: str) -> str:
    return text.ljust(COLUMNS[name]) if name in _TEXT else text.rjust(COLUMNS[name])
