"""`auto` on small sets, and on events without any order.

`python -m benchmarks.quality.auto.variants FOLDER [NAME ...]` measures it (`sets` describes
FOLDER). A name is that of a set and of a variant, such as `lastfm-small`. It writes the table of
docs/auto.md, and its figures to benchmarks/results/auto.json.

Judged are NDCG@10 after one pass, the mean of `SEEDS` seeds, and opponents that learn the same
events. The settings of iALS and of item-kNN are chosen on an earlier cut of the learned events.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import write_between
from benchmarks.quality import als, closed_form
from benchmarks.quality.auto.benchmark import PAGE, RESULTS, FewUsers
from benchmarks.quality.auto.sets import SETS
from benchmarks.quality.data import Division, Events, cut
from benchmarks.quality.methods import EPOCHS, Parts
from benchmarks.quality.search import grid, pick
from benchmarks.quality.streamed import one_pass
from livefactor_kernels.spec.presets import preset

SEEDS = 3
SMALL_EVENTS = 10_000
IALS_GRID = grid(unobserved=(0.02, 0.1, 0.3, 1), l2=(0.003, 0.01, 0.03, 0.1))
KNN_GRID = grid(shrinkage=(0, 20, 100))


def whole(division: Division) -> Events:
    """All events of a set: the learned ones, then the judged ones."""
    parts = division.learned, division.judged
    columns = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("users", "items", "values")
    )
    return Events(*columns, parts[0].user_count, parts[0].item_count)


def small(division: Division) -> Division:
    """Random users with about `SMALL_EVENTS` events, learned and judged."""
    order = np.random.default_rng(4).permutation(division.learned.user_count)
    sizes = np.bincount(whole(division).users, minlength=order.size)[order].cumsum()
    users = order[: int(np.searchsorted(sizes, SMALL_EVENTS)) + 1]
    return Division(*(part.take(np.isin(part.users, users)) for part in (division.learned, division.judged)))


def unordered(division: Division) -> Division:
    """A random order without times, of which the last 20 % of each user are judged."""
    events = whole(division)
    order = np.random.default_rng(3).permutation(len(events))
    return cut(events.take(order), True, 0.8, 1.0)


VARIANTS: dict[str, Callable[[Division], Division]] = {"small": small, "unordered": unordered}
MEASURED = ("lastfm-small", "instruments-unordered")


def compact(division: Division) -> Division:
    """The same events with numbers for those users and items alone that occur."""
    events = whole(division)
    names = [np.unique(column, return_inverse=True) for column in (events.users, events.items)]
    made, start = [], 0
    for part in (division.learned, division.judged):
        users, items = (inverse[start : start + len(part)].astype(np.int32) for _, inverse in names)
        made.append(Events(users, items, part.values, names[0][0].size, names[1][0].size, part.times))
        start += len(part)
    return Division(*made)


def opponents(division: Division, judge: FewUsers) -> dict[str, float | str]:
    """NDCG@10 of most-popular, item-kNN and iALS."""
    learned, tuning = division.learned, cut(division.learned, True, 0.8, 1.0)
    earlier = FewUsers(tuning)

    def ials(events: Events, settings: Any) -> Any:
        return als.ials(events, EPOCHS, 0, k=64, **settings)

    def knn(events: Events, settings: Any) -> Any:
        matrix = Parts(events).matrix
        together = closed_form.counted_together(matrix)
        return closed_form.item_knn(matrix, together, "cosine", settings["shrinkage"], 200)

    figures: dict[str, float | str] = {"popular": judge.figures(closed_form.popular(learned))["ndcg10"]}
    for name, settings, fit in (("ials", IALS_GRID, ials), ("knn", KNN_GRID, knn)):
        best = pick(settings, lambda each, fit=fit: earlier.figures(fit(tuning.learned, each))["ndcg10"])  # type: ignore[misc]
        figures[name] = judge.figures(fit(learned, best.settings))["ndcg10"]
        figures[f"{name}_settings"] = best.words
    return figures


def measure(folder: Path, name: str) -> dict[str, float | str]:
    """The figures of one variant of a set."""
    data, _, variant = name.partition("-")
    division = compact(VARIANTS[variant](SETS[data](folder)))
    judge = FewUsers(division)
    figures = opponents(division, judge) | {"events": len(division.learned)}
    found = [
        judge.figures(one_pass(preset("auto", seed=seed), division.learned).scores)["ndcg10"]
        for seed in range(SEEDS)
    ]
    figures["auto"] = float(np.mean(found))
    return {f"variant_{name}_{key}": value for key, value in figures.items()}


def table(figures: dict[str, float | str]) -> str:
    """The table of the page."""
    lines = ["| data | events | most-popular | item-kNN | tuned iALS | `auto` |", "|---" * 6 + "|"]
    for name in MEASURED:
        if f"variant_{name}_auto" in figures:
            cells = [float(figures[f"variant_{name}_{key}"]) for key in ("popular", "knn", "ials", "auto")]
            count = int(figures[f"variant_{name}_events"])
            lines.append(f"| {name} | {count:,} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures the named variants, or all, and writes the table and the figures."""
    for name in sys.argv[2:] or MEASURED:
        found = measure(Path(sys.argv[1]), name)
        print(name, found, flush=True)
        figures = json.loads(RESULTS.read_text(encoding="utf-8")) | found
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        write_between(PAGE, "benchmarks.quality.auto.variants", table(figures))


if __name__ == "__main__":
    main()
