"""What embeddings of items are worth: hidden films, and items with few events.

    python -m benchmarks.quality.content FOLDER [--vectors FILE] [--users N]

FOLDER has MovieLens-1M as `ml-1m`. Only the half with times is used, in time order. The vector of a
film is the embedding of its title, genres and plot by MiniLM (`livefactor encode`), its genres, and
the year in its title. FILE keeps the embeddings (.npy). The encoder needs the extra `text`.

Hidden films: 20 % of the films lose all their ratings. After the stream they are ranked for each
user who rated some of them. NDCG@10 is divided by that of the hidden films' true popularity.

Few events: the last tenth of the events is the test. Recall@10 of items with at most 5 events
before it, ranked among the items with at most 5 events, with vectors and without; and recall@10 of
the other items, ranked among all items, which must not get worse.
"""

from __future__ import annotations

import argparse
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from livefactor_kernels.backend import Backend, Update, create_backend
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Embeddings, Mix, ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import NO_ROW

RECORD_EVENTS, LIST, FEW_EVENTS = 2048, 10, 5
DISCOUNTS = 1.0 / np.log2(np.arange(2, LIST + 2))


class Films:
    """MovieLens-1M: events int64[n, 4] (user, film, rating, time), and a vector for each film."""

    def __init__(self, folder: Path, vectors: Path | None, users: int, seed: int) -> None:
        with gzip.open(folder / "ratings.csv.gz", "rt") as file:
            events = np.loadtxt(file, np.int64, delimiter=",", skiprows=1)
        events = events[events[:, 3] > 0]
        everybody = np.unique(events[:, 0])
        if users:
            everybody = np.random.default_rng(seed).choice(everybody, users, replace=False)
            events = events[np.isin(events[:, 0], everybody)]
        texts = _texts(folder)
        self.ids = np.array(sorted(texts))
        self.events = events[np.isin(events[:, 1], self.ids)]
        self.events = self.events[np.argsort(self.events[:, 3], kind="stable")]
        self.vectors = np.concatenate(
            [_embedded(texts, self.ids, vectors), _genres(texts, self.ids), _years(texts, self.ids)], axis=1
        ).astype(np.float16)


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


def _embedded(texts: dict[int, tuple[str, str, str]], ids: np.ndarray, kept: Path | None) -> np.ndarray:
    if kept is not None and kept.exists():
        return np.load(kept)
    from livefactor_server.files.encoding import Encoder

    parts = [
        ". ".join((title, genres.replace("|", ", "), plot)) for title, genres, plot in map(texts.get, ids)
    ]
    vectors = Encoder().encode(parts, 32, lambda done: print(f"encoded {done} of {len(parts)}", end="\r"))
    if kept is not None:
        np.save(kept, vectors)
    return vectors


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


def learned(films: Films, events: np.ndarray, spec: ModelSpec) -> Backend:
    """The model after the vectors, if the spec has them, and the events."""
    model = create_backend("cpu", spec)
    if spec.embeddings.dimension:
        for start in range(0, len(films.ids), 512):
            rows = model.items.allocate(films.ids[start : start + 512].astype(np.uint64))
            part = films.vectors[start : start + 512]
            model.set_embeddings(rows, part, model.revision + 1, model.items.allocated)
    for start in range(0, len(events), RECORD_EVENTS):
        part = events[start : start + RECORD_EVENTS]
        users = model.users.allocate(part[:, 0].astype(np.uint64))
        items = model.items.allocate(part[:, 1].astype(np.uint64))
        counts = model.users.allocated, model.items.allocated
        model.apply(Update(model.revision + 1, users, items, None, None, *counts, part[:, 3] * 10**6))
    return model


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


def hidden(films: Films, spec: ModelSpec, seed: int) -> dict[str, float]:
    """NDCG@10 of the hidden films, and that of their true popularity."""
    known = np.unique(films.events[:, 1])
    away = np.random.default_rng(seed).choice(known, len(known) // 5, replace=False)
    is_away = np.isin(films.events[:, 1], away)
    test = films.events[is_away]
    model = learned(films, films.events[~is_away], spec)
    users = np.unique(test[:, 0])
    users = users[model.users.find(users.astype(np.uint64), model.published[0]) != NO_ROW]
    relevant = [set(test[test[:, 0] == user, 1].tolist()) for user in users]
    films_by_events, counts = np.unique(test[:, 1], return_counts=True)
    popular = films_by_events[np.argsort(-counts, kind="stable")][:LIST]
    oracle = ndcg([popular] * len(users), relevant)
    got = ndcg(lists(model, users, away, LIST, seen=False), relevant)
    return {"ndcg10": got, "oracle": oracle, "to_oracle": got / oracle}


def few(films: Films, spec: ModelSpec) -> dict[str, float]:
    """Recall@10 of items with few events, and of the others, with vectors and without."""
    cut = len(films.events) * 9 // 10
    before, test = films.events[:cut], films.events[cut:]
    items, counts = np.unique(before[:, 1], return_counts=True)
    busy = items[counts > FEW_EVENTS]
    rare = np.union1d(items[counts <= FEW_EVENTS], np.setdiff1d(test[:, 1], items))
    found: dict[str, float] = {}
    for name, each in (("with", spec), ("without", check(replace(spec, embeddings=Embeddings())))):
        model = learned(films, before, each)
        present = test[model.users.find(test[:, 0].astype(np.uint64), model.published[0]) != NO_ROW]
        for what, allowed, among in (("few", rare, rare), ("other", busy, np.union1d(busy, rare))):
            wanted = present[np.isin(present[:, 1], allowed)]
            users = np.unique(wanted[:, 0])
            best = dict(zip(users.tolist(), lists(model, users, among, LIST, seen=True), strict=True))
            hits = [film in best[user] for user, film in wanted[:, :2].tolist()]
            found |= {f"{what}_{name}": float(np.mean(hits)), f"{what}_events": len(hits)}
    ratios = {f"{what}_ratio": found[f"{what}_with"] / found[f"{what}_without"] for what in ("few", "other")}
    return found | ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vectors", type=Path, help="keeps the embeddings of the texts (.npy)")
    parser.add_argument("--users", type=int, default=0, help="number of users that are drawn; 0 takes all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prior-events", type=float, default=Embeddings().prior_events)
    parser.add_argument("--only", choices=("hidden", "few"))
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--mix", action="store_true", help="keep the mix of the preset auto")
    chosen = parser.parse_args()
    films = Films(chosen.folder / "ml-1m", chosen.vectors, chosen.users, chosen.seed)
    base = preset(chosen.preset)
    if not chosen.mix:
        base = replace(base, mix=Mix(), history=replace(base.history, half_life=0.0))
    embeddings = Embeddings(films.vectors.shape[1], chosen.prior_events)
    spec = check(replace(base, embeddings=embeddings))
    figures: dict[str, Any] = {"events": len(films.events), "films": len(films.ids)}
    if chosen.only != "few":
        figures["hidden"] = hidden(films, spec, chosen.seed)
    if chosen.only != "hidden":
        figures["few"] = few(films, spec)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
