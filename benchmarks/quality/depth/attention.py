"""What attention over the last items is worth.

    python -m benchmarks.quality.depth.attention FOLDER [--clicks N] [--output FILE] [--pages]

It needs PyTorch (the extra `adapt`), and FOLDER is that of `benchmarks.quality.auto`. The sessions,
the predictions and the recall are those of `benchmarks/quality/auto/sessions.py`.

The user vector is a weighted mean of vectors of the last `SPAN` items. The weights are a softmax of
a learned number by place, plus the product of the last item's query and the item's key (the
smallest form of NAIS, He et al., TKDE 2018, and of SASRec, Kang and McAuley, ICDM 2018). Vectors of
history items and of target items are separate, as in FISM. It learns each session when it is over,
in one pass, with the softmax loss over the targets of the batch and drawn items, corrected by their
probabilities (Yi et al., RecSys 2019). "Mean" is the same model with equal weights.

The sum adds the standardised scores of session-kNN and a weight times those of the attention. The
weight is chosen on the first `TUNED_PERIODS` periods, and all methods are judged on the others.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import ROOT, six_digits, write_between
from benchmarks.quality.auto.sessions import TOP, TUNED_PERIODS, Neighbors, _Asked, _records, head
from benchmarks.quality.auto.sets import Sessions, diginetica
from benchmarks.quality.ranking import Figures

RESULTS, PAGE = ROOT / "benchmarks/results/attention.json", ROOT / "docs/sequences.md"
SPAN, K, BATCH, DRAWN, RATE = 8, 64, 256, 1024, 0.1
WEIGHTS = (0.1, 0.25, 0.5, 1.0)
KNN = {"sample": 64, "neighbors": 300, "half_life": 3.0, "idf": 1.0, "near": 3.0}
METHODS = {
    "mean": "mean of the last eight items, learned vectors",
    "attention": "attention over the last eight items",
    "sknn": "session-kNN",
    "sum": "session-kNN and attention",
}


class Attention:
    """Vectors of items, and the weights of the last items. `is_mean` leaves the weights equal."""

    def __init__(self, items: int, is_mean: bool, seed: int = 0) -> None:
        import torch

        torch.manual_seed(seed)
        self._torch, self._items, self._is_mean = torch, items, is_mean
        self._tables = [torch.nn.Embedding(items + 1, K, sparse=True) for _ in range(2)]
        self._bias = torch.nn.Embedding(items + 1, 1, sparse=True)
        for table in self._tables:
            torch.nn.init.normal_(table.weight, std=0.1)
        torch.nn.init.zeros_(self._bias.weight)
        self._places = torch.nn.Parameter(-0.5 * torch.arange(SPAN, dtype=torch.float32))
        self._query = torch.nn.Parameter(0.01 * torch.randn(K, K))
        tables = [*self._tables, self._bias]
        self._optimizers = [
            torch.optim.Adagrad([each.weight for each in tables], RATE, initial_accumulator_value=0.1),
            torch.optim.Adagrad([self._places, self._query], 0.01),
        ]
        self._counts, self._seen = np.ones(items), 0

    def _users(self, histories: Any) -> Any:
        """The user vectors float32[n, K] of histories int64[n, SPAN], as `_history` makes them."""
        torch, absent = self._torch, histories == self._items
        vectors = self._tables[0](histories)
        if self._is_mean:
            scores = torch.zeros(histories.shape)
        else:
            scores = self._places + (vectors @ (vectors[:, 0] @ self._query)[:, :, None])[:, :, 0]
        weights = torch.softmax(scores.masked_fill(absent, -1e9), dim=1)
        return (weights[:, :, None] * vectors).sum(dim=1)

    def learn(self, histories: np.ndarray, targets: np.ndarray) -> None:
        """Learns in batches. `histories` int64[n, SPAN] are newest first, `targets` int64[n]."""
        torch, rng = self._torch, np.random.default_rng(self._seen)
        for start in range(0, len(targets), BATCH):
            part = slice(start, start + BATCH)
            own = targets[part]
            self._seen += len(own)
            np.add.at(self._counts, own, 1)
            others = np.concatenate([own, rng.integers(0, self._items, DRAWN)])
            shares = self._counts[others] / self._counts.sum()
            logs = np.log(len(own) * shares + DRAWN / self._items)
            users = self._users(torch.from_numpy(histories[part]))
            asked = torch.from_numpy(others)
            scores = users @ self._tables[1](asked).T + self._bias(asked)[:, 0]
            scores = scores - torch.from_numpy(logs.astype(np.float32))
            hits = own[:, None] == others[None]
            hits[np.arange(len(own)), np.arange(len(own))] = False
            scores = scores.masked_fill(torch.from_numpy(hits), -1e9)
            loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(own)), reduction="sum")
            for optimizer in self._optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self._optimizers:
                optimizer.step()

    def scores(self, before: np.ndarray) -> np.ndarray:
        """The standardised scores of all items after clicks int[n], float32[items]."""
        with self._torch.no_grad():
            user = self._users(self._torch.from_numpy(_history(before, self._items)[None]))
            found = (self._tables[1].weight @ user[0] + self._bias.weight[:, 0]).numpy()[: self._items]
        return np.asarray((found - found.mean()) / found.std())


def _history(before: np.ndarray, none: int) -> np.ndarray:
    """The last items, newest first, int64[SPAN]. `none` stands where there is none."""
    last = before[: -1 - SPAN : -1].astype(np.int64)
    return np.pad(last, (0, SPAN - len(last)), constant_values=none)


def _pairs(clicks: Sessions, part: slice, none: int) -> tuple[np.ndarray, np.ndarray]:
    """The histories and targets of the clicks of whole sessions."""
    sessions, items = clicks.sessions[part], clicks.items[part]
    starts = np.maximum.accumulate(
        np.where(np.append(True, sessions[1:] != sessions[:-1]), np.arange(len(items)), 0)
    )
    at = np.flatnonzero(np.arange(len(items)) > starts)
    histories = [_history(items[starts[place] : place], none) for place in at.tolist()]
    return np.array(histories, np.int64).reshape(-1, SPAN), items[at].astype(np.int64)


def measured(clicks: Sessions) -> Figures:
    """Recall@20 of all methods, for all next clicks and for those that are new to the session."""
    items = int(clicks.items.max()) + 1
    knn, asked = Neighbors(clicks, KNN), _Asked(clicks)
    learned = {name: Attention(items, name == "mean") for name in ("mean", "attention")}
    names = ["mean", "attention", "sknn", *(f"sum_{weight}" for weight in WEIGHTS)]
    seen, periods = np.zeros(items, bool), int(clicks.periods.max()) + 1
    sums = np.zeros((len(names), 2, periods, 2))
    for part in _records(clicks):
        for period, told in asked.of(part):
            before, target = told[:-1], int(told[-1])
            if not seen[target]:
                continue
            of_knn = _standardised(knn.scores(before), items)
            found = [learned["mean"].scores(before), learned["attention"].scores(before), of_knn]
            found += [of_knn + weight * found[1] for weight in WEIGHTS]
            is_new = target not in before
            for method, scores in enumerate(found):
                # Of equal scores the smaller item is first, as in `_ranks`.
                above = (scores > scores[target]) & seen
                above[:target] |= (scores[:target] == scores[target]) & seen[:target]
                sums[method, 0, period] += above.sum() < TOP, 1
                if is_new:
                    above[before] = False
                    sums[method, 1, period] += above.sum() < TOP, 1
        seen[clicks.items[part]] = True
        knn.learn(part)
        for each in learned.values():
            each.learn(*_pairs(clicks, part, items))
    with np.errstate(invalid="ignore"):
        recall = sums[..., 0] / sums[..., 1]
    cut = min(TUNED_PERIODS + 1, periods - 1)
    tuned = [float(np.nanmean(recall[names.index(f"sum_{weight}"), 0, :cut])) for weight in WEIGHTS]
    best = WEIGHTS[int(np.argmax(tuned))]
    figures: Figures = {"sum_weight": best}
    for name in METHODS:
        place = names.index(f"sum_{best}" if name == "sum" else name)
        for what, key in enumerate(("recall20", "new_items_recall20")):
            figures[f"{key}_{name}"] = float(np.nanmean(recall[place, what, cut:]))
    sknn = float(figures["recall20_sknn"] or 0)
    for name in ("attention", "sum"):
        figures[f"{name}_to_sknn"] = float(figures[f"recall20_{name}"] or 0) / sknn
    return figures


def _standardised(scores: Counter[int], items: int) -> np.ndarray:
    """The square roots of scores, standardised over all items, float32[items]."""
    found = np.zeros(items, np.float32)
    found[list(scores)] = np.sqrt(list(scores.values()))
    return np.asarray((found - found.mean()) / max(float(found.std()), 1e-9))


def table(figures: Figures) -> str:
    """The table of docs/sequences.md."""
    lines = ["| | all next clicks | new items alone |", "|---" * 3 + "|"]
    for name, label in METHODS.items():
        cells = [f"{figures[f'{key}_{name}']:.3f}" for key in ("recall20", "new_items_recall20")]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--clicks", type=int, default=0, help="only about the first clicks, in three periods")
    parser.add_argument("--pages", action="store_true", help="only write the results to docs/sequences.md")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    if not chosen.pages:
        clicks = diginetica(chosen.folder)
        clicks = head(clicks, chosen.clicks) if chosen.clicks else clicks
        found = six_digits(measured(clicks))
        chosen.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(json.dumps(found, indent=1))
    found = json.loads(chosen.output.read_text())
    if chosen.output == RESULTS:
        write_between(PAGE, "benchmarks.quality.depth.attention", table(found))


if __name__ == "__main__":
    main()
