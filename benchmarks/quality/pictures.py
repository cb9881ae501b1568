"""Draws the pictures of docs/quality.md from the figures alone.

The same figures give the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality.methods import METHODS
from benchmarks.quality.metrics import PRIMARY
from benchmarks.quality.ranking import CURVES, POINTS
from benchmarks.quality.report import NEXT_LABELS, NEXT_TITLES, ORDER_LABELS, SET_LABELS, Figures
from benchmarks.quality.suite import NEXT_GRIDS, WINDOWS
from livefactor_server.tuning.drawing import grid, write_svg

COLOURS = {
    "popular": "#9a9a9a",
    "popular_decayed": "#5f5f5f",
    "own_first": "#b5651d",
    "knn": "#8c6d1f",
    "ease": "#2a7f62",
    "ease_recent": "#1b4d3e",
    "ials": "#3b6fb6",
    "implicit": "#7da7d9",
    "clicks_sgd": "#e07b39",
    "purchases_sgd": "#c0392b",
    "softmax": "#d81b8c",
    "softmax_fast": "#f48fb1",
    "news": "#d81b8c",
    "clicks": "#6a1b9a",
    "clicks_tuned": "#b39ddb",
    "clicks_repeats": "#311b92",
    "purchases": "#d81b8c",
}


def draw(figures: Figures, folder: Path) -> None:
    """Writes quality-speed.svg, quality-curve.svg and quality-next.svg.

    Raises ImportError without Matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("speed", _speed), ("curve", _curve), ("next", _next)):
        write_svg(folder / f"quality-{name}.svg", lambda picture=picture: picture(figures))


def _label(key: str) -> str:
    return (METHODS[key].label if key in METHODS else NEXT_LABELS[key]).replace("`", "")


def _number(figures: Figures, name: str) -> float | None:
    value = figures.get(name)
    return float(value) if isinstance(value, float | int) else None


def _speed(figures: Figures) -> Any:
    """Quality over learning speed."""
    figure, axes = grid(2, 2)
    for row, (name, words) in enumerate(SET_LABELS.items()):
        for column, (order, order_words) in enumerate(ORDER_LABELS.items()):
            axis = axes[row][column]
            axis.set(title=f"{words}, {order_words}", xscale="log", ylabel="NDCG@10")
            axis.set_xlabel("events learned in a CPU second")
            for key, method in METHODS.items():
                prefix = f"{name}_{order}_{key}"
                x, y = _number(figures, f"{prefix}_events_per_s"), _number(figures, f"{prefix}_{PRIMARY}")
                if x is not None and y is not None:
                    marker = "D" if method.ours else "o"
                    axis.scatter([x], [y], color=COLOURS[key], marker=marker, label=_label(key), zorder=3)
            axis.set_ylim(bottom=0)
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _curve(figures: Figures) -> Any:
    """Quality on the held-out events after each tenth of the stream."""
    figure, axes = grid(2, 2)
    shares = [point / POINTS for point in range(1, POINTS + 1)]
    for row, (name, words) in enumerate(SET_LABELS.items()):
        for column, (what, what_words) in enumerate((("ndcg10", "NDCG@10"), ("recall10", "recall@10"))):
            axis = axes[row][column]
            axis.set(title=words, xlabel="share of the stream learned", ylabel=what_words)
            for key in CURVES:
                names = [f"{name}_time_{key}_{what}_after_{point:02}" for point in range(1, POINTS + 1)]
                values = [_number(figures, each) for each in names]
                if None not in values:
                    axis.plot(shares, values, color=COLOURS[key], marker=".", label=_label(key))
            axis.set_ylim(bottom=0)
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _next(figures: Figures) -> Any:
    """Test-then-learn quality of each tenth of the stream."""
    figure, axes = grid(1, 2)
    windows, labelled = range(1, WINDOWS + 1), {}
    for axis, name in zip(axes[0], NEXT_GRIDS, strict=True):
        axis.set(title=NEXT_TITLES[name], ylabel="recall@10 within the tenth")
        axis.set_xlabel("share of the stream learned")
        for key in NEXT_GRIDS[name]:
            values = [_number(figures, f"{name}_next_{key}_recall10_window_{w:02}") for w in windows]
            if None not in values:
                (line,) = axis.plot([w / WINDOWS for w in windows], values, color=COLOURS[key], marker=".")
                labelled[_label(key)] = line
        axis.set_ylim(bottom=0)
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=3)
    return figure
