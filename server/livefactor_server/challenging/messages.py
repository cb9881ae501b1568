"""What a server and the process of its contest tell each other: one JSON object a line.

The server first sends a `Task`, and then a `Go` whenever the log has grown. The process answers
with a `Report` about once a second, whenever it waits, and at the end. It ends when its standard
input closes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant: its name, and the logged bytes of its spec in hex."""

    name: str
    spec: str

    @property
    def spec_body(self) -> bytes:
        """The logged bytes of the spec."""
        return bytes.fromhex(self.spec)


@dataclass(frozen=True, slots=True)
class Task:
    """One contest.

    Attributes:
        model: the name of the model.
        folder: its folder.
        entries: the contestants, the champion first.
        judge_from: number of events that are learned before judging begins.
        cpu_share: maximum share of one core.
        memory_bytes_max: maximum bytes of memory of the states of all contestants together.
        key: the key of the data at rest in hex. Empty for plain data.
    """

    model: str
    folder: str
    entries: tuple[Entry, ...]
    judge_from: int
    cpu_share: float
    memory_bytes_max: int
    key: str = field(default="", repr=False)

    def to_line(self) -> str:
        """The task as a line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Task:
        """The task of a line."""
        fields = json.loads(line)
        return cls(**fields | {"entries": tuple(Entry(**each) for each in fields["entries"])})


@dataclass(frozen=True, slots=True)
class Go:
    """How far the process may go.

    Attributes:
        until: the last revision that it may read, which is synced and applied.
        allowed: the CPU time that the contest may have taken by then, in events that the champion
            learns in this time. None does not limit it.
    """

    until: int
    allowed: float | None

    def to_line(self) -> str:
        """The message as a line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Go:
        """The message of a line."""
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Figures:
    """A contestant's figures in a report.

    Attributes:
        name: its name.
        standing: a `contest.Standing`.
        mean: its mean gain in the round.
        difference, error: mean difference to the champion, and its standard error; None for the
            error if there are too few users.
        events, users: what was judged in the round.
        event_s: CPU seconds for each event that was learned: learning, and its share of judging.
            For the champion only learning. 0 if it learned nothing.
    """

    name: str
    standing: str
    mean: float = 0.0
    difference: float = 0.0
    error: float | None = None
    events: int = 0
    users: int = 0
    event_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """How a contest stands.

    Attributes:
        revision: the last revision that all running contestants have learned.
        learned: events of the log up to it.
        judged: judged events so far.
        round: the number of complete rounds.
        round_end: number of learned events at which the running round ends.
        cpu_s: CPU seconds so far.
        is_waiting: whether it has learned all that it may, or may take no more CPU time.
        is_too_dear: whether it waits, because it may take no more CPU time.
        over: whether the contest has ended.
        winner: the name of the challenger that won, or "".
        figures: of all contestants, the champion's first.
    """

    revision: int = 0
    learned: int = 0
    judged: int = 0
    round: int = 0
    round_end: int = 0
    cpu_s: float = 0.0
    is_waiting: bool = False
    is_too_dear: bool = False
    over: bool = False
    winner: str = ""
    figures: tuple[Figures, ...] = field(default_factory=tuple)

    def fields(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> Report:
        """The report of plain values."""
        return cls(**fields | {"figures": tuple(Figures(**each) for each in fields["figures"])})

    def to_line(self) -> str:
        """The report as a line."""
        return json.dumps(self.fields()) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Report:
        """The report of a line."""
        return cls.of_fields(json.loads(line))
