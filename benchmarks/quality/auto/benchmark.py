"""The presets and tuned opponents on more data sets.

`python -m benchmarks.quality.auto FOLDER [SET ...]` measures them. Without names it measures the
sets that have no figures of the present kernels, so that a run that was stopped can be resumed.

`sets` describes the folder. A set whose file is missing is left out. It writes
benchmarks/results/auto.json and the table of docs/auto.md.

Every method learns the same events. livefactor learns them in one pass in their order, in records
of 512 events. Opponents are batch retrains, whose settings are chosen on an earlier cut of the
learned events. At most `JUDGED_USERS` users are judged, by NDCG@10 without the items that they had.
The set `sessions` is judged as `sessions` describes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.pages import ROOT, write_between
from benchmarks.quality import als, closed_form
from benchmarks.quality.auto import ratings
from benchmarks.quality.auto.sessions import Counted, Served, recalls
from benchmarks.quality.auto.sets import RATED, SETS, SHAPED, diginetica
from benchmarks.quality.auto.streams import to_popular
from benchmarks.quality.data import Division, Events, cut
from benchmarks.quality.methods import EPOCHS, Parts
from benchmarks.quality.metrics import Judge
from benchmarks.quality.search import grid, pick
from benchmarks.quality.streamed import one_pass
from livefactor_kernels.spec.presets import preset
from livefactor_server.tuning.drawing import grid as grid_of_axes
from livefactor_server.tuning.drawing import write_svg

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "auto.json", ROOT / "docs" / "auto.md"
JUDGED_USERS = 1000
OURS = ("auto", "clicks", "purchases", "news")
SESSION_PRESETS = ("auto", "clicks", "purchases")
IALS_GRID, IALS_FACTORS = grid(unobserved=(0.02, 0.1, 0.3, 1), l2=(0.003, 0.02)), (64, 128)
"""iALS is tuned with the first number of factors. The better of both numbers is reported."""
EASE_GRID = grid(l2=(20, 100, 300, 1000, 3000))
OPPONENTS = (
    "popular",
    "ials",
    "ials_settings",
    "ease",
    "multi_pass_rmse",
    "multi_pass_settings",
)
"""Figures that stay while the code of the opponents and of the sets stays."""
EASE_ITEMS_MAX = 8000
"""EASE inverts a matrix of items by items. It is left out for more items."""


BARS = {
    "popular": ("most-popular", "#9a9a9a"),
    "ials": ("tuned iALS", "#3b6fb6"),
    "ease": ("tuned EASE", "#2a7f62"),
    "news": ("livefactor news", "#f48fb1"),
    "purchases": ("livefactor purchases", "#d81b8c"),
    "clicks": ("livefactor clicks", "#b39ddb"),
    "auto": ("livefactor auto", "#6a1b9a"),
}


class FewUsers(Judge):
    """A judge of at most `JUDGED_USERS` users, drawn at random."""

    def __init__(self, division: Division) -> None:
        asked = np.unique(division.judged.users)
        asked = np.intersect1d(asked, division.learned.users)
        if asked.size > JUDGED_USERS:
            asked = np.sort(np.random.default_rng(1).choice(asked, JUDGED_USERS, replace=False))
        renumber = np.full(division.learned.user_count, -1)
        renumber[asked] = np.arange(asked.size)
        few = [
            Events(renumber[e.users].astype(np.int32), e.items, e.values, asked.size, e.item_count).take(
                renumber[e.users] >= 0
            )
            for e in (division.learned, division.judged)
        ]
        super().__init__(Division(*few))
        self.left_out |= ~np.isin(np.arange(division.learned.item_count), division.learned.items)
        self.users = asked[self.users].astype(np.int32)


def opponents(name: str, division: Division, judge: FewUsers) -> dict[str, float | str]:
    """The figures of most-popular and of the batch retrains."""
    learned = division.learned
    tuning = cut(learned, name != "retail", 0.8, 1.0)
    earlier = FewUsers(tuning)
    figures: dict[str, float | str] = {"popular": judge.figures(closed_form.popular(learned))["ndcg10"]}

    def ials(events: Events, k: int, settings: Any) -> Callable[[np.ndarray], np.ndarray]:
        return als.ials(events, EPOCHS, 0, k=k, **settings)

    first = IALS_FACTORS[0]
    choice = pick(IALS_GRID, lambda s: earlier.figures(ials(tuning.learned, first, s))["ndcg10"])
    figures["ials"] = max(judge.figures(ials(learned, k, choice.settings))["ndcg10"] for k in IALS_FACTORS)
    figures["ials_settings"] = choice.words
    if learned.item_count <= EASE_ITEMS_MAX:
        parts, before = Parts(learned), Parts(tuning.learned)
        ease = pick(
            EASE_GRID,
            lambda s: earlier.figures(closed_form.linear(before.matrix, before.ease(**s)))["ndcg10"],
        )
        figures["ease"] = judge.figures(closed_form.linear(parts.matrix, parts.ease(**ease.settings)))[
            "ndcg10"
        ]
    if name in RATED:
        figures |= ratings.opponent(division)
    return figures


def measure(name: str, division: Division, known: dict[str, float | str]) -> dict[str, float | str]:
    """The figures of one set. `known` are those of the opponents, if they were measured."""
    learned = division.learned
    judge = FewUsers(division)
    figures = known or opponents(name, division, judge)
    figures |= {"events": len(learned), "judged_users": judge.users.size}
    for key in OURS:
        figures[key] = judge.figures(one_pass(preset(key), learned).scores)["ndcg10"]
    figures["to_best_preset"] = figures["auto"] / max(figures[key] for key in OURS[1:])  # type: ignore[operator, type-var]
    for key in ("ials", "ease"):
        if key in figures:
            figures[f"to_{key}"] = figures["auto"] / figures[key]  # type: ignore[operator]
    least = to_popular(learned)
    figures |= {"to_popular_min": least.quotient, "to_popular_min_error": least.error}
    if name in RATED:
        figures["rmse"] = ratings.error(division)
        figures["rmse_to_multi_pass"] = figures["rmse"] / figures["multi_pass_rmse"]  # type: ignore[operator]
    return {f"auto_{name}_{key}": value for key, value in figures.items()}


def measure_sessions(folder: Path) -> dict[str, float | str]:
    """The figures of the sessions, recall@20."""
    clicks = diginetica(folder)
    figures: dict[str, float | str] = {
        key: recalls(Served(key, clicks), clicks).all for key in SESSION_PRESETS
    }
    figures["counted"], figures["events"] = recalls(Counted(clicks), clicks).all, len(clicks.items)
    figures["to_best_preset"] = figures["auto"] / max(figures[key] for key in SESSION_PRESETS[1:])  # type: ignore[operator, type-var]
    return {f"auto_sessions_{key}": value for key, value in figures.items()}


def table(figures: dict[str, float | str]) -> str:
    """The table of the page."""
    keys = ("popular", "ials", "ease", "news", "purchases", "clicks", "auto", "to_popular_min")
    lines = [
        "| data | most-popular | tuned iALS | tuned EASE | `news` | `purchases` | `clicks` | `auto` | beside popular, least |",
        "|---" * 9 + "|",
    ]
    for name in (*SETS, "sessions"):
        if f"auto_{name}_auto" in figures:
            cells = [figures.get(f"auto_{name}_{key}") for key in keys]
            words = [f"{cell:.3f}" if isinstance(cell, float) else "–" for cell in cells]
            error = figures.get(f"auto_{name}_to_popular_min_error")
            if error is not None:
                words[-1] += f" ± {error:.2f}"
            lines.append(f"| {name}{'' if name in SHAPED else ' *'} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def ratings_table(figures: dict[str, float | str]) -> str:
    """The table of the ratings."""
    keys = ("multi_pass_rmse", "rmse", "rmse_to_multi_pass")
    lines = ["| data | tuned multi-pass SGD | `auto` | quotient |", "|---" * 4 + "|"]
    for name in RATED:
        if f"auto_{name}_rmse" in figures:
            cells = [f"{figures[f'auto_{name}_{key}']:.3f}" for key in keys]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(figures: dict[str, float | str]) -> Any:
    """Bars: every set, `auto` beside each preset and each opponent."""
    figure, axes = grid_of_axes(1, 1)
    axis = axes[0, 0]
    names = [name for name in SETS if f"auto_{name}_auto" in figures]
    for place, (key, (label, colour)) in enumerate(BARS.items()):
        values = [float(figures.get(f"auto_{name}_{key}", 0.0)) for name in names]
        axis.bar(np.arange(len(names)) + (place - 3) * 0.12, values, 0.11, color=colour, label=label)
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("NDCG@10")
    axis.legend(fontsize=7)
    return figure


def digest(*files: Path) -> str:
    """A digest of code."""
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def kernels() -> str:
    """A digest of the code that learns and scores."""
    return digest(*(ROOT / "kernels").rglob("*.py"))


def opponents_code() -> str:
    """A digest of the code of the sets and of the opponents."""
    names = ("als", "auto/sets", "closed_form", "data", "metrics", "ratings", "search")
    return digest(*(ROOT / "benchmarks" / "quality" / f"{name}.py" for name in names))


def opponents_of(figures: dict[str, float | str], name: str) -> dict[str, float | str]:
    """The figures of the opponents that the file has, if their code is the present one."""
    if figures.get(f"auto_{name}_opponents") != opponents_code():
        return {}
    found = {key: figures.get(f"auto_{name}_{key}") for key in OPPONENTS}
    return {key: value for key, value in found.items() if value is not None}


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    figures = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    code, theirs = kernels(), opponents_code()
    for name in names or [*SETS, "sessions"]:
        if not names and figures.get(f"auto_{name}_kernels") == code:
            continue
        try:
            own = (
                measure_sessions(folder)
                if name == "sessions"
                else measure(name, SETS[name](folder), opponents_of(figures, name))
            )
        except FileNotFoundError as error:
            print(f"{name}: left out: {error}")
            continue
        kept = {key: value for key, value in figures.items() if not key.startswith(f"auto_{name}_")}
        figures = kept | own | {f"auto_{name}_run_date": machine.date(), f"auto_{name}_kernels": code}
        figures[f"auto_{name}_opponents"] = theirs
        print(name, {key: round(value, 4) for key, value in own.items() if isinstance(value, float)})
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, "benchmarks.quality.auto", table(figures))
    write_between(PAGE, "benchmarks.quality.auto ratings", ratings_table(figures))
    write_svg(ROOT / "docs" / "images" / "auto-sets.svg", lambda: picture(figures))
