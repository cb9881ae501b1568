"""Gaps: revisions that a retention policy deleted from a log, and the record that vouches for them.

A RETENTION record is appended and synced before the first segment is deleted. It names the deleted
revisions, the chain hashes at both ends of them, and the snapshot that stands in for them. Segments
are deleted whole. The first segment stays, because it has the spec, and so do the last ones. So a
log has the segments before and after one gap:

    first segment │ revisions first..last are deleted │ segments, one with the RETENTION record

A crash between the record and the last deletion leaves more segments than the record allows to be
missing, which is no damage. Segments that are put back make the log whole again. Without a record
that names them, missing segments are damage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from livefactor_server.log.columns import KIND, Columns
from livefactor_server.log.disk import FileIO
from livefactor_server.log.errors import LogDamaged
from livefactor_server.log.format import DATA_START, GROUP_MAGIC, BadGroup, Kind, Record
from livefactor_server.log.parsing import read_group_head


@dataclass(frozen=True, slots=True)
class Retained:
    """The contents of a RETENTION record. Hashes have 32 bytes.

    Attributes:
        first, last: the deleted revisions.
        before, hash: the chain hashes of the record before them, and of the last one.
        snapshot_revision, root_hash: the snapshot that stands in for them.
        archived: the segments were moved to an archive.
        switches: the SWITCH records up to `last`: revision -> body.
        time_us: when it was decided, microseconds since 1970; 0 if it is unknown.
    """

    first: int
    last: int
    before: bytes
    hash: bytes
    snapshot_revision: int
    root_hash: bytes
    archived: bool
    switches: Mapping[int, bytes] = field(default_factory=dict)
    time_us: int = 0

    def to_body(self) -> bytes:
        """The body of the record."""
        fields = {
            "first": self.first,
            "last": self.last,
            "before": self.before.hex(),
            "hash": self.hash.hex(),
            "snapshot_revision": self.snapshot_revision,
            "root_hash": self.root_hash.hex(),
            "archived": self.archived,
            "switches": {str(revision): body.hex() for revision, body in self.switches.items()},
        }
        return json.dumps(fields, sort_keys=True).encode()

    @classmethod
    def from_body(cls, body: bytes, time_us: int = 0) -> Retained:
        """Reads the body of a record.

        Raises:
            ValueError: the body is damaged. It may be a subclass.
        """
        try:
            fields = json.loads(body)
            return cls(
                int(fields["first"]),
                int(fields["last"]),
                bytes.fromhex(fields["before"]),
                bytes.fromhex(fields["hash"]),
                int(fields["snapshot_revision"]),
                bytes.fromhex(fields["root_hash"]),
                bool(fields["archived"]),
                {int(revision): bytes.fromhex(text) for revision, text in fields["switches"].items()},
                time_us,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the body of a RETENTION record is damaged: {error}") from None


class Hole(NamedTuple):
    """Revisions whose segments a walk did not find, and the chain hashes at both ends.

    `segment` is the number of the segment after them.
    """

    first: int
    last: int
    before: bytes
    hash: bytes
    segment: int


@dataclass(frozen=True, slots=True)
class Gap:
    """The revisions `first` to `last` are not in the log.

    `note` is what the log says about them. It is None while that part of the log was not read yet.
    """

    first: int
    last: int
    note: Retained | None = None

    def __str__(self) -> str:
        text = f"revisions {self.first} to {self.last} are not in the log any more"
        if self.note is None:
            return text
        day = datetime.fromtimestamp(self.note.time_us / 1e6, UTC).strftime("%Y-%m-%d")
        done = "archived" if self.note.archived else "deleted"
        return (
            f"{text}: they were {done} on {day}, and the snapshot at revision "
            f"{self.note.snapshot_revision} vouches for them"
        )


def last_note(records: Sequence[Record]) -> Retained | None:
    """The last RETENTION record among the records, or None."""
    if isinstance(records, Columns):
        found = (records.fields[:, KIND] == Kind.RETENTION).nonzero()[0].tolist()
        records = [records[number] for number in found]
    notes = [record for record in records if record.kind == Kind.RETENTION]
    return Retained.from_body(bytes(notes[-1].body), notes[-1].time_us) if notes else None


def check(holes: Iterable[Hole], note: Retained | None, paths: Sequence[Path]) -> Gap | None:
    """The gap of a log, which its last RETENTION record vouches for. None if nothing is missing.

    Raises:
        LogDamaged: the record does not name a hole, or names other hashes at its ends.
    """
    holes = list(holes)
    for hole in holes:
        fits = (
            note is not None
            and note.first <= hole.first
            and hole.last <= note.last
            and (hole.first != note.first or hole.before == note.before)
            and (hole.last != note.last or hole.hash == note.hash)
        )
        if not fits:
            reason = f"revision {hole.first} expected at its start: records or a whole segment are missing"
            raise LogDamaged(paths[hole.segment], 0, reason)
    return Gap(holes[0].first, holes[-1].last, note) if holes else None


def missing_after(io: FileIO, path: Path, next_first: int) -> Gap | None:
    """The revisions that are missing between a closed segment and revision `next_first`.

    It reads the group headers alone, and verifies nothing.
    """
    view, at, last = io.map(path), DATA_START, next_first - 1
    while view[at : at + len(GROUP_MAGIC)] == GROUP_MAGIC:
        try:
            head = read_group_head(view, at, at, path)
        except BadGroup:
            # Whoever reads the segment names the damage.
            return None
        last, at = head.revision + head.records - 1, at + max(head.size, 1)
    return Gap(last + 1, next_first - 1) if last + 1 < next_first else None
