"""When a contest begins, on which events it judges, and what it may cost.

- The first contest of a model with preset `auto` judges from its first WARM_UP events on. Its
  process starts when the first round is there.
- Then challengers come back when the judge has found drift for the worse and a quarter more events
  are there than at the last contest, and when the events have doubled. They are judged on the
  events that follow. A snapshot of the
  champion is taken at this point, so that the contest need not learn it again.
- A challenger that was added by hand is judged on the last RECENT events at once.

The allowance. The CPU time of all contests of a model stays below the time that the champion takes
to learn `allowance(events)` events. Each contest may take ALLOWED_S_LEAST all the same. So a
contest may lag behind the log, and a later contest may leave out dear challengers. A contest with
challengers that were added by hand is not limited.
"""

from __future__ import annotations

from math import ceil

from livefactor_server.challenging.contest import FIRST_ROUND_EVENTS, ROUNDS
from livefactor_server.challenging.messages import Report
from livefactor_server.challenging.notes import Notes, Plan

WARM_UP = 1_000
RECENT = FIRST_ROUND_EVENTS * 2 ** (ROUNDS - 1)
"""The events of all rounds."""
ALLOWED_S_LEAST = 5.0
"""CPU seconds that a contest may take, however short the log and however fast the champion is."""

FIRST_EVENTS, FIRST_SHARE, LATER_SHARE = 1_000_000, 0.75, 0.15


def allowance(events: int) -> float:
    """What contests may cost by now, in events that the champion learns, for a log of `events`.

    It is FIRST_SHARE of what the champion took for the first FIRST_EVENTS events, and LATER_SHARE
    of it beyond. FIRST_SHARE is below 1, because a contest measures the champion's time at its
    first events, which take longer.
    """
    return FIRST_SHARE * min(events, FIRST_EVENTS) + LATER_SHARE * max(0, events - FIRST_EVENTS)


def affordable_at(plan: Plan, report: Report, spent_s: float, champion_s: float) -> int:
    """The number of events of the log at which a contest that begins again can be completed.

    Args:
        plan: the contest.
        report: how far it came, and what this cost.
        spent_s: CPU seconds of all contests so far.
        champion_s: CPU seconds in which the champion learns an event, above 0.
    """
    whole_s = report.cpu_s * (plan.judge_from + RECENT) / max(1, report.learned)
    cost: float = (spent_s + whole_s) / champion_s
    first = FIRST_SHARE * FIRST_EVENTS
    return ceil(cost / FIRST_SHARE if cost <= first else FIRST_EVENTS + (cost - first) / LATER_SHARE)


def next_plan(notes: Notes, events: int, automatic: bool, drifted: bool) -> Plan | None:
    """The contest that begins now, or None.

    Args:
        notes: what is known of the model's contests.
        events: number of events of the log.
        automatic: whether the model looks for a better spec by itself.
        drifted: whether drift was found since the last contest.
    """
    if any(not each.judged for each in notes.added):
        if events < WARM_UP + FIRST_ROUND_EVENTS:
            return None
        return Plan(max(WARM_UP, events - RECENT), by_hand=True)
    if not automatic:
        return None
    if not notes.last_events:
        return Plan(WARM_UP) if events >= WARM_UP + FIRST_ROUND_EVENTS else None
    rested = events >= notes.last_events + max(FIRST_ROUND_EVENTS, notes.last_events // 4)
    if (drifted and rested) or events >= 2 * notes.last_events:
        return Plan(events, follows=True)
    return None


def is_ready(plan: Plan, events: int) -> bool:
    """Whether the process of a contest has something to do: its next round is there."""
    return events >= max(plan.judge_from + FIRST_ROUND_EVENTS, plan.resume_at)


def affordable(costs_s: dict[str, float], plan: Plan, champion_s: float, left_s: float) -> list[str]:
    """The challengers that a contest can afford, the cheapest first.

    Args:
        costs_s: CPU seconds per event of each challenger, 0 if not known.
        plan: the contest.
        champion_s: CPU seconds in which the champion learns an event, 0 if not known.
        left_s: CPU seconds that are left of the allowance.
    """
    left_s = max(left_s, ALLOWED_S_LEAST) - RECENT * champion_s
    chosen = []
    for name in sorted(costs_s, key=lambda name: costs_s[name]):
        left_s -= costs_s[name] * (plan.judge_from + FIRST_ROUND_EVENTS)
        if left_s >= 0 or not champion_s:
            chosen.append(name)
    return chosen
