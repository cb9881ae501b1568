"""A warm start: a live model takes over from a nightly one, and learns on.

    python -m benchmarks.quality.warm_start [FOLDER] [--preset P] [--start-events S] [--seeds N]

The nightly model is iALS of the package implicit, fitted to the first half of the events, in time
order. Its factors become the first state of a live model. NDCG@10 is judged on the next twentieth
of the events (the hand-over). Then the live model learns them, and the twentieth after them is
judged (later). The nightly model does not change meanwhile. A list leaves out what the user had
before. A user whom the nightly model does not know gets its most popular items.

Online Retail has the first purchase of each item by each customer. FOLDER has MovieLens-1M as
`ml-1m`, of which the half with times is used.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.pages import ROOT, six_digits, write_between
from benchmarks.quality.content import LABELS, LIST, Data, ndcg, sets_of
from benchmarks.quality.ranking import Figures
from livefactor_kernels.backend import Backend, Update, create_backend
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import ITEMS, USERS, ModelSpec, Rule
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import NO_ROW
from livefactor_kernels.tables.start import Start
from livefactor_server.engine.dimension import START_EVENTS

RECORD_EVENTS, FACTORS = 32, 64
RESULTS = ROOT / "benchmarks/results/warm_start.json"


class Nightly:
    """iALS, fitted once. `users` and `items` are the ids of its rows."""

    def __init__(self, events: np.ndarray, seed: int) -> None:
        """Fits events int64[n, 3]."""
        from implicit.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        self.users, user_rows = np.unique(events[:, 0], return_inverse=True)
        self.items, item_rows = np.unique(events[:, 1], return_inverse=True)
        pairs = csr_matrix((np.ones(len(events), np.float32), (user_rows, item_rows)))
        pairs.data[:] = 1.0
        self.popular = self.items[np.argsort(-np.bincount(item_rows), kind="stable")]
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(FACTORS, alpha=2.0, random_state=seed, num_threads=1)
            model.fit(pairs, show_progress=False)
        self.user_factors, self.item_factors = model.user_factors, model.item_factors

    def lists(self, users: np.ndarray, had: dict[int, set[int]]) -> list[np.ndarray]:
        """The best items for each user, without what the user has had."""
        found = []
        for user in users.tolist():
            at = int(np.searchsorted(self.users, user))
            order = self.popular
            if at < len(self.users) and self.users[at] == user:
                order = self.items[np.argsort(-(self.item_factors @ self.user_factors[at]), kind="stable")]
            found.append(order[~np.isin(order, list(had.get(user, ())))][:LIST])
        return found


def started(nightly: Nightly, spec: ModelSpec) -> Backend:
    """A model that begins with the nightly one's factors."""
    model = create_backend("cpu", spec)
    for side, ids, factors in (
        (ITEMS, nightly.items, nightly.item_factors),
        (USERS, nightly.users, nightly.user_factors),
    ):
        rows = (model.users, model.items)[side].allocate(ids.astype(np.uint64))
        counts = model.users.allocated, model.items.allocated
        model.begin(Start(side, rows, factors.astype(np.float32), None, model.revision + 1, *counts))
    return model


def learn(model: Backend, events: np.ndarray) -> None:
    """Learns events int64[n, 3]."""
    for start in range(0, len(events), RECORD_EVENTS):
        part = events[start : start + RECORD_EVENTS]
        users = model.users.allocate(part[:, 0].astype(np.uint64))
        items = model.items.allocate(part[:, 1].astype(np.uint64))
        counts = model.users.allocated, model.items.allocated
        model.apply(Update(model.revision + 1, users, items, None, None, *counts, part[:, 2] * 10**6))


def lists(model: Backend, users: np.ndarray, had: dict[int, set[int]]) -> list[np.ndarray]:
    """The best items of the model for each user, without what the user has had."""
    reader, rows = PersonReader(model.spec), model.users.find(users.astype(np.uint64), model.published[0])
    keys = model.items.keys[: model.published[1]]
    found = []
    with model.pin() as pin:
        for start in range(0, len(rows), 64):
            part = slice(start, start + 64)
            read = reader.read(pin, rows[part], len(keys))
            own = [
                np.sort(model.items.find(np.array(sorted(had.get(user, ())), np.uint64), len(keys)))
                for user in users[part].tolist()
            ]
            own = [each[each != NO_ROW] for each in own]
            ends = np.concatenate([[0], np.cumsum([len(each) for each in own])])
            none = np.empty(0, np.uint32)
            best, _, offsets = read.top_k(pin, keys, LIST, none, np.concatenate(own), ends)
            found += [keys[best[a:b]].astype(np.int64) for a, b in pairwise(offsets)]
    return found


def had_before(events: np.ndarray) -> dict[int, set[int]]:
    """The items of each user."""
    had: dict[int, set[int]] = {}
    for user, item in events[:, :2].tolist():
        had.setdefault(user, set()).add(item)
    return had


def judged(data: Data, spec: ModelSpec, seed: int) -> Figures:
    """The figures of a set."""
    events, half, step = data.events, len(data.events) // 2, len(data.events) // 20
    nightly = Nightly(events[:half], seed)
    model, cold, figures = started(nightly, spec), create_backend("cpu", spec), {}
    for name, at in (("handover", half), ("later", half + step)):
        test, had = events[at : at + step], had_before(events[:at])
        known = np.isin(test[:, 0], nightly.users)
        for who, chosen in (("known", test[known]), ("all", test)):
            users = np.unique(chosen[:, 0])
            relevant = list(map(had_before(chosen).__getitem__, users.tolist()))
            ours = ndcg(lists(model, users, had), relevant)
            night = ndcg(nightly.lists(users, had), relevant)
            figures |= {f"{name}_{who}": ours, f"{name}_{who}_nightly": night}
            figures[f"{name}_{who}_ratio"] = ours / night
            if name == "later":
                figures[f"later_{who}_cold"] = ndcg(lists(cold, users, had), relevant)
        learn(model, test)
        learn(cold, test)
    return figures


def figures_of(sets: dict[str, Data], spec: ModelSpec, seeds: int) -> Figures:
    """All figures of some sets, by flat names. The nightly model is fitted with each of the seeds.

    `warm_start_ratio` is the least ratio of the live model to the nightly one for known users, at
    the hand-over and later.
    """
    figures: Figures = {}
    for name, data in sets.items():
        drawn = [judged(data, spec, seed) for seed in range(1, seeds + 1)]
        for key in drawn[0]:
            values = [float(each[key] or 0) for each in drawn]
            figures[f"warm_{name}_{key}"] = float(np.mean(values))
            if key.endswith("_ratio"):
                figures[f"warm_{name}_{key}_spread"] = max(values) - min(values)
    ratios = [f"warm_{name}_{when}_known_ratio" for name in sets for when in ("handover", "later")]
    return figures | {"warm_start_ratio": min(float(figures[key] or 0) for key in ratios)}


def with_starts(spec: ModelSpec, events: float = START_EVENTS) -> ModelSpec:
    """The spec, with which rows may begin with factors that count as so many events."""
    if spec.rule != Rule.SOLVE:
        return spec
    return check(replace(spec, solve=replace(spec.solve, start_events=events)))


def table(figures: Figures) -> str:
    """The figures of a run as a table of docs/guides/warm_start.md."""
    lines = [
        "| data | users | when | nightly iALS | live model | ratio | model without the factors |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, label in LABELS.items():
        for who, users in (("known", "known to iALS"), ("all", "all")):
            for when, words in (("handover", "at the hand-over"), ("later", "5 % of the events later")):
                key = f"warm_{name}_{when}_{who}"
                if key in figures:
                    cells = [figures[f"{key}_nightly"], figures[key], figures[f"{key}_ratio"]]
                    shown = [f"{float(cell or 0):.3f}" for cell in cells]
                    cold = figures.get(f"{key}_cold")
                    shown.append("" if cold is None else f"{float(cold):.3f}")
                    lines.append(f"| {label} | {users} | {words} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--start-events", type=float, default=START_EVENTS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--pages", action="store_true", help="only write --output to docs/guides/warm_start.md"
    )
    chosen = parser.parse_args()
    if chosen.pages:
        kept = json.loads(chosen.output.read_text())
        write_between(ROOT / "docs/guides/warm_start.md", "benchmarks.quality.warm_start", table(kept))
        return
    films_folder = None if chosen.folder is None else chosen.folder / "ml-1m"
    spec = with_starts(preset(chosen.preset), chosen.start_events)
    figures = six_digits(figures_of(sets_of(films_folder, 0), spec, chosen.seeds))
    text = json.dumps(figures, indent=1, sort_keys=True)
    print(text)
    chosen.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
