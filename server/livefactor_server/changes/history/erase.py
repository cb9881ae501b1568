"""Erase: users and items are forgotten, and later the state is that of a model without them.

Two records do it. ERASE, at revision e, names the subjects. From e on their rows are those of new
keys (`livefactor_kernels.tables.clearing`), their labels are gone, and their items are available.
ERASED, at revision s, says that the state is another one from s on: the state after the records 1
to s without the rows that name a subject of e, as far as the records are older than e. A record
that has lost rows has the effect that the rows left would have had in a record of their own, and
draws count the rows that are left. A record without a row left advances the revision and the hash
chain. Either settles its producer with the answer that it was given. So a producer that sends such
a batch again gets its first answer, whatever is in the batch: the salt of its hash is destroyed.
The subjects may come back after e as new ids.

Like ROLLBACK, ERASED does not change a state step by step: whoever wants the state at or after it
makes one from the log. After ERASED the rows leave the payloads of the log (`log/erasing.py`), and
so do the subjects in ERASE. Then nothing in the log names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.changes.bodies import decode_bodies
from livefactor_server.changes.change import Change, Header, Record, ReplayError, WireChange
from livefactor_server.changes.history.rollback import SkippedChange
from livefactor_server.log.columns import Columns
from livefactor_server.log.format import NO_HASH, NO_SALT
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState

SUBJECTS_MAX = 1000
"""Maximum number of users and items of one ERASE record."""


@dataclass(frozen=True, slots=True)
class Subjects:
    """Ids that are forgotten, ascending."""

    users: tuple[int, ...] = ()
    items: tuple[int, ...] = ()

    def to_body(self) -> bytes:
        """The body of an ERASE record."""
        return json.dumps({"items": self.items, "users": self.users}, sort_keys=True).encode()

    @classmethod
    def from_body(cls, body: bytes) -> Subjects:
        """Reads the body of an ERASE record. It is empty after the subjects were erased from it.

        Raises:
            ValueError: the body is damaged.
        """
        if not body:
            return cls()
        try:
            fields = json.loads(body)
            return cls(*(tuple(int(each) for each in fields[name]) for name in ("users", "items")))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the body of an ERASE record is damaged: {error}") from None

    def __bool__(self) -> bool:
        return bool(self.users or self.items)

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """(users, items), uint64[any] each."""
        return np.array(self.users, np.uint64), np.array(self.items, np.uint64)


Erasures = tuple[tuple[int, Subjects], ...]
"""(revision of the ERASE record, its subjects), ascending."""


def in_force(erases: Mapping[int, bytes], erased: Mapping[int, bytes], revision: int) -> Erasures:
    """The erasures of a state at a revision. The maps have the bodies of ERASE and ERASED records.

    An erasure whose subjects are gone from the log needs no further work.
    """
    found = [Erased.from_body(body).erase for at, body in erased.items() if at <= revision]
    pairs = [(at, Subjects.from_body(erases.get(at, b""))) for at in sorted(found)]
    return tuple((at, subjects) for at, subjects in pairs if subjects)


def named(change: Change, subjects: Subjects) -> np.ndarray:
    """The rows of a change that name a subject, ascending, int64[n]."""
    if not isinstance(change, WireChange):
        return np.empty(0, np.int64)
    found = np.zeros(change.rows, bool)
    for ids, wanted in zip(change.named_ids, subjects.sides, strict=True):
        if ids.size and wanted.size:
            found |= np.isin(ids, wanted)
    return np.flatnonzero(found)


def left_of(change: Change, revision: int, erasures: Erasures) -> Change:
    """The change without the rows that name a subject of a later erasure; the same if none does."""
    left = change
    for at, subjects in erasures:
        if revision < at and isinstance(left, WireChange) and (rows := named(left, subjects)).size:
            left = without(left, rows)
    return left


def name_subjects(records: Columns, erasures: Erasures) -> np.ndarray:
    """Which records may have rows that name a subject of a later erasure, bool[n].

    Those with an unusual body count, too.
    """
    found = np.zeros(len(records), bool)
    if not erasures or records.revision >= erasures[-1][0]:
        return found
    start = 0
    while start < len(records):
        rest = records[start:]
        assert isinstance(rest, Columns)
        events, users, items = decode_bodies(rest)
        for at, subjects in erasures:
            sides = zip((users, items), subjects.sides, strict=True)
            rows = np.flatnonzero(np.logical_or(*(np.isin(ids, wanted) for ids, wanted in sides)))
            places = start + np.searchsorted(events.ends, rows, side="right")
            found[places[places + records.revision < at]] = True
        start += len(events.ends)
        if start < len(records):
            found[start] = True
            start += 1
    return found


def without(change: WireChange, rows: np.ndarray) -> Change:
    """The change without rows int64[n]. One that loses all of them has no effect."""
    return SkippedChange(b"", 0) if rows.size == change.rows else change.without_rows(rows)


def settling(header: Header, accepted: int) -> Header:
    """The header of a record that has lost rows, with which its producer is settled."""
    return replace(header, salt=NO_SALT, received_hash=NO_HASH, accepted=accepted)


@dataclass(slots=True)
class EraseChange(Change):
    """The body is that of `Subjects`."""

    subjects: Subjects
    body: bytes

    kind: ClassVar[Kind] = Kind.ERASE

    @property
    def rows(self) -> int:
        """Number of subjects."""
        return len(self.subjects.users) + len(self.subjects.items)

    @classmethod
    def of(cls, subjects: Subjects) -> EraseChange:
        """The change of subjects."""
        return cls(subjects, subjects.to_body())

    @classmethod
    def from_log(cls, body: bytes) -> EraseChange:
        """Decodes a logged body."""
        return cls(Subjects.from_body(body), body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Clears the rows, the labels and the marks of the subjects.

        Raises:
            ReplayError: the backend cannot clear rows.
        """
        for record in records:
            change, backend = record.change, state.backend
            assert isinstance(change, EraseChange)
            for side, ids in enumerate(change.subjects.sides):
                table, published = (backend.users, backend.items)[side], backend.published[side]
                rows = table.find(ids, published)
                if (rows != NO_ROW).any():
                    if state.backend_name == "cuda":
                        raise ReplayError("erase: backend cuda lacks this part (docs/gpu.md)")
                    backend.clear(side, rows[rows != NO_ROW], record.header.revision)
                if ids.size:
                    state.labels[side].put(ids, [""] * len(ids))
            if (items := change.subjects.sides[ITEMS]).size:
                state.marks.put(items, True)

    def describe(self) -> str:
        """The number of users and of items."""
        if not self.subjects:
            return "the subjects are erased"
        return f"forget {len(self.subjects.users)} users and {len(self.subjects.items)} items"


@dataclass(frozen=True, slots=True)
class Erased:
    """What an ERASED record says.

    Attributes:
        erase: the revision of the ERASE record.
        records, rows: numbers of older records that name a subject, and of rows in them.
    """

    erase: int
    records: int
    rows: int

    def to_body(self) -> bytes:
        """The body of the record."""
        fields = {"erase": self.erase, "records": self.records, "rows": self.rows}
        return json.dumps(fields, sort_keys=True).encode()

    @classmethod
    def from_body(cls, body: bytes) -> Erased:
        """Reads the body of a record.

        Raises:
            ValueError: the body is damaged.
        """
        try:
            fields = json.loads(body)
            return cls(*(int(fields[name]) for name in ("erase", "records", "rows")))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the body of an ERASED record is damaged: {error}") from None


@dataclass(slots=True)
class ErasedChange(Change):
    """The body is that of `Erased`."""

    body: bytes

    kind: ClassVar[Kind] = Kind.ERASED

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def from_log(cls, body: bytes) -> ErasedChange:
        """Keeps the logged body."""
        return cls(body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Does nothing, because the erasures of a state never change."""

    def describe(self) -> str:
        """What the state is without from here on."""
        found = Erased.from_body(self.body)
        return (
            f"without the subjects of revision {found.erase} from here on: {found.rows} rows of "
            f"{found.records} records"
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an EVIDENCE record says: the SHA-256 of the report of the ERASE record at a revision."""

    erase: int
    report: bytes

    def to_body(self) -> bytes:
        """The body of the record."""
        return json.dumps({"erase": self.erase, "report": self.report.hex()}, sort_keys=True).encode()

    @classmethod
    def from_body(cls, body: bytes) -> Evidence:
        """Reads the body of a record.

        Raises:
            ValueError: the body is damaged.
        """
        try:
            fields = json.loads(body)
            return cls(int(fields["erase"]), bytes.fromhex(fields["report"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the body of an EVIDENCE record is damaged: {error}") from None


class EvidenceChange(ErasedChange):
    """The body is that of `Evidence`."""

    kind: ClassVar[Kind] = Kind.EVIDENCE

    def describe(self) -> str:
        """The hash of the report."""
        found = Evidence.from_body(self.body)
        return f"the report of the erasure at revision {found.erase} has hash {found.report.hex()}"


assert (USERS, ITEMS) == (0, 1)
