"""The figures as tables: on the terminal and in docs/quality.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rich.console import Group
from rich.table import Table

from benchmarks.pages import ROOT, six_digits, with_verdict, write_between
from benchmarks.quality.adaptive import PRESETS, RATES
from benchmarks.quality.methods import METHODS
from benchmarks.quality.metrics import NAMES, PRIMARY
from benchmarks.quality.ranking import MICRO_BATCHES
from benchmarks.quality.suite import BY_USER, NEXT_GRIDS, NEXT_OURS, ORDERS
from benchmarks.report import Figure
from benchmarks.topics import GOALS

PAGE = ROOT / "docs" / "quality.md"
COMMAND = "make quality"
Figures = Mapping[str, Figure]

SET_LABELS = {"ml1m": "MovieLens-1M, timed half", "retail": "Online Retail"}
ORDER_LABELS = {"time": "time-ordered split", "shuffled": "shuffled split"}
NEXT_LABELS = {
    "popular_decayed": "decayed most-popular",
    "own_first": "the user's most frequent items, then decayed most-popular",
    "knn": METHODS["knn"].label,
    **{key: METHODS[key].label for key in ("clicks_sgd", "purchases_sgd", "clicks", "clicks_tuned")},
    "clicks_repeats": "livefactor `clicks` with repeats, tuned, one pass",
    "purchases": "livefactor `purchases`, tuned, one pass",
    "news": "livefactor `news`, as shipped, one pass",
}
NEXT_TITLES = {
    "retail": "Online Retail, test-then-learn",
    "news": "Generated stream of news, test-then-learn",
}
RMSE_LABELS = {
    "multi_pass": "multi-pass SGD, float64",
    "ratings_sgd": "livefactor `ratings_sgd`, tuned, one pass",
    "ratings": "livefactor `ratings`, tuned, one pass",
}
STREAM_LABELS = {
    "ml1m": "MovieLens-1M, ratings, RMSE",
    "retail": "Online Retail, purchases, log loss",
    "drift": "Generated stream with drift, RMSE",
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
"""Goals for events per second of wall time, on 2 cores."""


class Ratio(NamedTuple):
    """A figure divided by the largest of other figures. `goal` is the goal in words."""

    label: str
    over: str
    under: tuple[str, ...]
    goal: str


def ratios() -> dict[str, Ratio]:
    """The ratios that have a goal, by name."""
    found: dict[str, Ratio] = {}
    for name in SET_LABELS:
        for order in ORDER_LABELS:
            found |= _to_retrains(name, order)
    for name, words in SET_LABELS.items():
        for key, sizes in MICRO_BATCHES.items():
            one = f"{name}_time_{key}_{PRIMARY}"
            for size in sizes:
                label = f"{words}, {ORDER_LABELS['time']}: `{key}`, B = {size} ÷ B = 1"
                over = f"{name}_time_{key}_b{size}_{PRIMARY}"
                if size == 1:
                    label = f"{words}, {ORDER_LABELS['time']}: `{key}`, B of the preset ÷ B = 1"
                    one, over = over, one
                found[f"ratio_{name}_time_{key}_b{size}"] = Ratio(label, over, (one,), "at least 0.99")
    for key in NEXT_OURS["retail"]:
        label = f"Online Retail, test-then-learn, recall@10: `{key}` ÷ item-kNN"
        names = f"retail_next_{key}_recall10", ("retail_next_knn_recall10",)
        found[f"ratio_retail_next_{key}_to_knn"] = Ratio(label, *names, "at least 1.05")
    for key in NEXT_OURS["news"]:
        label = f"Generated news, test-then-learn, recall@10: `{key}` ÷ decayed most-popular"
        names = f"news_next_{key}_recall10", ("news_next_popular_decayed_recall10",)
        found[f"ratio_news_next_{key}_to_popular"] = Ratio(label, *names, "at least 1.00")
    for order, words in ORDER_LABELS.items():
        label = f"MovieLens-1M, timed half, {words}, RMSE"
        for key, suffix in (("ratings_sgd", "_sgd"), ("ratings", "")):
            names = f"ml1m_{order}_{key}_rmse", (f"ml1m_{order}_multi_pass_rmse",)
            found[f"ratio_ml1m_{order}_rmse{suffix}"] = Ratio(
                f"{label}: `{key}` ÷ multi-pass SGD", *names, "at most 1.02"
            )
    for name, words in STREAM_LABELS.items():
        label = f"{words}: adaptive rate ÷ best of five fixed rates"
        names = f"adaptive_{name}_loss", (f"adaptive_{name}_best_fixed",)
        found[f"ratio_adaptive_{name}"] = Ratio(label, *names, "at most 1.00")
    return found


def _to_retrains(name: str, order: str) -> dict[str, Ratio]:
    """NDCG@10 of livefactor ÷ NDCG@10 of full retrains.

    The shuffled split has no recency, so only iALS is compared there.
    """
    prefix, words = f"{name}_{order}", f"{SET_LABELS[name]}, {ORDER_LABELS[order]}"
    others = {"ials": ("the better iALS", ("ials", "implicit"))}
    if order == "time":
        others |= {key: (METHODS[key].label, (key,)) for key in ("ease", "ease_recent")}
    goal = "at least 1.00" if order == "time" else "at least 0.99"
    return {
        f"ratio_{prefix}_{key}_to_{other}": Ratio(
            f"{words}: `{key}` ÷ {label}",
            f"{prefix}_{key}_{PRIMARY}",
            tuple(f"{prefix}_{each}_{PRIMARY}" for each in under),
            goal,
        )
        for key in OURS
        if order == "time" or not METHODS[key].recent
        for other, (label, under) in others.items()
    }


def required() -> list[str]:
    """Figures that every whole run has. A figure is None if a library or a file is missing."""
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
    """The figures with their ratios, rounded to six digits.

    A required figure that is missing is None.
    """
    result: dict[str, Figure] = dict.fromkeys(required()) | dict(measured)
    for name, ratio in ratios().items():
        over, under = measured.get(ratio.over), [measured.get(other) for other in ratio.under]
        numbers = [value for value in under if isinstance(value, float)]
        if isinstance(over, float) and numbers:
            result[name] = over / max(numbers)
    return six_digits(result)


def shown(name: str, value: Figure) -> str:
    """A figure as text. The end of its name tells the unit."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    if name.endswith("_events_per_s"):
        return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value / 1e3:.1f} k"
    if isinstance(value, int):
        return f"{value:,}"
    # Errors of diverged runs are this large.
    if value >= 1e4:
        return f"{value:.1e}"
    return f"{value:.3f}" if name.startswith("ratio_") else f"{value:.4f}"


class Sheet(NamedTuple):
    """A table with a title and a head."""

    title: str
    head: list[str]
    rows: list[list[str]]


def sheets(figures: Figures) -> Iterator[Sheet]:
    """The tables of the page, in order."""
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
        [
            ratio.label,
            f"`{name}`",
            shown(name, figures.get(name)),
            with_verdict(ratio.goal, figures.get(name)),
        ]
        for name, ratio in ratios().items()
    ]
    for name, words in SET_LABELS.items():
        for key, goal in SPEED_GOALS.items():
            label = f"{words}, {ORDER_LABELS['time']}: `{key}`, events ÷ second of wall time"
            figure = f"{name}_time_{key}_clock_events_per_s"
            value = figures.get(figure)
            rows.append([label, f"`{figure}`", shown(figure, value), with_verdict(goal, value)])
    for name, topic in GOALS.items():
        value = figures.get(name)
        rows.append([topic.label, f"`{name}`", shown(name, value), with_verdict(topic.goal, value)])
    return Sheet("Goals", ["figure", "in quality.json", "measured", "goal"], rows)


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
    head = ["method", *CELLS.values(), "events ÷ CPU s", "best settings", "settings tried"]
    return Sheet(f"{SET_LABELS[name]}, {ORDER_LABELS[order]}", head, rows)


def _next(figures: Figures, name: str) -> Sheet:
    rows = []
    for key in NEXT_GRIDS[name]:
        names = [
            f"{name}_next_{key}_{what}" for what in ("recall10", "recall10_later", "settings", "grid_size")
        ]
        rows.append([NEXT_LABELS[key], *(shown(each, figures.get(each)) for each in names)])
    return Sheet(
        NEXT_TITLES[name],
        ["method", "recall@10", "recall@10, last 40 %", "best settings", "settings tried"],
        rows,
    )


def _ratings(figures: Figures, order: str) -> Sheet:
    rows = []
    for key, label in RMSE_LABELS.items():
        prefix = f"ml1m_{order}_{key}"
        cells = [shown(name, figures.get(name)) for name in (f"{prefix}_rmse", f"{prefix}_rmse_spread")]
        rows.append([label, *cells, *_settings(figures, prefix)])
    title = f"Ratings, MovieLens-1M, timed half, {ORDER_LABELS[order]}"
    return Sheet(
        title, ["method", "RMSE", "spread", "events ÷ CPU s", "best settings", "settings tried"], rows
    )


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
    head = [f"rate × {rate:g}" for rate in RATES]
    head += ["adaptive", "spread", "last rate", "best settings", "settings tried"]
    return Sheet("Adaptive rate beside fixed multiples of the preset's rate", ["stream", *head], rows)


def tables(figures: Figures) -> Group:
    """All tables, for a terminal."""
    parts = []
    for sheet in sheets(figures):
        table = Table(*sheet.head, title=sheet.title, title_justify="left")
        for row in sheet.rows:
            table.add_row(*row)
        parts.append(table)
    return Group(*parts)


def _machine(figures: Figures) -> str:
    """The machine, the versions and the date."""
    text = (
        "Measured {run_date} on one thread of {machine_cpu} with {machine_cores} cores and {machine_memory_gb} GB of "
        "memory; {machine_system}. Versions: Python {version_python}, NumPy {version_numpy}, Numba {version_numba}, "
        "implicit {version_implicit}. The load average was {machine_load_before:.2f} before the run and "
        "{run_load_after:.2f} after it. The run took {run_seconds:.0f} s."
    )
    return text.format_map({name: "missing" if value is None else value for name, value in figures.items()})


def _again(figures: Figures) -> Iterator[str]:
    """One line a day on which parts were measured alone (`--only`), after the whole run."""
    by_day = defaultdict(list)
    for name, date in figures.items():
        if name.endswith("_run_date"):
            by_day[str(date)[:10]].append(f"`{name.removesuffix('_run_date')}`")
    for day, parts in sorted(by_day.items()):
        yield f"- Run alone on {day}: {', '.join(parts)}."


def _counts(figures: Figures) -> Iterator[str]:
    """How much was learned and judged: one line for each data set and split."""
    for name, words in SET_LABELS.items():
        for order, order_words in ORDER_LABELS.items():
            events, users = f"{name}_{order}_learned_events", f"{name}_{order}_judged_users"
            if events in figures:
                learned, judged = shown(events, figures[events]), shown(users, figures[users])
                yield f"- {words}, {order_words}: {learned} events learned, {judged} users judged."


def page(figures: Figures) -> str:
    """The figures of docs/quality.md."""
    lines = [_machine(figures), "", *_counts(figures)]
    for sheet in sheets(figures):
        lines += ["", f"### {sheet.title}", "", *_markdown(sheet)]
    again = list(_again(figures))
    if again:
        lines += ["", "### Parts that were measured on another day", "", *again]
    return "\n".join(lines)


def _markdown(sheet: Sheet) -> list[str]:
    """A table in Markdown. Columns of figures are aligned to the right."""
    first = sheet.rows[0] if sheet.rows else sheet.head
    rules = ["---:" if cell[:1].isdigit() or cell == "missing" else "---" for cell in first]
    return [
        f"| {' | '.join(sheet.head)} |",
        f"|{'|'.join(rules)}|",
        *(f"| {' | '.join(row)} |" for row in sheet.rows),
    ]


def write_page(figures: Figures) -> None:
    """Write the tables into docs/quality.md."""
    write_between(PAGE, COMMAND, page(figures))
