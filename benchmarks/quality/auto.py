"""The presets and tuned opponents on more data sets.

`python -m benchmarks.quality.auto FOLDER [SET ...]` measures them.

The folder has a folder for each data set: ml-100k, lastfm-2k, sasrec-games,
amazon-musical-instruments, online-retail, with the public files that `SETS` names. A set whose
file is missing is left out. It writes benchmarks/results/auto.json and the table of docs/auto.md.

Every method learns the same events. livefactor learns them in one pass in their order, in records
of 512 events. Opponents are batch retrains, whose settings are chosen on an earlier cut of the
learned events. At most `JUDGED_USERS` users are judged, by NDCG@10 without the items that they had.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.pages import ROOT, write_between
from benchmarks.progressive.data import Stream
from benchmarks.quality import als, closed_form
from benchmarks.quality.data import Division, Events, cut, numbered
from benchmarks.quality.methods import EPOCHS, Parts
from benchmarks.quality.metrics import Judge
from benchmarks.quality.search import grid, pick
from benchmarks.quality.streamed import one_pass
from livefactor_kernels.spec.presets import preset
from livefactor_server.tuning.drawing import grid as grid_of_axes
from livefactor_server.tuning.drawing import write_svg

RESULTS, PAGE = ROOT / "benchmarks" / "results" / "auto.json", ROOT / "docs" / "auto.md"
JUDGED_USERS = 1000
SECOND = 1_000_000
OURS = ("auto", "clicks", "purchases", "news")
IALS_GRID = grid(k=(64, 128), unobserved=(0.02, 0.1, 0.3, 1), l2=(0.003, 0.02))
EASE_GRID = grid(l2=(20, 100, 300, 1000, 3000))
EASE_ITEMS_MAX = 8000
"""EASE inverts a matrix of items by items. It is left out for more items."""


def _events(users: Iterable[object], items: Iterable[object], times: Iterable[int] | None = None) -> Events:
    """Each pair once, in the given order, or by time if there are times (seconds)."""
    keys = [
        np.unique(np.array(list(column)), return_inverse=True)[1].astype(np.uint64)
        for column in (users, items)
    ]
    order, moments = np.arange(keys[0].size), None
    if times is not None:
        moments = np.array(list(times), np.int64) * SECOND
        order = np.argsort(moments, kind="stable")
        moments = moments[order]
    values = np.ones(order.size, np.float32)
    return numbered(Stream(keys[0][order], keys[1][order], values, times=moments), once=True)


def _lines(file: Path, separator: str) -> list[list[str]]:
    with gzip.open(file, "rt", encoding="latin-1") as lines:
        return list(csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE))


def ml100k(folder: Path) -> Division:
    """MovieLens-100k: the last 20 % of each user's ratings, in time."""
    rows = _lines(folder / "ml-100k" / "ml-100k.inter.tsv.gz", "\t")[1:]
    return cut(
        _events((r[0] for r in rows), (r[1] for r in rows), (int(float(r[3])) for r in rows)), True, 0.8, 1.0
    )


def lastfm(folder: Path) -> Division:
    """Last.fm: a random 20 % of each user's artists, without times."""
    rows = _lines(folder / "lastfm-2k" / "user_artists.dat.gz", "\t")[1:]
    order = np.random.default_rng(7).permutation(len(rows)).tolist()
    return cut(_events((rows[n][0] for n in order), (rows[n][1] for n in order)), True, 0.8, 1.0)


def games(folder: Path) -> Division:
    """Video games: the last item of each user, in the order of each user, without times."""
    pairs = np.array(
        [line[0].split() for line in _lines(folder / "sasrec-games" / "Video.txt.gz", "\t")], int
    )
    # Random numbers that ascend within each user interleave the users.
    draws = np.random.default_rng(5).random(len(pairs))
    draws = draws[np.lexsort((draws, pairs[:, 0]))]
    last = np.append(pairs[1:, 0] != pairs[:-1, 0], True)
    events = _events(pairs[:, 0], pairs[:, 1])
    learned = np.flatnonzero(~last)
    return Division(events.take(learned[np.argsort(draws[learned], kind="stable")]), events.take(last))


def instruments(folder: Path) -> Division:
    """Musical instruments: the last 20 % of each user's reviews, by day."""
    with gzip.open(folder / "amazon-musical-instruments" / "reviews_5core.json.gz", "rt") as lines:
        reviews = [json.loads(line) for line in lines]
    columns = [[review[name] for review in reviews] for name in ("reviewerID", "asin", "unixReviewTime")]
    return cut(_events(*columns), True, 0.8, 1.0)


def retail(folder: Path) -> Division:
    """Online Retail: the last 20 % of all first purchases, in time."""
    rows = _lines(folder / "online-retail" / "events.csv.gz", ",")[1:]
    return cut(
        _events((r[1] for r in rows), (r[2] for r in rows), (int(r[0]) for r in rows)), False, 0.8, 1.0
    )


SETS: dict[str, Callable[[Path], Division]] = {
    "ml100k": ml100k,
    "lastfm": lastfm,
    "games": games,
    "instruments": instruments,
    "retail": retail,
}
SHAPED = ("ml100k", "lastfm", "retail")
"""The sets on which the settings of `auto` were chosen. The others were only looked at."""


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


def measure(name: str, division: Division) -> dict[str, float | str]:
    """The figures of one set."""
    learned = division.learned
    judge, parts = FewUsers(division), Parts(learned)
    is_by_user = name != "retail"
    tuning = cut(learned, is_by_user, 0.8, 1.0)
    earlier, before = FewUsers(tuning), Parts(tuning.learned)
    figures: dict[str, float | str] = {"events": len(learned), "judged_users": judge.users.size}
    figures["popular"] = judge.figures(closed_form.popular(learned))["ndcg10"]

    def ials(events: Events, settings: dict[str, float | str]) -> Callable[[np.ndarray], np.ndarray]:
        return als.ials(events, EPOCHS, 0, **settings)  # type: ignore[arg-type]

    choice = pick(IALS_GRID, lambda s: earlier.figures(ials(tuning.learned, s))["ndcg10"])
    figures["ials"] = judge.figures(ials(learned, choice.settings))["ndcg10"]
    figures["ials_settings"] = choice.words
    if learned.item_count <= EASE_ITEMS_MAX:
        ease = pick(
            EASE_GRID,
            lambda s: earlier.figures(closed_form.linear(before.matrix, before.ease(**s)))["ndcg10"],
        )
        figures["ease"] = judge.figures(closed_form.linear(parts.matrix, parts.ease(**ease.settings)))[
            "ndcg10"
        ]
    for key in OURS:
        figures[key] = judge.figures(one_pass(preset(key), learned).scores)["ndcg10"]
    figures["to_best_preset"] = figures["auto"] / max(figures[key] for key in OURS[1:])
    figures["to_ials"] = figures["auto"] / figures["ials"]
    if "ease" in figures:
        figures["to_ease"] = figures["auto"] / figures["ease"]
    return {f"auto_{name}_{key}": value for key, value in figures.items()}


def table(figures: dict[str, float | str]) -> str:
    """The table of the page."""
    keys = ("popular", "ials", "ease", "news", "purchases", "clicks", "auto")
    lines = [
        "| data | most-popular | tuned iALS | tuned EASE | `news` | `purchases` | `clicks` | `auto` |",
        "|---" * 8 + "|",
    ]
    for name in SETS:
        if f"auto_{name}_auto" in figures:
            cells = [figures.get(f"auto_{name}_{key}") for key in keys]
            words = [f"{cell:.3f}" if isinstance(cell, float) else "–" for cell in cells]
            lines.append(f"| {name}{'' if name in SHAPED else ' *'} | " + " | ".join(words) + " |")
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


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(SETS)
    figures = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in names:
        try:
            division = SETS[name](folder)
        except FileNotFoundError as error:
            print(f"{name}: left out: {error}")
            continue
        figures |= measure(name, division) | {f"auto_{name}_run_date": machine.date()}
        print(
            name,
            {
                key: round(value, 4)
                for key, value in figures.items()
                if name in key and isinstance(value, float)
            },
        )
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, "benchmarks.quality.auto", table(figures))
    write_svg(ROOT / "docs" / "images" / "auto-sets.svg", lambda: picture(figures))


if __name__ == "__main__":
    main()
