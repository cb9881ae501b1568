"""The table of the part `calls`: one line for each kind of call and number of callers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from benchmarks.pages import with_verdict
from benchmarks.speed.callers import CALLS
from benchmarks.speed.calls import CALLERS

TITLE = "Calls"
HEAD = ("call", "callers", "calls/s", "÷ plain", "goal", "p50", "p99", "server CPU a call")
LABELS = {
    "plain": "plain grpcio, a pool of threads",
    "plain_loop": "plain grpcio, an event loop",
    "score_1": "`Score`, 1 candidate",
    "score_500": "`Score`, 500 candidates",
    "top_100": "`Score`, top 100 of 100 thousand",
    "update_1": "`ApplyUpdates`, 1 event",
    "update_16": "`ApplyUpdates`, 16 events",
    "stream_512": "`StreamUpdates`, a batch of 512 events",
}
GOALS = {
    **{("score_500", callers): "at least 0.75" for callers in CALLERS},
    ("update_1", 8): "at least 0.50",
    ("update_1", 32): "at least 0.65",
}
"""(call, callers) -> the goal for its rate relative to plain grpcio with a pool of threads."""

_UNITS = {"per_s": "{:,.0f}", "p50_ms": "{:.2f} ms", "p99_ms": "{:.2f} ms", "cpu_us": "{:,.0f} µs"}

SHARES = ("append", "place", "apply")
"""The steps of a commit, of which the page shows the share of the time that they work."""

Figure = float | str | None


def _cells(figures: Mapping[str, Figure]) -> Iterator[tuple[str, list[str]]]:
    """The name of each call, and its line of the table without the label."""
    for name in CALLS:
        for callers in CALLERS:
            values = {unit: figures.get(f"call_{name}_{callers}_{unit}") for unit in _UNITS}
            if None in values.values():
                continue
            ratio = figures.get(f"ratio_call_{name}_{callers}_to_plain")
            rate, *rest = (text.format(values[unit]) for unit, text in _UNITS.items())
            goal = with_verdict(GOALS.get((name, callers), ""), ratio)
            yield name, [str(callers), rate, "" if ratio is None else f"{ratio:.2f}", goal, *rest]


def table(figures: Mapping[str, Figure]) -> Table | None:
    """The table for a terminal, without the goals. None if the part was not measured."""
    goal = HEAD.index("goal")
    head = HEAD[:goal] + HEAD[goal + 1 :]
    result = Table(*head, title=TITLE, title_justify="left", min_width=80)
    for column in result.columns[1:]:
        column.justify = "right"
    for name, cells in _cells(figures):
        result.add_row(name, *cells[: goal - 1], *cells[goal:])
    return result if result.row_count else None


def page(figures: Mapping[str, Figure]) -> list[str]:
    """The table's lines in docs/benchmarks.md."""
    lines = ["| " + " | ".join((LABELS[name], *cells)) + " |" for name, cells in _cells(figures)]
    if not lines:
        return []
    head = "| " + " | ".join(HEAD) + " |"
    rule = "|---|---:|---:|---:|---|---:|---:|---:|"
    return ["", f"### {TITLE}", "", head, rule, *lines, *_shares(figures)]


def _shares(figures: Mapping[str, Figure]) -> list[str]:
    """The table with the share of the time that each step of a commit works."""
    lines = []
    for name in CALLS:
        for callers in CALLERS:
            shares = [figures.get(f"call_{name}_{callers}_{step}_share") for step in SHARES]
            if all(isinstance(share, float | int) for share in shares):
                cells = [f"{share:.2f}" for share in (*shares, sum(map(float, shares)))]
                lines.append("| " + " | ".join((LABELS[name], str(callers), *cells)) + " |")
    if not lines:
        return []
    head = "| share of the time | callers | append | place | apply | sum |"
    return ["", head, "|---|---:|---:|---:|---:|---:|", *lines]
