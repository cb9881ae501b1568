"""Pictures: the trials of a search, and the methods of an evaluation."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from livefactor_server.challenging.rules import RULES
from livefactor_server.tuning.drawing import grid, write_svg
from livefactor_server.tuning.evaluation import Result
from livefactor_server.tuning.metrics import Metric
from livefactor_server.tuning.search import FinishedTrial

PALETTE = ("#3b6fb6", "#7da7d9", "#2a7f62", "#8c6d1f", "#e07b39", "#c0392b")
APART = tuple(PALETTE[place] for place in (0, 4, 2, 5, 1, 3))
"""The same colours. Neighbours are easy to tell apart, because few methods are drawn."""

GREY = "#5f5f5f"


def draw(path: Path, finished: list[FinishedTrial], metric: Metric, lines: Mapping[str, float]) -> None:
    """Writes the picture of finished trials.

    At least one of them ran to the end. `lines` are horizontal lines by name.
    """
    write_svg(path, lambda: _picture(finished, metric, lines))


def _picture(finished: list[FinishedTrial], metric: Metric, lines: Mapping[str, float]) -> Any:
    figure, axes = grid(1, 2)
    over, against = axes[0]
    over.set(title="every trial (hollow: stopped early)", xlabel="trial", ylabel=metric.label)
    against.set(title="trials that ran to the end", ylabel=metric.label)
    against.set_xlabel("millions of events learned per CPU second")
    for name, one in _by_rule(finished).items():
        colour = PALETTE[list(RULES).index(name) % len(PALETTE)]
        complete, stopped = [t for t in one if not t.stopped], [t for t in one if t.stopped]
        over.scatter(
            [t.number for t in complete], [t.value for t in complete], color=colour, label=name, zorder=3
        )
        over.scatter([t.number for t in stopped], [t.value for t in stopped], edgecolor=colour, color="none")
        against.scatter(
            [t.events_per_s / 1e6 for t in complete], [t.value for t in complete], color=colour, zorder=3
        )
    complete = [t for t in finished if not t.stopped]
    best = max if metric.larger_is_better else min
    so_far = list(accumulate((t.value for t in complete), best))
    over.step([t.number for t in complete], so_far, where="post", color=GREY, label="best so far")
    for (name, value), style in zip(lines.items(), ("--", ":", "-."), strict=False):
        for axis in (over, against):
            axis.axhline(value, color=GREY, linestyle=style, linewidth=1, label=name)
    figure.legend(*over.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _by_rule(finished: list[FinishedTrial]) -> dict[str, list[FinishedTrial]]:
    return {
        name: [t for t in finished if t.rule == name]
        for name in RULES
        if any(t.rule == name for t in finished)
    }


def draw_tenths(path: Path, results: list[Result], metric: str) -> None:
    """Writes the picture of an evaluation: each method's metric in tenths of the judged events."""
    write_svg(path, lambda: _tenths_picture(results, metric))


def tenths_svg(results: list[Result], metric: str) -> str:
    """The picture of `draw_tenths` as an element of HTML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tenths.svg"
        draw_tenths(path, results, metric)
        text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def _tenths_picture(results: list[Result], metric: str) -> Any:
    figure, axes = grid(1, 1)
    axis = axes[0][0]
    axis.set(title="each tenth of the judged events", xlabel="tenth", ylabel=metric)
    for number, one in enumerate(results):
        is_model = one.events_per_s > 0
        axis.plot(
            range(1, len(one.tenths) + 1),
            one.tenths,
            color=APART[number % len(APART)] if is_model else GREY,
            linestyle="-" if is_model else ("--", ":", "-.")[number % 3],
            label=one.name,
        )
    figure.legend(loc="outside lower center", ncols=4)
    return figure
