"""The results of a search: the winner, the preset and the baseline, in both parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from livefactor_kernels.spec.model import ModelSpec, spec_fields
from livefactor_server.challenging.rules import RULES
from livefactor_server.tuning.plan import Plan
from livefactor_server.tuning.search import FinishedTrial, TimeIsUp, best_first, timed


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
    """The lines of the winner, of the best preset and of the baseline.

    `trials` counts the finished trials, and `stopped` those that were stopped early. `searched` is
    the range of judged events in the search part, and `events` the size of the stream. `reason`
    says why the winner is not simply the best trial; "" if it is.
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
    reason: str = ""

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
                f"{row.name:28} {row.search:>10.4f} {_figure(row.rest):>10}"
                for row in (self.winner, self.preset, self.naive)
            ),
            *([f"Note: {self.reason}."] if self.reason else []),
        ]

    def fields(self) -> dict[str, Any]:
        """The results as values for JSON."""
        rows = {name: getattr(self, name).fields() for name in ("winner", "preset", "naive")}
        counts = {"trials": self.trials, "stopped": self.stopped, "reason": self.reason}
        return {"task": self.task, "metric": self.metric, "rule": self.rule, **counts, **rows}


def _figure(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


def make_report(
    plan: Plan,
    finished: list[FinishedTrial],
    task: str,
    presets: int,
    until: float = float("inf"),
    on_events: Callable[[int, int], None] = lambda at, learned: None,
) -> Report:
    """Evaluates the best trial and the best preset on the rest, and chooses between the two.

    The best trial is the maximum of many figures of the search part. If the preset is at least as
    good on the rest, the preset is chosen.

    Args:
        plan: the stream and its judged events.
        finished: the finished trials.
        task: one of `TASKS`.
        presets: number of presets that were to be tried.
        until: when the time is up, as `time.monotonic`. A figure that is missing then is None.
        on_events: called with (0 for the best trial or 1 for the preset, events learned).

    Raises:
        ValueError: not all presets were tried, so that one of them may be the best spec.
    """
    best = best_first(finished, plan)
    tried = [one for one in best if one.preset]
    if len(tried) < presets or not best:
        raise ValueError(
            f"the time was up when {len(tried)} of {presets} presets were tried; nothing was written, because"
            " another preset may be better. The same command goes on from there; allow more --minutes"
        )
    known = tried[0] if tried else best[0]
    base_rest = _rest(plan, known, until, lambda at: on_events(1, at))
    winner, rest, reason = best[0], base_rest, ""
    if winner.spec != known.spec:
        rest = _rest(plan, winner, until, lambda at: on_events(0, at))
    if rest is not None and base_rest is not None and not plan.metric.better(rest, base_rest):
        if winner.spec != known.spec:
            reason = f"trial {winner.number} was not better than the preset on the rest"
        winner, rest = known, base_rest
    elif rest is None or base_rest is None:
        reason = "the time was up before the rest was judged"
    return Report(
        task=task,
        metric=plan.metric.label,
        spec=winner.spec,
        rule=winner.rule,
        winner=Row.of_trial(winner, f"best: {_name(winner)}", rest),
        preset=Row.of_trial(known, _name(known), base_rest),
        naive=Row(plan.metric.naive_label, *plan.naive()),
        trials=len(finished),
        stopped=sum(one.stopped for one in finished),
        searched=(plan.start, plan.search_events),
        events=len(plan.stream),
        reason=reason,
    )


def _name(one: FinishedTrial) -> str:
    return f"preset {one.preset}" if one.preset else f"trial {one.number}"


def _rest(plan: Plan, one: FinishedTrial, until: float, on_events: Callable[[int], None]) -> float | None:
    try:
        return plan.rest(one.spec, timed(on_events, until)).value
    except TimeIsUp:
        return None
