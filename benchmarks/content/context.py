"""What context is worth: the words of a search query, and the hour and the day.

    python -m benchmarks.content.context [--output FILE] [--pages]

The events are those of Online Retail, the first purchase of each item by each customer, in order of
time. A model learns them in one pass, and each event carries its context.

Queries: the shop has no log of them. So the query of an event is one word of the item's
description, which is drawn with a seed. Hours and days are those of the event.

The last tenth of the events is the test: recall@10 of the event's item among all items that the
customer has not had, with the context of the event and without. `context_weight` is the best one of
`WEIGHTS` on the tenth before, after a model that has learned what is earlier.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.pages import ROOT, write_between
from benchmarks.quality.content import Data, gifts
from benchmarks.quality.ranking import Figures
from livefactor.wire.keys import keys_of
from livefactor_kernels.backend import Backend, Update, create_backend
from livefactor_kernels.reading.context.learning import factors_of
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Context, ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS

RECORD_EVENTS, LIST, TEST_EVENTS, SEED = 1024, 10, 4000, 1
WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0)
PRESETS = ("auto", "clicks")
KINDS = {"query": "a word of the query", "moment": "the hour and the weekday"}


class Part(NamedTuple):
    """Events [start, stop), whose items a model ranks that has learned those before `start`."""

    start: int
    stop: int


def bags_of(data: Data) -> dict[str, list[list[str]]]:
    """The context of each event by kind."""
    rng = np.random.default_rng(SEED)
    words = {item: bag or ["word:none"] for item, bag in zip(data.ids.tolist(), data.bags, strict=True)}
    own = [words[item] for item in data.events[:, 1].tolist()]
    drawn = [bag[int(at * len(bag))] for bag, at in zip(own, rng.random(len(own)), strict=True)]
    seconds = data.events[:, 2]
    hours, days = (seconds // 3600 % 24).tolist(), (seconds // 86400 % 7).tolist()
    return {
        "query": [[word] for word in drawn],
        "moment": [[f"hour:{hour}", f"day:{day}"] for hour, day in zip(hours, days, strict=True)],
    }


def keyed(bags: list[list[str]]) -> Bags:
    keys = keys_of([name for bag in bags for name in bag])
    return Bags(np.cumsum([len(bag) for bag in bags]), keys, np.ones(len(keys), np.float32))


def learned(events: np.ndarray, bags: list[list[str]], spec: ModelSpec) -> Backend:
    """The model after the events with their context."""
    model = create_backend("cpu", spec)
    for start in range(0, len(events), RECORD_EVENTS):
        part = events[start : start + RECORD_EVENTS]
        users = model.users.allocate(part[:, 0].astype(np.uint64))
        items = model.items.allocate(part[:, 1].astype(np.uint64))
        counts = model.users.allocated, model.items.allocated
        model.apply(Update(model.revision + 1, users, items, None, None, *counts, part[:, 2] * 10**6))
        model.learn_context(items, keyed(bags[start : start + len(part)]))
    return model


def recalls(data: Data, bags: list[list[str]], model: Backend, part: Part) -> dict[float, float]:
    """Recall@10 of a sample of the events of a part by weight; 0 is without context."""
    rng, before = np.random.default_rng(SEED), data.events[: part.start]
    had: dict[int, list[int]] = {}
    for user, item in before[:, :2].tolist():
        had.setdefault(user, []).append(item)
    size = min(TEST_EVENTS, part.stop - part.start)
    chosen = np.sort(rng.choice(np.arange(part.start, part.stop), size, replace=False))
    users, items = data.events[chosen, 0].astype(np.uint64), data.events[chosen, 1].astype(np.uint64)
    user_rows = model.users.find(users, model.published[USERS])
    item_rows = model.items.find(items, model.published[ITEMS])
    known = np.flatnonzero((user_rows != NO_ROW) & (item_rows != NO_ROW))
    reader, count, k = PersonReader(model.spec), model.published[ITEMS], model.spec.k
    rows = np.arange(count, dtype=np.uint32)
    factors, bias = model.gather(ITEMS, rows)
    hits = dict.fromkeys((0.0, *WEIGHTS), 0)
    for at in known.tolist():
        read = reader.read(model, user_rows[at : at + 1], count)
        scores = factors[:, :k] @ read.factors[0, :k] + bias + read.gains(0, rows)
        asked = keyed([bags[chosen[at]]])
        added = factors[:, :k] @ factors_of(model.context(asked.keys), asked)[0]
        gone = model.items.find(np.array(had[int(users[at])], np.uint64), count)
        for weight in hits:
            found = scores + np.float32(weight) * added
            found[gone] = -np.inf
            hits[weight] += int((found > found[item_rows[at]]).sum() < LIST)
    return {weight: number / len(known) for weight, number in hits.items()}


def figures_of(data: Data) -> Figures:
    """All figures by flat names."""
    figures: Figures = {}
    count = len(data.events)
    cuts = [count * 8 // 10, count * 9 // 10, count]
    for name in PRESETS:
        spec = check(replace(preset(name), context=Context(1 << 16)))
        for kind, bags in bags_of(data).items():
            found = []
            for part in (Part(cuts[0], cuts[1]), Part(cuts[1], cuts[2])):
                model = learned(data.events[: part.start], bags, spec)
                found.append(recalls(data, bags, model, part))
            weight = max(WEIGHTS, key=lambda each: found[0][each])
            prefix = f"context_{name}_{kind}"
            figures |= {f"{prefix}_with": found[1][weight], f"{prefix}_without": found[1][0.0]}
            figures |= {f"{prefix}_weight": weight, f"{prefix}_ratio": found[1][weight] / found[1][0.0]}
    return figures


def table(figures: Figures) -> str:
    """The figures as a table of docs/content.md."""
    lines = [
        "| preset | context | `context_weight` | recall@10 with | without | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name in PRESETS:
        for kind, words in KINDS.items():
            values = [
                figures[f"context_{name}_{kind}_{part}"] for part in ("weight", "with", "without", "ratio")
            ]
            weight, *cells = [float(value or 0) for value in values]
            lines.append(
                f"| {name} | {words} | {weight:g} | {cells[0]:.3f} | {cells[1]:.3f} | {cells[2]:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=0, help="number of users that are drawn; 0 takes all")
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--pages", action="store_true", help="write the table of docs/content.md, too")
    chosen = parser.parse_args()
    figures = figures_of(gifts(None, chosen.users, SEED))
    print(json.dumps(figures, indent=1))
    if chosen.output:
        chosen.output.write_text(json.dumps(figures, indent=1) + "\n")
    if chosen.pages:
        write_between(ROOT / "docs/content.md", "benchmarks.content.context", table(figures))


if __name__ == "__main__":
    main()
