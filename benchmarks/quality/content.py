"""What embeddings of items are worth: hidden items, and items with few events.

    python -m benchmarks.quality.content FOLDER [--set retail] [--minilm] [--share S] [--output F]

FOLDER has MovieLens-1M as `ml-1m`. Of it the half with times is used, and the texts of a film are
its title, genres and plot. Online Retail is the one of the package, with short descriptions. The
vectors are made of the words of the texts (`files/words.py`), or by MiniLM (`--minilm`, extra
`text`), or read from a file (`--vectors`, .npy). Those of films have the genres and the year in
addition. `--share S` keeps the first share S of the events. With `--preset purchases` the part
`features` measures features with gradient steps.

A vector comes when its item enters the shop: before its first event, or after the stream if it has
none there.

Hidden items: 20 % of the items lose all their events. After the stream they are ranked for each
user who had some of them. NDCG@10 is divided by that of the hidden items' true popularity. A user
had them at any time, and a mix ranks for the next visit. So it is measured a second time without
the mix, where all events of a user count equally ("whole taste").

Features: the films are known by genres, the decade and the words of their titles, and the gifts by
the words of their descriptions, as features in place of vectors. Of films there is also a figure
with genres alone.

Few events: the last tenth of the events is the test. Recall@10 of items with at most 5 events
before it, ranked among the items with at most 5 events, with vectors and without; and recall@10 of
the other items, ranked among all items, which must not get worse.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.pages import ROOT, six_digits, write_between
from benchmarks.quality.ranking import Figures
from livefactor.wire.keys import keys_of
from livefactor_kernels.backend import Backend, Update, create_backend
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Embeddings, Features, Loss, ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW
from livefactor_server.cli.demo.shop import load_shop
from livefactor_server.files.words import WordSpace
from livefactor_server.tuning.drawing import write_svg

RECORD_EVENTS, LIST, FEW_EVENTS = 2048, 10, 5
FEATURES_PER_ITEM = 16
WORD_DIMENSION = 128
MINILM = "minilm"
"""Stands for the vectors of the encoder, and names their figures."""
RESULTS = ROOT / "benchmarks/results/content.json"
DISCOUNTS = 1.0 / np.log2(np.arange(2, LIST + 2))


class Data(NamedTuple):
    """A data set.

    Attributes:
        events: int64[n, 3] (user, item, time in seconds), in time order.
        ids: ids of the items that have a vector, int64[m].
        vectors: float16[m, d].
        bags: the features of each of these items, for a spec with features.
    """

    events: np.ndarray
    ids: np.ndarray
    vectors: np.ndarray
    bags: list[list[str]]


def _drawn(events: np.ndarray, users: int, seed: int) -> np.ndarray:
    """The events of so many users, in time order. 0 takes all users."""
    if users:
        chosen = np.random.default_rng(seed).choice(np.unique(events[:, 0]), users, replace=False)
        events = events[np.isin(events[:, 0], chosen)]
    return events[np.argsort(events[:, 2], kind="stable")]


def films(folder: Path, kept: Path | str | None, users: int, seed: int) -> Data:
    """MovieLens-1M, the half with times."""
    with gzip.open(folder / "ratings.csv.gz", "rt") as file:
        events = np.loadtxt(file, np.int64, delimiter=",", skiprows=1)[:, [0, 1, 3]]
    texts = _texts(folder)
    ids = np.array(sorted(texts))
    events = _drawn(events[(events[:, 2] > 0) & np.isin(events[:, 1], ids)], users, seed)
    told = [
        ". ".join((title, genres.replace("|", ", "), plot)) for title, genres, plot in map(texts.get, ids)
    ]
    parts = _embedded(told, kept), _genres(texts, ids), _years(texts, ids)
    bags = [_film_features(*texts[film][:2]) for film in ids.tolist()]
    return Data(events, ids, np.concatenate(parts, axis=1).astype(np.float16), bags)


def gifts(kept: Path | str | None, users: int, seed: int) -> Data:
    """Online Retail: the first purchase of each item by each customer, and short descriptions."""
    shop = load_shop()
    told = list(shop.labels.values())
    number = {key: at for at, key in enumerate(shop.labels)}
    first: dict[tuple[int, int], int] = {}
    columns = shop.users.tolist(), shop.items.tolist(), (shop.times_us // 10**6).tolist()
    for user, item, time in zip(*columns, strict=True):
        if item in number:
            first.setdefault((user, number[item]), time)
    events = np.array([(*pair, time) for pair, time in first.items()], np.int64)
    vectors = _embedded(told, kept)
    bags = [_words(text) for text in told]
    return Data(_drawn(events, users, seed), np.arange(len(told)), vectors.astype(np.float16), bags)


def _words(text: str) -> list[str]:
    """The distinct words of a text as features, at most `FEATURES_PER_ITEM`."""
    words = dict.fromkeys(re.findall("[a-z]+", text.lower()))
    return [f"word:{word}" for word in words][:FEATURES_PER_ITEM]


def _film_features(title: str, genres: str) -> list[str]:
    """The genres, the decade and the words of the title of a film, which ends with its year."""
    facts = [f"genre:{genre}" for genre in genres.split("|")] + [f"decade:{title[-5:-2]}"]
    return (facts + _words(title[:-6]))[:FEATURES_PER_ITEM]


def _texts(folder: Path) -> dict[int, tuple[str, str, str]]:
    """Title, genres and plot of each film."""
    texts = {}
    with gzip.open(folder / "movies.dat.gz", "rt", encoding="latin-1") as file:
        for line in file:
            film, title, genres = line.rstrip("\n").split("::")
            texts[int(film)] = (title, genres, "")
    with gzip.open(folder / "movies_plots.dat.gz", "rt", encoding="utf-8", errors="replace") as file:
        for line in file:
            parts = line.rstrip("\n").split("::")
            if len(parts) > 9 and int(parts[0]) in texts:
                texts[int(parts[0])] = (*texts[int(parts[0])][:2], parts[9])
    return texts


def _embedded(texts: list[str], kept: Path | str | None) -> np.ndarray:
    """The vectors of texts: of their words, of MiniLM, or those of a file."""
    if kept == MINILM:
        from livefactor_server.files.encoding import Encoder

        return Encoder().encode(texts, 128, lambda done: None)
    return WordSpace(texts, WORD_DIMENSION).vectors(texts) if kept is None else np.load(kept)


def _genres(texts: dict[int, tuple[str, str, str]], ids: np.ndarray) -> np.ndarray:
    names = sorted({name for _, genres, _ in texts.values() for name in genres.split("|")})
    rows = np.array([[name in texts[film][1].split("|") for name in names] for film in ids], float)
    return rows / np.sqrt(rows.sum(axis=1))[:, None]


def _years(texts: dict[int, tuple[str, str, str]], ids: np.ndarray) -> np.ndarray:
    """The year as weights of the two nearest marks, which are 5 years apart."""
    years = np.array(
        [int(texts[film][0][-5:-1]) if texts[film][0][-5:-1].isdigit() else 1990 for film in ids]
    )
    return np.maximum(0.0, 1.0 - np.abs(years[:, None] - np.arange(1930, 2005, 5)) / 5)


def learned(data: Data, events: np.ndarray, spec: ModelSpec) -> Backend:
    """The model after the events, and the vectors if the spec has them."""
    model, unknown = create_backend("cpu", spec), set(data.ids.tolist())
    places = {item: place for place, item in enumerate(data.ids.tolist())}

    def describe(items: list[int]) -> None:
        is_told = spec.embeddings.dimension or spec.features.size
        for start in range(0, len(items) if is_told else 0, 512):
            part = np.array(items[start : start + 512])
            rows = model.items.allocate(part.astype(np.uint64))
            told, at = [places[item] for item in part.tolist()], (model.revision + 1, model.items.allocated)
            if spec.features.size:
                model.set_features(ITEMS, rows, _bags([data.bags[place] for place in told]), *at)
            else:
                model.set_embeddings(ITEMS, rows, data.vectors[told], *at)

    for start in range(0, len(events), RECORD_EVENTS):
        part = events[start : start + RECORD_EVENTS]
        entering = unknown & set(part[:, 1].tolist())
        describe(sorted(entering))
        unknown -= entering
        users = model.users.allocate(part[:, 0].astype(np.uint64))
        items = model.items.allocate(part[:, 1].astype(np.uint64))
        counts = model.users.allocated, model.items.allocated
        model.apply(Update(model.revision + 1, users, items, None, None, *counts, part[:, 2] * 10**6))
    describe(sorted(unknown))
    return model


def _bags(bags: list[list[str]]) -> Bags:
    keys = keys_of([name for bag in bags for name in bag])
    return Bags(np.cumsum([len(bag) for bag in bags]), keys, np.ones(len(keys), np.float32))


def lists(model: Backend, users: np.ndarray, allowed: np.ndarray, k: int, seen: bool) -> list[np.ndarray]:
    """The k best of the items `allowed` (keys) for each user, without what the user has had."""
    reader, rows = PersonReader(model.spec), model.users.find(users.astype(np.uint64), model.published[0])
    keys = model.items.keys[: model.published[1]]
    common = np.flatnonzero(~np.isin(keys, allowed.astype(np.uint64))).astype(np.uint32)
    found = []
    with model.pin() as pin:
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            read = reader.read(pin, part, len(keys))
            own, ends = np.empty(0, np.uint32), np.zeros(len(part) + 1, np.int64)
            if seen:
                own, ends = read.exclusions(own, ends)
            best, _, offsets = read.top_k(pin, keys, k, common, own, ends)
            found += [keys[best[offsets[u] : offsets[u + 1]]].astype(np.int64) for u in range(len(part))]
    return found


def ndcg(ranked: list[np.ndarray], relevant: list[set[int]]) -> float:
    """The mean NDCG@10 of lists with binary relevance."""
    gains = [
        DISCOUNTS[: len(row)][[i in good for i in row.tolist()]].sum()
        for row, good in zip(ranked, relevant, strict=True)
    ]
    ideal = [DISCOUNTS[: min(len(good), LIST)].sum() for good in relevant]
    return float(np.mean(np.array(gains) / ideal))


def hidden(data: Data, spec: ModelSpec, seed: int) -> dict[str, float]:
    """NDCG@10 of the hidden films, and that of their true popularity."""
    known = np.unique(data.events[:, 1])
    away = np.random.default_rng(seed).choice(known, len(known) // 5, replace=False)
    is_away = np.isin(data.events[:, 1], away)
    test = data.events[is_away]
    model = learned(data, data.events[~is_away], spec)
    users = np.unique(test[:, 0])
    users = users[model.users.find(users.astype(np.uint64), model.published[0]) != NO_ROW]
    relevant = [set(test[test[:, 0] == user, 1].tolist()) for user in users]
    films_by_events, counts = np.unique(test[:, 1], return_counts=True)
    popular = films_by_events[np.argsort(-counts, kind="stable")][:LIST]
    oracle = ndcg([popular] * len(users), relevant)
    got = ndcg(lists(model, users, away, LIST, seen=False), relevant)
    return {"ndcg10": got, "oracle": oracle, "to_oracle": got / oracle}


def few(data: Data, spec: ModelSpec) -> dict[str, float]:
    """Recall@10 of items with few events, and of the others, with content and without it."""
    cut = len(data.events) * 9 // 10
    before, test = data.events[:cut], data.events[cut:]
    items, counts = np.unique(before[:, 1], return_counts=True)
    busy = items[counts > FEW_EVENTS]
    rare = np.union1d(items[counts <= FEW_EVENTS], np.setdiff1d(test[:, 1], items))
    found: dict[str, float] = {}
    for name, each in (("with", spec), ("without", _plain(spec))):
        model = learned(data, before, each)
        present = test[model.users.find(test[:, 0].astype(np.uint64), model.published[0]) != NO_ROW]
        for what, allowed, among in (("few", rare, rare), ("other", busy, np.union1d(busy, rare))):
            wanted = present[np.isin(present[:, 1], allowed)]
            users = np.unique(wanted[:, 0])
            best = dict(zip(users.tolist(), lists(model, users, among, LIST, seen=True), strict=True))
            hits = [film in best[user] for user, film in wanted[:, :2].tolist()]
            found |= {f"{what}_{name}": float(np.mean(hits)), f"{what}_events": len(hits)}
    ratios = {f"{what}_ratio": found[f"{what}_with"] / found[f"{what}_without"] for what in ("few", "other")}
    return found | ratios


def _plain(spec: ModelSpec) -> ModelSpec:
    return check(replace(spec, embeddings=Embeddings(), features=Features()))


def hidden_of(name: str, data: Data, spec: ModelSpec, seeds: int) -> Figures:
    """The figures of hidden items. They are drawn with each of the seeds."""
    drawn = [hidden(data, spec, seed)["to_oracle"] for seed in range(1, seeds + 1)]
    key = f"cold_{name}_ndcg10_to_oracle"
    return {key: float(np.mean(drawn)), f"{key}_spread": max(drawn) - min(drawn)}


def whole_taste_of(name: str, data: Data, spec: ModelSpec, seeds: int) -> Figures:
    """The figures of hidden items with the spec without its mix."""
    return hidden_of(f"{name}_whole_taste", data, whole_taste(spec), seeds)


def whole_taste(spec: ModelSpec) -> ModelSpec:
    """The spec without its mix: all events of a user count equally, whenever they were."""
    mix, history = replace(spec.mix, learning_rate=0.0), replace(spec.history, half_life=0.0)
    return check(replace(spec, mix=mix, history=history))


def few_of(name: str, data: Data, spec: ModelSpec, seeds: int) -> Figures:
    """The figures of items with few events, and of the others."""
    return {f"{name}_{key}": value for key, value in few(data, spec).items()}


def features_of(name: str, data: Data, spec: ModelSpec, seeds: int) -> Figures:
    """The figures of a set whose items have features in place of vectors."""
    spec = check(replace(_plain(spec), features=Features(1 << 16, FEATURES_PER_ITEM)))
    found: Figures = {}
    genres = [[each for each in bag if each.startswith("genre:")] for bag in data.bags]
    for what, told in (("features", data), ("genres", data._replace(bags=genres))):
        if any(told.bags):
            drawn = [hidden(told, spec, seed)["to_oracle"] for seed in range(1, seeds + 1)]
            found[f"cold_{name}_{what}_ndcg10_to_oracle"] = float(np.mean(drawn))
    return found | {f"{name}_features_{key}": value for key, value in few(data, spec).items()}


PARTS = {"hidden": hidden_of, "whole-taste": whole_taste_of, "few": few_of, "features": features_of}
"""What is measured of a set, by name."""


def figures_of(
    sets: dict[str, Data], spec: ModelSpec, seeds: int, parts: Iterable[str] = tuple(PARTS)
) -> Figures:
    """The figures of some sets, by flat names."""
    figures: Figures = {}
    for name, data in sets.items():
        # Only rule solve takes vectors.
        takes = spec.loss == Loss.IMPLICIT
        each = check(replace(spec, embeddings=Embeddings(data.vectors.shape[1]))) if takes else spec
        for part in parts:
            figures |= PARTS[part](name, data, each, seeds)
    return with_least(figures)


def with_least(figures: Figures) -> Figures:
    """The figures, with the least ratio of all sets for items with few events."""
    ratios = [float(figures[f"{name}_few_ratio"] or 0) for name in LABELS if f"{name}_few_ratio" in figures]
    return figures | {"few_events_recall10_ratio": min(ratios)} if ratios else figures


LABELS = {"films": "MovieLens-1M, films", "retail": "Online Retail, gifts"}
MINILM_LABELS = {f"{name}_{MINILM}": f"{label}, vectors of MiniLM" for name, label in LABELS.items()}


def picture(figures: Figures) -> Any:
    """Recall@10 of items with few events, with vectors and without, as a figure of Matplotlib."""
    from matplotlib.figure import Figure

    names = [name for name in LABELS if f"{name}_few_with" in figures]
    drawn = Figure(figsize=(6.4, 0.7 + 0.9 * len(names)))
    axes = drawn.subplots()
    for place, name in enumerate(reversed(names)):
        for shift, key, colour in ((0.2, "with", "#6a1b9a"), (-0.2, "without", "#9a9a9a")):
            value = float(figures[f"{name}_few_{key}"] or 0)
            label = f"{key} vectors" if not place else None
            axes.barh(place + shift, value, 0.36, color=colour, label=label)
            axes.text(value, place + shift, f" {value:.3f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [LABELS[name] for name in reversed(names)])
    axes.set_xlabel("recall@10 among items with at most 5 events")
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawn.tight_layout()
    return drawn


def table(figures: Figures) -> str:
    """The figures of all sets as a table of docs/content.md."""
    lines = ["| | | with vectors | without | ratio |", "|---|---|---|---|---|"]
    few, rest = (
        f"items with at most {FEW_EVENTS} events: recall@10 among such items",
        "other items: recall@10",
    )
    for name, label in (LABELS | MINILM_LABELS).items():
        for key, words in (("few", few), ("other", f"{rest} among all items")):
            if f"{name}_{key}_ratio" in figures:
                cells = [float(figures[f"{name}_{key}_{part}"] or 0) for part in ("with", "without", "ratio")]
                lines.append(f"| {label} | {words} | {cells[0]:.4f} | {cells[1]:.4f} | {cells[2]:.3f} |")
        for infix, words in (("", ""), ("_whole_taste", ", without the mix")):
            oracle = f"cold_{name}{infix}_ndcg10_to_oracle"
            if oracle in figures:
                value, spread = float(figures[oracle] or 0), float(figures[f"{oracle}_spread"] or 0)
                lines.append(
                    f"| {label} | 20 % of the items hidden{words}: NDCG@10 by that of their true popularity "
                    f"| {value:.3f} (spread {spread:.3f}) | | |"
                )
    return "\n".join(lines)


def sets_of(films_folder: Path | None, users: int) -> dict[str, Data]:
    """The sets with vectors of words, of so many users; 0 takes all."""
    sets = {"retail": gifts(None, users, 1)}
    if films_folder is not None:
        sets = {"films": films(films_folder, None, users, 1)} | sets
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", choices=("films", "retail"), default="films")
    parser.add_argument("--vectors", type=Path, help="vectors of the texts (.npy), in the order of the file")
    parser.add_argument("--minilm", action="store_true", help="vectors of MiniLM, in figures of their own")
    parser.add_argument("--share", type=float, default=1.0, help="the share of the events that is used")
    parser.add_argument("--users", type=int, default=0, help="number of users that are drawn; 0 takes all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", default="auto")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="a JSON file, whose figures of other sets stay"
    )
    parser.add_argument("--pages", action="store_true", help="only write --output to docs/content.md")
    parser.add_argument("--part", choices=tuple(PARTS), help="measure only this part")
    chosen = parser.parse_args()
    if chosen.pages:
        kept = json.loads(chosen.output.read_text())
        write_between(ROOT / "docs/content.md", "benchmarks.quality.content", table(kept))
        write_svg(ROOT / "docs/images/cold-items.svg", lambda: picture(kept))
        return
    spec, parts = preset(chosen.preset), [chosen.part] if chosen.part else list(PARTS)
    name, vectors = (f"{chosen.set}_{MINILM}", MINILM) if chosen.minilm else (chosen.set, chosen.vectors)
    is_films, sizes = chosen.set == "films", (chosen.users, 1)
    data = films(chosen.folder / "ml-1m", vectors, *sizes) if is_films else gifts(vectors, *sizes)
    data = data._replace(events=data.events[: int(len(data.events) * chosen.share)])
    found = six_digits(figures_of({name: data}, spec, chosen.seeds, parts))
    kept = json.loads(chosen.output.read_text()) if chosen.output.exists() else {}
    found = kept | found
    text = json.dumps(with_least(found), indent=1, sort_keys=True)
    print(text)
    chosen.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
