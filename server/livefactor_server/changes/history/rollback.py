"""Rollback: from this revision on, the state is as if some earlier records had never come.

Let E be the skipped revisions of the last ROLLBACK record up to revision r. Then state(r) is the
state after the records 1 to r, where a record whose revision is in E changes no table: it advances
the revision and the hash chain, and it settles its producer. So a producer that sends such a batch
again gets its first answer, and the next sequence follows. Every other record has the effect that
it would have had alone: draws depend on its own revision, and rows are given out in the order of
the records that are left.

Interactions, labels, availability, embeddings, features, factors, deltas, evictions, batches in
quarantine and decisions on them can be skipped. Like SWITCH, the record does not change a state
step by step: whoever wants the state at or after it makes one from the log. A state with other
skipped revisions passes the record without effect.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from livefactor_server.changes.change import Change, Record
from livefactor_server.log.store import Kind
from livefactor_server.model.state import ModelState

Ranges = tuple[tuple[int, int], ...]
"""Revisions as pairs (first, last), ascending and apart."""

SKIPPABLE = frozenset(
    {
        Kind.INTERACTIONS,
        Kind.LABELS,
        Kind.AVAILABILITY,
        Kind.EMBEDDINGS,
        Kind.FEATURES,
        Kind.DROPPED_FEATURES,
        Kind.FACTORS,
        Kind.FACTOR_DELTAS,
        Kind.MAP_SUMS,
        Kind.EVICT,
        Kind.HELD,
        Kind.ACCEPTED,
        Kind.DROPPED,
    }
)


def ranges_of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The union of ranges."""
    made: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if made and first <= made[-1][1] + 1:
            made[-1] = made[-1][0], max(last, made[-1][1])
        else:
            made.append((first, last))
    return tuple(made)


def up_to(ranges: Ranges, revision: int) -> Ranges:
    """The part of ranges that ends at a revision."""
    return tuple((first, min(last, revision)) for first, last in ranges if first <= revision)


def is_in(ranges: Ranges, revision: int) -> bool:
    """Whether a revision is in ranges."""
    place = bisect_right(ranges, (revision, 1 << 64))
    return place > 0 and revision <= ranges[place - 1][1]


def are_in(ranges: Ranges, first: int, count: int) -> np.ndarray:
    """Which of the revisions from `first` on are in ranges, bool[count]."""
    found = np.zeros(count, bool)
    for start, stop in ranges:
        found[max(0, start - first) : max(0, stop + 1 - first)] = True
    return found


@dataclass(frozen=True, slots=True)
class Rollback:
    """What a ROLLBACK record says.

    Attributes:
        skipped: the revisions that are skipped from this record on.
        before: those that were skipped before it.
        to: the revision whose state comes back, or None if records were chosen.
    """

    skipped: Ranges
    before: Ranges
    to: int | None

    def to_body(self) -> bytes:
        """The body of the record."""
        fields = {"skipped": self.skipped, "before": self.before, "to": self.to}
        return json.dumps(fields, sort_keys=True).encode()

    @classmethod
    def from_body(cls, body: bytes) -> Rollback:
        """Reads the body of a record.

        Raises:
            ValueError: the body is damaged.
        """
        try:
            fields = json.loads(body)
            skipped, before = (
                tuple((int(first), int(last)) for first, last in fields[name])
                for name in ("skipped", "before")
            )
            return cls(skipped, before, None if fields["to"] is None else int(fields["to"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the body of a ROLLBACK record is damaged: {error}") from None


@dataclass(slots=True)
class RollbackChange(Change):
    """The body is that of `Rollback`."""

    body: bytes

    kind: ClassVar[Kind] = Kind.ROLLBACK

    @property
    def rows(self) -> int:
        """Always 0."""
        return 0

    @classmethod
    def from_log(cls, body: bytes) -> RollbackChange:
        """Keeps the logged body."""
        return cls(body)

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Does nothing, because what a state skips never changes."""

    def describe(self) -> str:
        """What comes back, and the number of revisions that are skipped since then."""
        found = Rollback.from_body(self.body)
        what = "without chosen records" if found.to is None else f"back to revision {found.to}"
        count = sum(last - first + 1 for first, last in found.skipped)
        return f"{what}; {count} revisions are skipped from here on"


@dataclass(slots=True)
class SkippedChange(Change):
    """Stands for a change that a state skips. It is never logged.

    Attributes:
        body: as in the log.
        count: the number of rows, which the answer to a retry has.
    """

    body: bytes
    count: int

    kind: ClassVar[Kind] = Kind.ROLLBACK

    @property
    def rows(self) -> int:
        """Number of rows that the record had."""
        return self.count

    @classmethod
    def from_log(cls, body: bytes) -> SkippedChange:
        """There is no logged form."""
        raise AssertionError("a skipped change is never logged")

    @classmethod
    def apply(cls, state: ModelState, records: Sequence[Record]) -> None:
        """Does nothing. The caller settles the producers."""

    def describe(self) -> str:
        """That it is skipped."""
        return f"{self.count} rows, skipped"
