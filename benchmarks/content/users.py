"""What features of users are worth after their first events.

    python -m benchmarks.content.users FOLDER [--preset auto] [--output FILE] [--pages]

FOLDER has MovieLens-1M as `ml-1m`, of which the half with times is used. A user's features are her
gender, age, occupation and the first digit of her zip code. Users come in the order of their first
events. Of the last fifth only the first n events are learned, and NDCG@10 is that of their others,
ranked among all films that they have not had. `features.prior_events` 0 uses a bag until the first
event alone. The same features are also given as vectors of 0 and 1.
"""

from __future__ import annotations

import argparse
import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.pages import ROOT, six_digits, write_between
from benchmarks.quality.content import RECORD_EVENTS, Data, _bags, films, lists, ndcg
from benchmarks.quality.ranking import Figures
from livefactor_kernels.backend import Update, create_backend
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import USERS, Embeddings, Features, ModelSpec
from livefactor_kernels.spec.presets import preset

FIRST = (0, 1, 3, 10)
PRIORS = (None, 0.0, 2.0, 8.0, 32.0)
"""`features.prior_events`. None is the model without features."""
RESULTS = ROOT / "benchmarks/results/users.json"


def bags_of(folder: Path) -> dict[int, list[str]]:
    """The features of each user."""
    bags = {}
    with gzip.open(folder / "users.dat.gz", "rt", encoding="latin-1") as file:
        for line in file:
            user, gender, age, work, code = line.strip().split("::")
            bags[int(user)] = [f"gender:{gender}", f"age:{age}", f"work:{work}", f"zip:{code[0]}"]
    return bags


def names_of(bags: dict[int, list[str]]) -> list[str]:
    """The distinct features."""
    return sorted({name for bag in bags.values() for name in bag})


def divided(events: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The new users, the learned events and the others of the new users."""
    users, begin = np.unique(events[:, 0], return_index=True)
    new = users[np.argsort(begin, kind="stable")][len(users) * 4 // 5 :]
    is_new = np.isin(events[:, 0], new)
    number = np.zeros(len(events), np.int64)
    seen: dict[int, int] = {}
    for at in np.flatnonzero(is_new).tolist():
        user = int(events[at, 0])
        number[at] = seen.get(user, 0)
        seen[user] = number[at] + 1
    away = is_new & (number >= first)
    return new, events[~away], events[away]


def measured(data: Data, bags: dict[int, list[str]], spec: ModelSpec, first: int) -> float:
    """NDCG@10 of new users of whom `first` events are learned."""
    new, learned, test = divided(data.events, first)
    model = create_backend("cpu", spec)
    users, names = np.array(sorted(bags)), names_of(bags)
    is_told = spec.features.size or spec.embeddings.user_dimension
    for start in range(0, len(users) if is_told else 0, 512):
        part = [bags[user] for user in users[start : start + 512].tolist()]
        rows = model.users.allocate(users[start : start + 512].astype(np.uint64))
        at = model.revision + 1, model.users.allocated
        if spec.features.size:
            model.set_features(USERS, rows, _bags(part), *at)
        else:
            vectors = np.array([[name in bag for name in names] for bag in part], np.float16)
            model.set_embeddings(USERS, rows, vectors, *at)
    model.users.allocate(new.astype(np.uint64))
    for start in range(0, len(learned), RECORD_EVENTS):
        part = learned[start : start + RECORD_EVENTS]
        rows = [
            table.allocate(part[:, side].astype(np.uint64))
            for side, table in enumerate((model.users, model.items))
        ]
        counts = model.users.allocated, model.items.allocated
        model.apply(Update(model.revision + 1, *rows, None, None, *counts, part[:, 2] * 10**6))
    judged = np.unique(test[:, 0])
    relevant = [set(test[test[:, 0] == user, 1].tolist()) for user in judged]
    items = np.unique(learned[:, 1])
    return ndcg(lists(model, judged, items, 10, seen=True), relevant)


def figures(folder: Path, name: str, only_vectors: bool) -> Figures:
    """All figures by name."""
    data, bags, base = films(folder, None, 0, 1), bags_of(folder), preset(name)
    embeddings = Embeddings(user_dimension=len(names_of(bags)))
    specs = {"vectors": check(replace(base, embeddings=embeddings))}
    for prior in () if only_vectors else PRIORS:
        features = Features() if prior is None else Features(1 << 16, 16, prior)
        specs[name_of(prior)] = check(replace(base, features=features))
    found: Figures = {}
    for what, spec in specs.items():
        for first in FIRST:
            key = f"users_{name}_{what}_after_{first}"
            found[key] = measured(data, bags, spec, first)
            print(key, found[key], flush=True)
    return found


def name_of(prior: float | None) -> str:
    """`features.prior_events` in the name of a figure."""
    return "none" if prior is None else f"{prior:g}"


def table(found: Figures) -> str:
    """The table of docs/content.md."""
    heads = " | ".join(f"{first} events" for first in FIRST)
    lines = [f"| NDCG@10 after | {heads} |", "|---" * (len(FIRST) + 1) + "|"]
    for name in ("auto", "clicks"):
        words = {
            name_of(prior): "without features" if prior is None else f"`features.prior_events` {prior:g}"
            for prior in PRIORS
        }
        for what, told in (words | {"vectors": "vectors of 0 and 1"}).items():
            keys = [f"users_{name}_{what}_after_{n}" for n in FIRST]
            if keys[0] in found:
                cells = " | ".join(f"{float(found[key] or 0):.4f}" for key in keys)
                lines.append(f"| `{name}`, {told} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--vectors", action="store_true", help="measure vectors alone")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--pages", action="store_true", help="only write --output to docs/content.md")
    chosen = parser.parse_args()
    if not chosen.pages:
        found = six_digits(figures(chosen.folder / "ml-1m", chosen.preset, chosen.vectors))
        kept = json.loads(chosen.output.read_text()) if chosen.output.exists() else {}
        chosen.output.write_text(json.dumps(kept | found, indent=1, sort_keys=True) + "\n")
    else:
        kept = json.loads(chosen.output.read_text())
        write_between(ROOT / "docs/content.md", "benchmarks.content.users", table(kept))


if __name__ == "__main__":
    main()
