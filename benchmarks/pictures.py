"""The pictures of the README: `make pictures`, or `python -m benchmarks.pictures [--draw-only]`.

The first picture shows how a customer's list changes in `livefactor demo`. A run of the demo writes
benchmarks/results/demo.json, and the picture is drawn from that file. The second picture shows
NDCG@10 beside tuned retrains. It is drawn from benchmarks/results/quality.json, which `make
quality` writes. Two more show terminals: the demo, and `livefactor top`. With `--draw-only` nothing
is run, and the first two pictures are drawn again from the two files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import date
from benchmarks.pages import ROOT
from benchmarks.terminals import draw_top, recording, write_terminal
from livefactor_server.tuning.drawing import grid, write_svg

RESULTS = ROOT / "benchmarks" / "results"
DEMO, QUALITY = RESULTS / "demo.json", RESULTS / "quality.json"
IMAGES = ROOT / "docs" / "images"

OURS, THEIRS, FLOOR = "#6a1b9a", "#3b6fb6", "#9a9a9a"
BOUGHT, NEW, GREY = "#6a1b9a", "#2a7f62", "#5f5f5f"
LABEL_LENGTH_MAX = 38

SETS = {"ml1m": "MovieLens-1M, timed half", "retail": "Online Retail"}
BARS: dict[str, tuple[tuple[str, ...], str]] = {
    "most-popular, decayed": (("popular_decayed",), FLOOR),
    "iALS, tuned, retrained": (("ials", "implicit"), THEIRS),
    "EASE, tuned, retrained": (("ease",), THEIRS),
    "EASE with recency, tuned, retrained": (("ease_recent",), THEIRS),
    "livefactor clicks_sgd, tuned, one pass": (("clicks_sgd",), OURS),
    "livefactor clicks, as shipped, one pass": (("clicks",), OURS),
}
"""By label of a bar: the methods of quality.json, of which the best is shown, and the colour."""


def run_demo() -> int:
    """Runs the demo and writes demo.json. Returns the exit code of the demo."""
    from livefactor_server.cli.demo import run as demo

    changes: list[demo.ListChange] = []
    console = recording()
    code = demo.run_demo(console, show_change=changes.append)
    write_terminal(IMAGES / "demo-terminal.svg", console.export_svg(title="make demo"))
    figures = {"run_date": date(), **changes[0]._asdict()}
    DEMO.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return code


def draw_change(path: Path, change: dict[str, Any]) -> None:
    """Draws both lists of demo.json side by side."""
    write_svg(path, lambda: _change(change))


def _change(change: dict[str, Any]) -> Any:
    lists = {name: [label.strip() for label in change[name]] for name in ("bought", "before", "after")}
    bought, before, after = lists.values()
    figure, axes = grid(1, 1)
    axis = axes[0][0]
    axis.set(xlim=(0, 1), ylim=(len(before) + 1.6, -0.6))
    axis.axis("off")
    axis.text(0.05, 0, f"Customer {change['customer']}: the list before", weight="bold", va="center")
    words = f"The list after the customer bought {len(bought)} Christmas items"
    axis.text(0.55, 0, words, weight="bold", va="center")
    for x, labels in ((0.05, before), (0.55, after)):
        for rank, label in enumerate(labels, 1):
            colour = BOUGHT if label in bought else "black" if label in before else NEW
            axis.text(x - 0.02, rank, str(rank), color=GREY, ha="right", va="center")
            axis.text(x, rank, label[:LABEL_LENGTH_MAX], color=colour, va="center")
    for rank, label in enumerate(before, 1):
        if label in after:
            axis.plot([0.42, 0.52], [rank, after.index(label) + 1], color="#c9c9c9", linewidth=1)
    axis.text(0.55, len(before) + 1, "just bought", color=BOUGHT, va="center")
    axis.text(0.70, len(before) + 1, "new in the list, not bought", color=NEW, va="center")
    return figure


def draw_quality(path: Path, figures: dict[str, Any]) -> None:
    """Draws NDCG@10 of livefactor beside tuned retrains, for the time-ordered split."""
    write_svg(path, lambda: _quality(figures))


def _quality(figures: dict[str, Any]) -> Any:
    figure, axes = grid(1, 2)
    for axis, (name, words) in zip(axes[0], SETS.items(), strict=True):
        heights = {label: best_of(figures, name, methods) for label, (methods, _) in BARS.items()}
        shown = {label: value for label, value in heights.items() if value is not None}
        axis.barh(list(shown), list(shown.values()), color=[BARS[label][1] for label in shown])
        for place, value in enumerate(shown.values()):
            axis.text(value, place, f" {value:.3f}", va="center")
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.set_axisbelow(True)
        axis.set(title=f"{words}, time-ordered split", xlabel="NDCG@10")
        axis.margins(x=0.15)
    axes[0][1].set_yticklabels([])
    return figure


def best_of(figures: dict[str, Any], name: str, methods: tuple[str, ...]) -> float | None:
    """The largest NDCG@10 of the methods on a data set, or None if none was measured."""
    values = [figures.get(f"{name}_time_{method}_ndcg10") for method in methods]
    return max((value for value in values if isinstance(value, float)), default=None)


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.pictures", description=__doc__)
    parser.add_argument("--draw-only", action="store_true", help="draw from the results that are there")
    code = 0
    if not parser.parse_args().draw_only:
        code = run_demo()
        draw_top(IMAGES / "top.svg")
    draw_change(IMAGES / "demo-list.svg", json.loads(DEMO.read_text(encoding="utf-8")))
    draw_quality(IMAGES / "quality-retrains.svg", json.loads(QUALITY.read_text(encoding="utf-8")))
    return code


if __name__ == "__main__":
    sys.exit(main())
