"""Whether a small neural network maps vectors to factors better than the linear map.

    python -m benchmarks.content.tower FOLDER [--vectors FILE] [--set films|retail] [--pages]

An offline trial, which bounds what a network in the stream could gain: it takes as many passes as
it needs. FOLDER has MovieLens-1M as `ml-1m`; Online Retail is the one of the package. 20 % of the
items lose all their events. A model of preset `clicks` learns the others. Three maps are fitted to
the solved rows of items with at least 8 events, from their vectors: the ridge regression that the
server has, and networks with one or two hidden layers (ReLU, 128 units, Adam, weight decay from
`DECAYS`). The decay of a network, and the number of its passes, are chosen on a fifth of these
items, and so is the ridge of the linear map in the row "best ridge". Then the maps give the hidden
items their rows, and each user who had some of them gets a list of the hidden items. Vectors are
those of `benchmarks.quality.content`, or FILE.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from benchmarks.pages import ROOT, write_between
from benchmarks.quality.content import LABELS, LIST, Data, films, gifts, learned, ndcg
from benchmarks.quality.ranking import Figures
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.solve.prior import RIDGE
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS

EVENTS_MIN, HIDDEN_UNITS, PASSES = 8, 128, 120
DECAYS = (1e-3, 0.1, 3.0)
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
MAPS = {
    "linear": "linear, as the server has it",
    "ridge": "linear, best ridge",
    "one": "network, one hidden layer",
    "two": "network, two hidden layers",
}

Map = Callable[[np.ndarray], np.ndarray]


def linear(vectors: np.ndarray, rows: np.ndarray, ridge: float) -> Map:
    """The ridge regression of `solve/prior`, with an intercept."""
    wide = np.hstack([vectors, np.ones((len(vectors), 1))])
    gram = wide.T @ wide
    size = vectors.shape[1]
    gram[np.arange(size), np.arange(size)] += ridge * np.trace(gram[:size, :size]) / len(vectors)
    found = np.linalg.solve(gram, wide.T @ rows)
    return lambda more: np.hstack([more, np.ones((len(more), 1))]) @ found


def network(vectors: np.ndarray, rows: np.ndarray, layers: int, decay: float, seed: int) -> Map:
    """A network, whose inputs and outputs are standardised."""
    means, spreads = vectors.mean(axis=0), vectors.std(axis=0) + 1e-9
    scale = rows.std()
    found = MLPRegressor(
        hidden_layer_sizes=(HIDDEN_UNITS,) * layers, alpha=decay, max_iter=PASSES, early_stopping=True, n_iter_no_change=8,
        validation_fraction=0.2, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found.fit((vectors - means) / spreads, rows / scale)
    return lambda more: np.asarray(found.predict((more - means) / spreads)) * scale


def best(vectors: np.ndarray, rows: np.ndarray, fits: list[Callable[..., Map]], seed: int) -> Map:
    """The fit with the least squared error on a fifth of the rows, fitted to all of them."""
    order = np.random.default_rng(seed).permutation(len(rows))
    held, kept = order[: len(rows) // 5], order[len(rows) // 5 :]

    def error(fit: Callable[..., Map]) -> float:
        return float(np.square(fit(vectors[kept], rows[kept])(vectors[held]) - rows[held]).sum())

    return min(fits, key=error)(vectors, rows)


def maps(vectors: np.ndarray, rows: np.ndarray, seed: int) -> dict[str, Map]:
    """The maps by name."""

    def networks(layers: int) -> list[Callable[..., Map]]:
        return [lambda e, y, decay=decay: network(e, y, layers, decay, seed) for decay in DECAYS]

    ridges = [lambda e, y, ridge=ridge: linear(e, y, ridge) for ridge in RIDGES]
    return {
        "linear": linear(vectors, rows, RIDGE),
        "ridge": best(vectors, rows, ridges, seed),
        "one": best(vectors, rows, networks(1), seed),
        "two": best(vectors, rows, networks(2), seed),
    }


def hidden(data: Data, seed: int) -> dict[str, float]:
    """NDCG@10 of lists of the hidden items by map, and that of their true popularity."""
    known = np.unique(data.events[:, 1])
    away = np.random.default_rng(seed).choice(known, len(known) // 5, replace=False)
    is_away = np.isin(data.events[:, 1], away)
    model = learned(data, data.events[~is_away], preset("clicks"))
    test, k = data.events[is_away], model.spec.k
    place = {item: at for at, item in enumerate(data.ids.tolist())}
    items = np.array([item for item in known.tolist() if item in place])
    rows = model.items.find(items.astype(np.uint64), model.published[ITEMS])
    seen = np.where(rows == NO_ROW, 0, model.read(ITEMS, rows, ("seen_count",))["seen_count"])
    told = np.flatnonzero(seen >= EVENTS_MIN)
    vectors = data.vectors.astype(np.float64)
    at = np.array([place[item] for item in items.tolist()])
    solved = model.gather(ITEMS, rows[told])[0][:, :k].astype(np.float64)
    users = np.unique(test[:, 0])
    user_rows = model.users.find(users.astype(np.uint64), model.published[USERS])
    users, user_rows = users[user_rows != NO_ROW], user_rows[user_rows != NO_ROW]
    tastes = PersonReader(model.spec).read(model, user_rows, model.published[ITEMS]).factors[:, :k]
    ranked = np.array([item for item in away.tolist() if item in place])
    relevant = [set(test[test[:, 0] == user, 1].tolist()) for user in users]
    found = {}
    for name, each in maps(vectors[at[told]], solved, seed).items():
        scores = tastes @ each(vectors[[place[item] for item in ranked.tolist()]]).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :LIST]
        found[name] = ndcg(list(ranked[order]), relevant)
    popular, counts = np.unique(test[:, 1], return_counts=True)
    oracle = popular[np.argsort(-counts, kind="stable")][:LIST]
    return found | {"oracle": ndcg([oracle] * len(users), relevant)}


def figures_of(name: str, data: Data, seeds: int) -> Figures:
    """The figures of a set: the mean by map, and the least and the most ratio to the linear map."""
    drawn = [hidden(data, seed) for seed in range(1, seeds + 1)]
    figures: Figures = {}
    for key in MAPS:
        ratios = [each[key] / each["linear"] for each in drawn]
        figures[f"tower_{name}_{key}"] = float(np.mean([each[key] for each in drawn]))
        figures[f"tower_{name}_{key}_ratio"] = float(np.mean(ratios))
        figures[f"tower_{name}_{key}_low"], figures[f"tower_{name}_{key}_high"] = min(ratios), max(ratios)
    return figures


def table(figures: Figures) -> str:
    """The figures as a table of docs/content.md."""
    lines = ["| | map | NDCG@10 | to the linear map | least and most |", "|---|---|---|---|---|"]
    for name, label in LABELS.items():
        for key, words in MAPS.items():
            prefix = f"tower_{name}_{key}"
            if prefix in figures:
                parts = ("", "_ratio", "_low", "_high")
                mean, ratio, low, high = (float(figures[prefix + part] or 0) for part in parts)
                lines.append(f"| {label} | {words} | {mean:.4f} | {ratio:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=tuple(LABELS), help="one set; default: both")
    parser.add_argument("--vectors", type=Path, help="vectors of the texts of the set (.npy)")
    parser.add_argument("--users", type=int, default=0, help="number of users that are drawn; 0 takes all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a JSON file, whose figures of other sets stay")
    parser.add_argument("--pages", action="store_true", help="write the table of docs/content.md, too")
    chosen = parser.parse_args()
    figures: Figures = {}
    if chosen.output and chosen.output.exists():
        figures = json.loads(chosen.output.read_text())
    for name in LABELS if chosen.set is None else (chosen.set,):
        if name == "films":
            data = films(chosen.folder / "ml-1m", chosen.vectors, chosen.users, 1)
        else:
            data = gifts(chosen.vectors, chosen.users, 1)
        figures |= figures_of(name, data, chosen.seeds)
    print(json.dumps(figures, indent=1))
    if chosen.output:
        chosen.output.write_text(json.dumps(figures, indent=1) + "\n")
    if chosen.pages:
        write_between(ROOT / "docs/content.md", "benchmarks.content.tower", table(figures))


if __name__ == "__main__":
    main()
