"""The records that say what the rest of a log means. A replay needs them before it begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from livefactor_server.log.columns import KIND, Columns
from livefactor_server.log.format import Entry, Kind, Record, parts_of

ALONE = frozenset({Kind.SWITCH, Kind.ROLLBACK, Kind.ERASE, Kind.ERASED, Kind.TERM})
"""Kinds of records that are a commit of their own."""

OPENING = frozenset({Kind.ERASE, Kind.ERASED})
"""Kinds of records that begin a segment, so that all earlier ones can be rewritten."""


@dataclass(slots=True)
class Acts:
    """Bodies of the known records of five kinds, by revision. A later object replaces this one."""

    switches: dict[int, bytes] = field(default_factory=dict)
    rollbacks: dict[int, bytes] = field(default_factory=dict)
    erases: dict[int, bytes] = field(default_factory=dict)
    erased: dict[int, bytes] = field(default_factory=dict)
    terms: dict[int, bytes] = field(default_factory=dict)

    def note(self, records: Sequence[Record]) -> None:
        """Adds those among the records."""
        if isinstance(records, Columns):
            places = _are_acts(records).nonzero()[0].tolist()
            records = [records[number] for number in places]
        for record in records:
            if record.kind in ALONE:
                self._of(record.kind)[record.revision] = bytes(record.body)

    def _of(self, kind: int) -> dict[int, bytes]:
        return {
            Kind.SWITCH: self.switches,
            Kind.ROLLBACK: self.rollbacks,
            Kind.ERASE: self.erases,
            Kind.ERASED: self.erased,
            Kind.TERM: self.terms,
        }[Kind(kind)]

    def spec_at(self, revision: int) -> bytes:
        """The bytes of the spec of the last SWITCH record up to a revision; empty without one."""
        return (
            self.switches[max(before)] if (before := [at for at in self.switches if at <= revision]) else b""
        )

    @property
    def term(self) -> int:
        """The newest known term. 0 without one."""
        return max(map(term_of, self.terms.values()), default=0)

    def with_one(self, kind: int, revision: int, body: bytes) -> Acts:
        """These records and one more."""
        made = self.after(Acts())
        made._of(kind)[revision] = body
        return made

    def with_entry(self, entry: Entry) -> Acts:
        """These records and one that was appended."""
        return self.with_one(entry.kind, entry.revision, b"".join(parts_of(entry.body)))

    def after(self, earlier: Acts) -> Acts:
        """These records and earlier ones."""
        return Acts(
            {**earlier.switches, **self.switches},
            {**earlier.rollbacks, **self.rollbacks},
            {**earlier.erases, **self.erases},
            {**earlier.erased, **self.erased},
            {**earlier.terms, **self.terms},
        )


def term_of(body: bytes) -> int:
    """The term of a TERM record.

    Raises:
        ValueError: the body is damaged. It may be a subclass.
    """
    try:
        return int(json.loads(body)["term"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the body of a TERM record is damaged: {error}") from None


def _are_acts(records: Columns) -> np.ndarray:
    kinds = records.fields[:, KIND]
    found: np.ndarray = np.zeros(len(records), bool)
    for kind in ALONE:
        found |= kinds == kind
    return found
