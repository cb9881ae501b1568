"""What an adapter is worth: an encoder that learned from the log, beside the frozen one.

    python -m benchmarks.quality.depth.adapt [--set films --folder FOLDER] [--output FILE] [--pages]

It needs the extra `adapt`. FOLDER has MovieLens-1M as `ml-1m`, of which the half with times is
used. The texts of films are titles and genres. Those of Online Retail are the descriptions of the
package.

Few events: the last tenth of the events is the test, and the adapter learns from those before. The
model `auto` learns the stream with the vectors of the frozen encoder, and with those of the adapted
one. Recall@10 is that of items with at most 5 events before the test, ranked among such items
(`benchmarks/quality/content.py`).

Run again: the first adapter learns from the first 80 % of the events. A second run continues with
the next 10 %. The last 10 % are the new test. The old test has the pairs of a twentieth of the
users in the first 80 %, from whom no run learns. The figure is the share of pairs whose next item
is among the first 10 by the texts alone.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.pages import ROOT, six_digits, write_between
from benchmarks.quality.content import Data, _texts, few, films, gifts
from benchmarks.quality.ranking import Figures
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Embeddings
from livefactor_kernels.spec.presets import preset
from livefactor_server.cli.demo.shop import load_shop
from livefactor_server.files.encoding import Encoder
from livefactor_server.tuning.adapting.augmenting import Augmentation
from livefactor_server.tuning.adapting.pairs import Pairs, pairs_of
from livefactor_server.tuning.adapting.run import HISTORY_ITEMS, hits
from livefactor_server.tuning.adapting.training import Training, train

BATCH_TEXTS, JUDGED_MAX, STEPS = 128, 5000, 300
LABELS = {"films": "MovieLens-1M, films", "retail": "Online Retail, gifts"}


def texts_of(name: str, folder: Path | None, data: Data) -> list[str]:
    """One text for each item that has a vector."""
    if name == "retail":
        return list(load_shop().labels.values())
    told = _texts(folder or Path())
    return [f"{told[film][0]}. {told[film][1].replace('|', ', ')}" for film in data.ids.tolist()]


def numbers_of(data: Data) -> np.ndarray:
    """The number of the item of each event, int64[n]."""
    return np.searchsorted(data.ids, data.events[:, 1])


class Adapted:
    """An encoder that learns from some pairs, and the vectors before and after."""

    def __init__(self, texts: list[str], seed: int) -> None:
        self._texts, self._encoder = texts, Encoder()
        self.vectors = self._encode()
        self._encoder.adapt(None, seed=seed)

    def _encode(self) -> np.ndarray:
        return self._encoder.encode(self._texts, BATCH_TEXTS, lambda done: None)

    def learn(self, pairs: Pairs, earlier: Pairs, training: Training) -> np.ndarray:
        """The vectors after a training."""

        def report(step: int, loss: float) -> None:
            if step % 50 == 0:
                print(f"step {step}: loss {loss:.3f}", flush=True)

        train(self._encoder, self._texts, self.vectors.copy(), pairs, earlier, training, report)
        self.vectors = self._encode()
        return self.vectors


def few_events(data: Data, texts: list[str], training: Training) -> Figures:
    """Recall@10 of items with few events, frozen and adapted."""
    cut, found = len(data.events) * 9 // 10, {}
    pairs = pairs_of(data.events[:cut, 0], numbers_of(data)[:cut], HISTORY_ITEMS)
    adapted = Adapted(texts, training.seed)
    frozen = adapted.vectors
    for what, vectors in (
        ("frozen", frozen),
        ("adapted", adapted.learn(pairs, pairs.take(np.arange(0)), training)),
    ):
        spec = check(replace(preset("auto"), embeddings=Embeddings(vectors.shape[1])))
        got = few(data._replace(vectors=vectors.astype(np.float16)), spec)
        found |= {f"{what}_{kind}_recall10": got[f"{kind}_with"] for kind in ("few", "other")}
        found["few_events"] = got["few_events"]
    return found | {
        f"{kind}_ratio": found[f"adapted_{kind}_recall10"] / found[f"frozen_{kind}_recall10"]
        for kind in ("few", "other")
    }


def suite_figures(sets: dict[str, Data], folder: Path | None, steps: int) -> Figures:
    """The figures of items with few events of all sets, for `make quality`."""
    found: Figures = {}
    for name, data in sets.items():
        measured = few_events(data, texts_of(name, folder, data), Training(steps=steps))
        found |= {f"{name}_{key}": value for key, value in measured.items()}
    return found | _best(found)


def _best(found: Figures) -> Figures:
    """The largest ratio of all sets for items with few events."""
    ratios = [float(found[f"{name}_few_ratio"] or 0) for name in LABELS if f"{name}_few_ratio" in found]
    return {"adapter_few_events_ratio": max(ratios)} if ratios else {}


def again(data: Data, texts: list[str], training: Training) -> Figures:
    """What a second run changes, on new events and on old ones."""
    pairs = pairs_of(data.events[:, 0], numbers_of(data), HISTORY_ITEMS)
    first, second = len(data.events) * 8 // 10, len(data.events) * 9 // 10
    rng = np.random.default_rng(0)
    users = np.unique(data.events[:, 0])
    away = rng.choice(users, len(users) // 20, replace=False)
    is_away = np.isin(data.events[pairs.places, 0], away)
    is_old, is_new = pairs.places < first, (pairs.places >= first) & (pairs.places < second)
    judged = {
        name: _some(pairs.take(which), rng)
        for name, which in (("new", pairs.places >= second), ("old", is_away & is_old))
    }
    adapted = Adapted(texts, training.seed)
    states = {"frozen": adapted.vectors}
    old = pairs.take(is_old & ~is_away)
    states["once"] = adapted.learn(old, pairs.take(np.arange(0)), training)
    states["again"] = adapted.learn(pairs.take(is_new & ~is_away), old, training.continued())
    found = {
        f"{state}_{name}_hits10": hits(vectors, each)
        for state, vectors in states.items()
        for name, each in judged.items()
    }
    return found | {
        f"again_{name}_ratio": found[f"again_{name}_hits10"] / found[f"once_{name}_hits10"] for name in judged
    }


def _some(pairs: Pairs, rng: np.random.Generator) -> Pairs:
    if len(pairs) <= JUDGED_MAX:
        return pairs
    return pairs.take(np.sort(rng.choice(len(pairs), JUDGED_MAX, replace=False)))


def table(figures: Figures) -> str:
    """The figures as the tables of docs/large-models.md."""
    lines = ["| | | frozen | adapted | ratio |", "|---|---|---|---|---|"]
    whose = {"few": "items with at most 5 events, among such items", "other": "other items, among all items"}
    for name, label in LABELS.items():
        for kind, words in whose.items():
            if f"{name}_{kind}_ratio" in figures:
                cells = [figures[f"{name}_{state}_{kind}_recall10"] for state in ("frozen", "adapted")]
                shown = " | ".join(f"{float(cell or 0):.4f}" for cell in cells)
                lines.append(
                    f"| {label} | {words} | {shown} | {float(figures[f'{name}_{kind}_ratio'] or 0):.3f} |"
                )
    if any(f"{name}_again_new_ratio" in figures for name in LABELS):
        lines += ["", "| | | frozen | one run | two runs | second ÷ first |", "|---|---|---|---|---|---|"]
    for name, label in LABELS.items():
        for kind, words in (("new", "the events after both runs"), ("old", "events of the first run")):
            if f"{name}_again_{kind}_ratio" in figures:
                cells = [figures[f"{name}_{state}_{kind}_hits10"] for state in ("frozen", "once", "again")]
                shown = " | ".join(f"{float(cell or 0):.4f}" for cell in cells)
                lines.append(
                    f"| {label} | {words} | {shown} | {float(figures[f'{name}_again_{kind}_ratio'] or 0):.3f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=("films", "retail"), default="retail")
    parser.add_argument("--folder", type=Path, help="has MovieLens-1M as ml-1m")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--learning-rate", type=float, default=Training().learning_rate)
    parser.add_argument("--word-dropout", type=float, default=0.1)
    parser.add_argument("--part", choices=("few", "again", "both"), default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/adapt.json")
    parser.add_argument("--pages", action="store_true", help="only write --output to docs/large-models.md")
    chosen = parser.parse_args()
    kept = json.loads(chosen.output.read_text()) if chosen.output.exists() else {}
    if chosen.pages:
        write_between(ROOT / "docs/large-models.md", "benchmarks.quality.depth.adapt", table(kept))
        return
    name = chosen.set
    data = gifts(None, 0, 1) if name == "retail" else films(chosen.folder / "ml-1m", None, 0, 1)
    texts = texts_of(name, chosen.folder and chosen.folder / "ml-1m", data)
    training = Training(
        steps=chosen.steps, learning_rate=chosen.learning_rate, seed=chosen.seed,
        augmentation=Augmentation(word_dropout=chosen.word_dropout),
    )  # fmt: skip
    for part, measure in (("few", few_events), ("again", again)):
        if chosen.part in (part, "both"):
            kept |= {f"{name}_{key}": value for key, value in measure(data, texts, training).items()}
            kept |= _best(kept)
            chosen.output.write_text(json.dumps(six_digits(kept), indent=1, sort_keys=True) + "\n")
    print(json.dumps(six_digits(kept), indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
