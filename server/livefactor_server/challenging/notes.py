"""What is known of a model's contests. It survives a restart in a file of the model's folder.

A contest is a function of the log and its plan. So the file holds no state of a running contest: a
restarted server begins it again. Without the file, the first contest is held again, with the same
result.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from livefactor_server.challenging.messages import Entry, Report
from livefactor_server.snapshots.safetensors_writer import sync_folder

FILE = "challengers.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """A contest that has begun.

    Attributes:
        judge_from: number of events that are learned before judging begins.
        entries: the contestants, the champion first. Empty until the process starts first.
        by_hand: whether its challengers were added by hand.
        follows: whether it judges events that follow a snapshot of the champion.
        resume_at: the process starts again when the log has so many events.
    """

    judge_from: int
    entries: tuple[Entry, ...] = ()
    by_hand: bool = False
    follows: bool = False
    resume_at: int = 0


@dataclass(frozen=True, slots=True)
class Added:
    """A challenger that was added by hand.

    Attributes:
        entry: its name and spec.
        judged: whether a contest has judged it.
        share, salt: the share of the users that it answers, and the salt of their hash in hex.
    """

    entry: Entry
    judged: bool = False
    share: float = 0.0
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes of one model.

    Attributes:
        settled: whether somebody has ended the search.
        added: the challengers that were added by hand.
        plan: the running contest, or None.
        last: the last report of the last complete contest, or None.
        last_events: number of events of the log when it ended, 0 without one.
        contests: number of complete contests.
        spent_s: CPU seconds of all contests.
        event_s: CPU seconds per event of each spec that was in a contest, by name.
    """

    settled: bool = False
    added: tuple[Added, ...] = ()
    plan: Plan | None = None
    last: Report | None = None
    last_events: int = 0
    contests: int = 0
    spent_s: float = 0.0
    event_s: dict[str, float] = field(default_factory=dict)

    def with_end(self, report: Report, events: int) -> Notes:
        """The notes after a contest has ended with a report."""
        judged = {each.name for each in report.figures}
        return replace(
            self,
            added=tuple(
                replace(each, judged=each.judged or each.entry.name in judged) for each in self.added
            ),
            plan=None,
            last=report,
            last_events=events,
            contests=self.contests + 1,
        )

    def with_cost(self, report: Report, seconds: float) -> Notes:
        """The notes with further CPU seconds, and with the costs that a report shows."""
        costs = {each.name: each.event_s for each in report.figures if each.event_s}
        return replace(self, spent_s=self.spent_s + seconds, event_s=self.event_s | costs)


def load(folder: Path) -> Notes:
    """The notes of a model. A missing file gives empty notes.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return Notes()
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        added = tuple(Added(**each | {"entry": Entry(**each["entry"])}) for each in fields["added"])
        plan = fields["plan"]
        if plan is not None:
            plan = Plan(**plan | {"entries": tuple(Entry(**each) for each in plan["entries"])})
        last = None if fields["last"] is None else Report.of_fields(fields["last"])
        return Notes(**fields | {"added": added, "plan": plan, "last": last})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def save(folder: Path, notes: Notes) -> None:
    """Writes the notes durably. Raises OSError."""
    path = folder / FILE
    temporary = path.with_suffix(".new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(notes), file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_folder(folder)
