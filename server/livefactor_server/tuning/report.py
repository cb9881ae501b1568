"""The results of a search: the winner, the preset and the baseline, in both parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from livefactor_kernels.spec.model import ModelSpec, spec_fields
from livefactor_kernels.spec.presets import preset
from livefactor_server.model import spec_codec
from livefactor_server.tuning.plan import Plan
from livefactor_server.tuning.rules import RULES
from livefactor_server.tuning.search import FinishedTrial, best_first


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        name: its label.
        search, rest: the metric in the search part and in the rest; None if it was not computed.
        events_per_s: events learned per CPU second, 0 if unknown.
        spec, rule: the spec and its rule; None and "" for the baseline.
    """

    name: str
    search: float
    rest: float | None = None
    events_per_s: float = 0.0
    spec: ModelSpec | None = None
    rule: str = ""

    @staticmethod
    def of_trial(one: FinishedTrial, name: str = "", rest: float | None = None) -> Row:
        """The line of a finished trial."""
        label = name or f"trial {one.number}"
        return Row(label, one.value, rest, one.events_per_s, one.spec, one.rule)

    def fields(self) -> dict[str, Any]:
        """The line as values for JSON."""
        spec = None if self.spec is None else spec_fields(self.spec)
        figures = {"search": self.search, "rest": self.rest, "events_per_s": round(self.events_per_s)}
        return {"name": self.name, **figures, "spec": spec}


def shown_fields(rows: list[Row]) -> dict[str, str]:
    """The searched fields of the rules in these lines, and their short names for people."""
    axes = dict.fromkeys(axis.field for row in rows if row.rule for axis in RULES[row.rule].axes)
    short = {"optimizer.learning_rate": "rate", "optimizer.bias_learning_rate": "bias", "negatives": "neg"}
    short["adaptive_rate.window"] = "window"
    return {field: short.get(field, field) for field in axes}


@dataclass(frozen=True, slots=True)
class Report:
    """The lines of the winner, the preset and the baseline.

    `trials` counts the finished trials, and `stopped` those that were stopped early. `searched` is
    the range of judged events in the search part, and `events` the size of the stream.
    """

    task: str
    metric: str
    spec: ModelSpec
    rule: str
    winner: Row
    preset: Row
    naive: Row
    trials: int
    stopped: int
    searched: tuple[int, int]
    events: int

    def lines(self) -> dict[str, float]:
        """The horizontal lines of the picture."""
        return {row.name: row.search for row in (self.preset, self.naive)}

    def notes(self, file: str) -> list[str]:
        """The comments of the spec file: its origin and its results."""
        first, last = self.searched
        return [
            f"Found by `livefactor tune` for {self.task} in {file}: the best of {self.trials} trials.",
            f"{self.metric}, test-then-learn     events {first:,}-{last:,}, searched     {last:,}-{self.events:,}, held out",
            *(
                f"{row.name:28} {row.search:>10.4f} {row.rest:>10.4f}"
                for row in (self.winner, self.preset, self.naive)
            ),
        ]

    def fields(self) -> dict[str, Any]:
        """The results as values for JSON."""
        rows = {name: getattr(self, name).fields() for name in ("winner", "preset", "naive")}
        counts = {"trials": self.trials, "stopped": self.stopped}
        return {"task": self.task, "metric": self.metric, "rule": self.rule, **counts, **rows}


def make_report(
    plan: Plan,
    done: list[FinishedTrial],
    task: str,
    on_events: Callable[[int, int], None] = lambda at, learned: None,
) -> Report:
    """Evaluates the winner and the preset of the task on the rest of the stream.

    Args:
        plan: the stream and its judged events.
        done: the finished trials.
        task: one of `TASKS`.
        on_events: called with (0 for the winner or 1 for the preset, events learned).

    Raises:
        ValueError: no trial ran to the end.
    """
    best = best_first(done, plan)
    if not best:
        raise ValueError("no trial ran to the end: allow more --minutes")
    base = spec_codec.decode(spec_codec.encode(preset(task)))
    winner, rest = best[0], plan.rest(best[0].spec, lambda at: on_events(0, at)).value
    # The preset is the first trial of its rule, unless the user asked for other rules or time was
    # short.
    rule = next(name for name, each in RULES.items() if each.start == preset(task))
    known = next((one for one in best if one.spec == base), None)
    in_search = known or plan.search(base, lambda *_: None, lambda _: None)
    base_rest = plan.rest(base, lambda at: on_events(1, at)).value
    naive = plan.naive()
    return Report(
        task=task,
        metric=plan.metric.label,
        spec=winner.spec,
        rule=winner.rule,
        winner=Row.of_trial(winner, f"best: trial {winner.number}", rest),
        preset=Row(f"preset {task}", in_search.value, base_rest, in_search.events_per_s, base, rule),
        naive=Row(plan.metric.naive_label, *naive),
        trials=len(done),
        stopped=sum(one.stopped for one in done),
        searched=(plan.start, plan.searched),
        events=len(plan.stream),
    )
