"""Archived segments of a log: reads them, puts them back into the log, and takes rows out of them.

    archive ── copy, sync, verify ─▶ the log is whole ─▶ it is replayed, and its segments rewritten
       ▲                                                                     │
       └──────────── segments that differ are copied back ───────────────────┘

Afterwards the retention of the log moves the segments to the archive again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from livefactor_server.changes.history.erase import Erased, Subjects
from livefactor_server.hosting.retaining.archive import Archive
from livefactor_server.log.disk import FileIO
from livefactor_server.log.errors import LogDamaged, LogError
from livefactor_server.log.format import DATA_START, BadGroup, Record, hash_function, hash_name_of
from livefactor_server.log.parsing import read_group_head
from livefactor_server.log.store import Log
from livefactor_server.log.walk import Cursor, Segment, StreamEnd, Walk
from livefactor_server.snapshots import erasures as reports
from livefactor_server.snapshots import strangers
from livefactor_server.snapshots.erasures import Report
from livefactor_server.snapshots.safetensors_writer import sync_folder

_DRAFT = ".put-back"


@dataclass(frozen=True, slots=True)
class Archived:
    """The archived segments that fill the gap of a log. `after` is the segment behind the gap.

    The paths of the segments say where they would be in the log.
    """

    archive: Archive
    segments: tuple[Segment, ...]
    after: Segment

    @property
    def firsts(self) -> list[int]:
        """Their first revisions."""
        return [each.first for each in self.segments]

    @property
    def sizes(self) -> dict[int, int]:
        """First revision -> bytes."""
        return {each.first: each.size for each in self.segments}

    @property
    def nbytes(self) -> int:
        """The bytes of all of them."""
        return sum(each.size for each in self.segments)

    def groups(self) -> Iterator[Sequence[Record]]:
        """Yields their verified records, many at a time.

        Raises:
            LogError: they are damaged, or they do not fit to each other and to the log.
            OSError: the archive cannot be read.
        """
        try:
            yield from self._groups()
        except LogDamaged as damage:
            if damage.path not in {each.path for each in self.segments}:
                raise
            place = f"{self.archive.text}/{damage.path.name}"
            raise LogError(f"the log is damaged: {place}, byte {damage.offset}: {damage.reason}") from None

    def _groups(self) -> Iterator[Sequence[Record]]:
        io, firsts = _ArchiveIO(self), (self.segments[0], self.after)
        try:
            heads = [read_group_head(io.map(each.path), DATA_START, DATA_START, each.path) for each in firsts]
        except BadGroup as bad:
            raise LogDamaged(self.segments[0].path, bad.offset, bad.reason) from None
        new_hash = hash_function(hash_name_of(heads[0].hash_id))
        cursor = Cursor(
            firsts[0].first - 1, heads[0].previous, 0, heads[0].log_id, heads[0].hash_id, new_hash
        )
        # The walk sets the ends of the segments.
        segments = [*(replace(each, end=0) for each in self.segments), self.after]
        stop = len(self.segments), StreamEnd(DATA_START, b"", 1)
        for group in Walk(io, segments, cursor, stop=stop).groups():
            yield group.records
        if (cursor.revision, cursor.hash) != (self.after.first - 1, heads[1].previous):
            raise LogDamaged(self.segments[-1].path, DATA_START, "the log does not follow it in the chain")


class _ArchiveIO(FileIO):
    """Reads archived segments from their archive, and the log from its files."""

    def __init__(self, archived: Archived) -> None:
        super().__init__()
        self._archive, self._paths = archived.archive, {each.path for each in archived.segments}

    def map(self, path: Path) -> memoryview:
        """See `FileIO`."""
        return self._archive.read(path.name) if path in self._paths else super().map(path)


def lacking(log: Log, archive: Archive | None, model_folder: Path) -> tuple[Archived | None, str]:
    """The archived segments that make a log whole, or None and why they cannot be used.

    Raises:
        OSError: the archive cannot be reached.
    """
    if log.gap is None or log.first_revision:
        return None, "the events before its first snapshot are in no archive of this model"
    if archive is None:
        return None, "the server has no --log-archive"
    present = {each.path.name for each in log.segments}
    found = [
        each
        for each in _segments(log, archive, present)
        if each.path.stem.isdigit() and log.gap.first <= each.first <= log.gap.last
    ]
    if not found or found[0].first != log.gap.first:
        return None, f"the archive {archive.text} lacks the segment with revision {log.gap.first}"
    if stale := _stale(log, model_folder, [each.path.name for each in found]):
        return None, stale
    free = shutil.disk_usage(model_folder).free
    if (needed := sum(each.size for each in found)) > free:
        return None, f"the archived segments have {needed:,} bytes, and the disk has room for {free:,}"
    after = next(each for each in log.segments if each.first > log.gap.last)
    return Archived(archive, tuple(found), after), ""


def _segments(log: Log, archive: Archive, present: Container[str]) -> list[Segment]:
    """The archived segments that are not present in the log, by name."""
    folder = log.segments[0].path.parent
    return [
        Segment(folder / name, int(stem) if (stem := Path(name).stem).isdigit() else -1, size)
        for name, size in sorted(archive.sizes().items())
        if name not in present
    ]


def _stale(log: Log, model_folder: Path, names: Iterable[str]) -> str:
    """Why archived segments have rows that an earlier erasure took out of the log; "" if not."""
    found = dict(reports.files(model_folder))
    for erase in {Erased.from_body(body).erase for body in log.acts.erased.values()} | found.keys():
        try:
            report = Report.from_json(found[erase].read_bytes())
        except (KeyError, ValueError, OSError):
            return f"the report of the erasure at revision {erase} is missing or damaged"
        if {Path(each).name for each in report.archives} & set(names):
            return f"the erasure at revision {erase} did not change them"
    return ""


def put_back(log: Log, archived: Archived) -> tuple[str, ...]:
    """Copies archived segments into the log, which is whole afterwards. Returns their names.

    After a crash some of them are there, and the others are put back by the next call.

    Raises:
        LogError: they are damaged, or do not fit. None of them stays.
        OSError: the disk reports an error. None of them stays.
    """
    folder = log.segments[0].path.parent
    made = []
    try:
        for each in archived.segments:
            draft, target = folder / f"{each.path.name}{_DRAFT}", folder / each.path.name
            archived.archive.fetch(each.path.name, draft)
            made.append(Segment(target, each.first, each.size, 0))
            os.replace(draft, target)
        sync_folder(folder)
        log.put_back(made)
    except (LogError, OSError):
        for path in [*folder.glob(f"*{_DRAFT}"), *(each.path for each in made)]:
            path.unlink(missing_ok=True)
        sync_folder(folder)
        raise
    return tuple(each.path.name for each in made)


def clean(folder: Path) -> None:
    """Removes unfinished copies of an earlier process from the folder of a log."""
    for path in folder.glob(f"*{_DRAFT}"):
        path.unlink()


def take_over(log: Log, archive: Archive) -> tuple[str, ...]:
    """Gives archived segments the bytes of those in the log, where they differ.

    Returns the names of those that it changed.

    Raises:
        OSError: the archive cannot be written. A second call goes on.
    """
    there = archive.sizes()
    paths = [each.path for each in log.segments if each.path.name in there]
    return tuple(path.name for path in paths if archive.put(path))


def naming(
    log: Log, archive: Archive, subjects: Subjects, until: int, check: Callable[[], None]
) -> list[str]:
    """The places of archived segments that the log lacks and that name a subject, or cannot be
    read.

    Raises:
        OSError: the archive cannot be listed.
    """
    segments = _segments(log, archive, {each.path.name for each in log.segments})
    places = {each.first: f"{archive.text}/{each.path.name}" for each in segments}
    if not segments or log.gap is None or not all(each.path.stem.isdigit() for each in segments):
        return [f"{archive.text}/{each.path.name}" for each in segments]
    after = next(each for each in log.segments if each.first > log.gap.last)
    archived, found = Archived(archive, tuple(segments), after), set[int]()
    try:
        for record, _, _ in strangers.naming(archived.groups(), subjects, until, check):
            found.add(max(first for first in archived.firsts if first <= record.revision))
    except (LogError, OSError):
        return list(places.values())
    return [place for first, place in places.items() if first in found]
