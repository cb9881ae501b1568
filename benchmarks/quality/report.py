"""The figures as tables: on the terminal and, between its marks, in docs/quality.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rich.console import Group
from rich.table import Table

from benchmarks.pages import ROOT, six_digits, write_between
from benchmarks.quality.adaptive import PRESETS, RATES
from benchmarks.quality.methods import METHODS
from benchmarks.quality.metrics import NAMES, PRIMARY
from benchmarks.quality.ranking import MICRO_BATCHES
from benchmarks.quality.suite import BY_USER, NEXT_GRIDS, NEXT_OURS, ORDERS
from benchmarks.report import Figure

PAGE = ROOT / "docs" / "quality.md"
COMMAND = "make quality"
Figures = Mapping[str, Figure]

SET_LABELS = {"ml1m": "MovieLens-1M, timed half", "retail": "Online Retail"}
ORDER_LABELS = {"time": "in the order of time", "shuffled": "in shuffled order"}
NEXT_LABELS = {
    "popular_decayed": "most-popular, decayed",
    "own_first": "the user's own most frequent, then most-popular, decayed",
    "knn": METHODS["knn"].label,
    **{key: METHODS[key].label for key in ("clicks_sgd", "purchases_sgd", "clicks", "clicks_tuned")},
    "clicks_repeats": "livefactor `clicks` with repeats, tuned, one pass",
    "purchases": "livefactor `purchases`, tuned, one pass",
    "news": "livefactor `news` as it is, one pass",
}
NEXT_TITLES = {
    "retail": "Online Retail, test-then-learn",
    "news": "Stream of news, made by rule, test-then-learn",
}
RMSE_LABELS = {
    "multi_pass": "multi-pass SGD, float64",
    "ratings_sgd": "livefactor `ratings_sgd`, tuned, one pass",
    "ratings": "livefactor `ratings`, tuned, one pass",
}
STREAM_LABELS = {
    "ml1m": "MovieLens-1M, ratings, RMSE",
    "retail": "Online Retail, purchases, log loss",
    "drift": "made, tastes that drift and rest, RMSE",
}
OURS = [key for key, method in METHODS.items() if method.ours]
CELLS = {
    "ndcg10": "NDCG@10",
    "ndcg10_spread": "spread",
    "recall10": "recall@10",
    "recall20": "recall@20",
    "hit10": "hit rate",
}

SPEED_GOALS = {"clicks": "at least 150 k", "softmax_fast": "at least 2 M"}
"""Events a second on the clock, 2 cores, of rules solve and softmax."""


class Ratio(NamedTuple):
    """A figure over the largest of others; goal: what is to be reached, in words."""

    label: str
    over: str
    under: tuple[str, ...]
    goal: str


def ratios() -> dict[str, Ratio]:
    """The figures that are to be reached, by name."""
    found: dict[str, Ratio] = {}
    for name in SET_LABELS:
        for order in ORDER_LABELS:
            found |= _to_retrains(name, order)
    for name, words in SET_LABELS.items():
        for key, sizes in MICRO_BATCHES.items():
            one = f"{name}_time_{key}_{PRIMARY}"
            for size in sizes:
                label = f"{words}, in the order of time: `{key}`, B = {size} to B = 1"
                over = f"{name}_time_{key}_b{size}_{PRIMARY}"
                if size == 1:
                    label = f"{words}, in the order of time: `{key}`, its own B to B = 1"
                    one, over = over, one
                found[f"ratio_{name}_time_{key}_b{size}"] = Ratio(label, over, (one,), "at least 0.99")
    for key in NEXT_OURS["retail"]:
        label = f"Online Retail, test-then-learn recall@10: `{key}` to item-kNN"
        names = f"retail_next_{key}_recall10", ("retail_next_knn_recall10",)
        found[f"ratio_retail_next_{key}_to_knn"] = Ratio(label, *names, "at least 1.05")
    for key in NEXT_OURS["news"]:
        label = f"Stream of news, test-then-learn recall@10: `{key}` to most-popular, decayed"
        names = f"news_next_{key}_recall10", ("news_next_popular_decayed_recall10",)
        found[f"ratio_news_next_{key}_to_popular"] = Ratio(label, *names, "at least 1.00")
    for order, words in ORDER_LABELS.items():
        label = f"MovieLens-1M, timed half, {words}: RMSE, one pass to multi-pass SGD"
        for key, suffix in (("ratings_sgd", "_sgd"), ("ratings", "")):
            names = f"ml1m_{order}_{key}_rmse", (f"ml1m_{order}_multi_pass_rmse",)
            found[f"ratio_ml1m_{order}_rmse{suffix}"] = Ratio(f"{label}, `{key}`", *names, "at most 1.02")
    for name, words in STREAM_LABELS.items():
        label = f"{words}: adaptive rate to the best of five fixed ones"
        names = f"adaptive_{name}_loss", (f"adaptive_{name}_best_fixed",)
        found[f"ratio_adaptive_{name}"] = Ratio(label, *names, "at most 1.00")
    return found


def _to_retrains(name: str, order: str) -> dict[str, Ratio]:
    """NDCG@10 of ours over that of full retrains. In shuffled order nothing is recent, and iALS is the test."""
    prefix, words = f"{name}_{order}", f"{SET_LABELS[name]}, {ORDER_LABELS[order]}"
    others = {"ials": ("iALS, the better one", ("ials", "implicit"))}
    if order == "time":
        others |= {key: (METHODS[key].label, (key,)) for key in ("ease", "ease_recent")}
    goal = "at least 1.00" if order == "time" else "at least 0.99"
    return {
        f"ratio_{prefix}_{key}_to_{other}": Ratio(
            f"{words}: `{key}` to {label}",
            f"{prefix}_{key}_{PRIMARY}",
            tuple(f"{prefix}_{each}_{PRIMARY}" for each in under),
            goal,
        )
        for key in OURS
        if order == "time" or not METHODS[key].recent
        for other, (label, under) in others.items()
    }


def required() -> list[str]:
    """What every whole run has, as None where a library or a file is missing."""
    names = []
    for name in BY_USER:
        for order in ORDERS:
            for key, method in METHODS.items():
                if not (method.recent and order == "shuffled"):
                    names += [f"{name}_{order}_{key}_{what}" for what in (*NAMES, "events_per_s", "settings")]
    names += [f"{name}_next_{key}_recall10" for name, grids in NEXT_GRIDS.items() for key in grids]
    names += [f"ml1m_{order}_{key}_rmse" for order in ORDERS for key in RMSE_LABELS]
    names += [f"adaptive_{name}_{what}" for name in PRESETS for what in ("best_fixed", "loss", "settings")]
    return names + list(ratios())


def completed(measured: Figures) -> dict[str, Figure]:
    """The figures with their ratios, and every required name that is missing as None; six digits."""
    result: dict[str, Figure] = dict.fromkeys(required()) | dict(measured)
    for name, ratio in ratios().items():
        over, under = measured.get(ratio.over), [measured.get(other) for other in ratio.under]
        numbers = [value for value in under if isinstance(value, float)]
        if isinstance(over, float) and numbers:
            result[name] = over / max(numbers)
    return six_digits(result)


def shown(name: str, value: Figure) -> str:
    """A figure as text, by the end of its name."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    if name.endswith("_events_per_s"):
        return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value / 1e3:.1f} k"
    if isinstance(value, int):
        return f"{value:,}"
    if value >= 1e4:  # of what diverged
        return f"{value:.1e}"
    return f"{value:.3f}" if name.startswith("ratio_") else f"{value:.4f}"


class Sheet(NamedTuple):
    """A table: its title, its head, its rows."""

    title: str
    head: list[str]
    rows: list[list[str]]


def sheets(figures: Figures) -> Iterator[Sheet]:
    """All tables."""
    yield _goals(figures)
    for name in BY_USER:
        for order in ORDERS:
            yield _ranking(figures, name, order)
    for name in NEXT_GRIDS:
        yield _next(figures, name)
    for order in ORDERS:
        yield _ratings(figures, order)
    yield _adaptive(figures)


def _goals(figures: Figures) -> Sheet:
    rows = [
        [ratio.label, f"`{name}`", shown(name, figures.get(name)), ratio.goal]
        for name, ratio in ratios().items()
    ]
    for name, words in SET_LABELS.items():
        for key, goal in SPEED_GOALS.items():
            label = f"{words}, in the order of time: `{key}`, events a second on the clock"
            figure = f"{name}_time_{key}_clock_events_per_s"
            rows.append([label, f"`{figure}`", shown(figure, figures.get(figure)), goal])
    return Sheet("What is to be reached", ["", "in quality.json", "measured", "to reach"], rows)


def _settings(figures: Figures, prefix: str) -> list[str]:
    names = [f"{prefix}_{what}" for what in ("events_per_s", "settings", "grid_size")]
    return [shown(name, figures.get(name)) for name in names]


def _ranking(figures: Figures, name: str, order: str) -> Sheet:
    prefix = f"{name}_{order}"
    rows = []
    for key, method in METHODS.items():
        if f"{prefix}_{key}_{PRIMARY}" in figures:
            cells = {cell: shown(cell, figures.get(f"{prefix}_{key}_{cell}")) for cell in CELLS}
            if not method.random:
                cells[f"{PRIMARY}_spread"] = "–"
            rows.append([method.label, *cells.values(), *_settings(figures, f"{prefix}_{key}")])
    head = ["", *CELLS.values(), "events / CPU s", "settings", "of"]
    return Sheet(f"{SET_LABELS[name]}, {ORDER_LABELS[order]}", head, rows)


def _next(figures: Figures, name: str) -> Sheet:
    rows = []
    for key in NEXT_GRIDS[name]:
        names = [
            f"{name}_next_{key}_{what}" for what in ("recall10", "recall10_later", "settings", "grid_size")
        ]
        rows.append([NEXT_LABELS[key], *(shown(each, figures.get(each)) for each in names)])
    return Sheet(NEXT_TITLES[name], ["", "recall@10", "last 40 % alone", "settings", "of"], rows)


def _ratings(figures: Figures, order: str) -> Sheet:
    rows = []
    for key, label in RMSE_LABELS.items():
        prefix = f"ml1m_{order}_{key}"
        cells = [shown(name, figures.get(name)) for name in (f"{prefix}_rmse", f"{prefix}_rmse_spread")]
        rows.append([label, *cells, *_settings(figures, prefix)])
    title = f"Ratings, MovieLens-1M, timed half, {ORDER_LABELS[order]}"
    return Sheet(title, ["", "RMSE", "spread", "events / CPU s", "settings", "of"], rows)


def _adaptive(figures: Figures) -> Sheet:
    rows = []
    for name, label in STREAM_LABELS.items():
        prefix = f"adaptive_{name}"
        whats = [f"fixed_{rate:g}" for rate in RATES] + [
            "loss",
            "loss_spread",
            "last_rate",
            "settings",
            "grid_size",
        ]
        cells = [shown(f"{prefix}_{what}", figures.get(f"{prefix}_{what}")) for what in whats]
        rows.append([label, *cells])
    head = [f"{rate:g} x" for rate in RATES] + ["adaptive", "spread", "last rate", "settings", "of"]
    return Sheet("Adaptive rate beside fixed ones, in multiples of the preset's", ["", *head], rows)


def tables(figures: Figures) -> Group:
    """For a terminal."""
    parts = []
    for sheet in sheets(figures):
        table = Table(*sheet.head, title=sheet.title, title_justify="left")
        for row in sheet.rows:
            table.add_row(*row)
        parts.append(table)
    return Group(*parts)


def _machine(figures: Figures) -> str:
    """Machine, versions and date in a sentence."""
    text = (
        "{run_date}, {machine_cpu}, {machine_cores} cores, one thread, {machine_memory_gb} GB of memory, "
        "{machine_system}; Python {version_python}, NumPy {version_numpy}, Numba {version_numba}, implicit "
        "{version_implicit}; load average before {machine_load_before:.2f}, after {run_load_after:.2f}; "
        "{run_seconds:.0f} s in all."
    )
    return text.format_map({name: "missing" if value is None else value for name, value in figures.items()})


def _again(figures: Figures) -> Iterator[str]:
    """A line for each day on which parts were run alone (`--only`), after all the others."""
    by_day = defaultdict(list)
    for name, date in figures.items():
        if name.endswith("_run_date"):
            by_day[str(date)[:10]].append(f"`{name.removesuffix('_run_date')}`")
    for day, parts in sorted(by_day.items()):
        yield f"- Run alone on {day}: {', '.join(parts)}."


def _counts(figures: Figures) -> Iterator[str]:
    """How much was learned and judged, a line for each set and order that was measured."""
    for name, words in SET_LABELS.items():
        for order, order_words in ORDER_LABELS.items():
            events, users = f"{name}_{order}_learned_events", f"{name}_{order}_judged_users"
            if events in figures:
                learned, judged = shown(events, figures[events]), shown(users, figures[users])
                yield f"- {words}, {order_words}: {learned} events learned, {judged} users judged."


def page(figures: Figures) -> str:
    """What docs/quality.md shows between its marks."""
    lines = [_machine(figures), "", *_again(figures), *_counts(figures)]
    for sheet in sheets(figures):
        lines += ["", f"### {sheet.title}", "", *_markdown(sheet)]
    return "\n".join(lines)


def _markdown(sheet: Sheet) -> list[str]:
    """Cells that begin with a digit or name a missing one stand to the right."""
    first = sheet.rows[0] if sheet.rows else sheet.head
    rules = ["---:" if cell[:1].isdigit() or cell == "missing" else "---" for cell in first]
    return [
        f"| {' | '.join(sheet.head)} |",
        f"|{'|'.join(rules)}|",
        *(f"| {' | '.join(row)} |" for row in sheet.rows),
    ]


def write_page(figures: Figures) -> None:
    """Put the tables where people read them."""
    write_between(PAGE, COMMAND, page(figures))
