"""Federated rounds beside the same model in one place: `python -m benchmarks.privacy.rounds FILE`.

FILE is ratings.csv.gz of MovieLens-1M. A user of its timed half is a participant, and 100 of them
take part in a round. A pass has each of them once. The model in one place learns the same events as
often, participant by participant, or all mixed. Each of both gets the settings that are best on the
earlier division, and the figures are of the later one.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.privacy.participants import Participants, judged, judgement, people, rounds
from benchmarks.privacy.results import keep
from benchmarks.quality.data import Division
from benchmarks.quality.metrics import Judge
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset

SIZE, K = 100, 32
CENTRAL = tuple(product((0.5, 1.0, 2.0), (False, True)))
"""Factor of the preset's learning rates, and whether the events are mixed."""

FEDERATED = tuple(product((0.5, 1.0, 2.0), (10.0, 30.0)))
"""Factor of the preset's learning rates, and what the mean is multiplied by."""


class Best(NamedTuple):
    """The best setting of a grid on the earlier division."""

    ndcg: float
    setting: tuple[float, ...]


def spec_of(rate: float, seed: int = 0) -> ModelSpec:
    """The preset clicks_sgd with fewer factors and other learning rates."""
    base = preset("clicks_sgd")
    optimizer = replace(
        base.optimizer,
        learning_rate=base.optimizer.learning_rate * rate,
        bias_learning_rate=base.optimizer.bias_learning_rate * rate,
    )
    return preset("clicks_sgd", k=K, optimizer=optimizer, seed=seed)


def in_one_place(division: Division, passes: int, rate: float, is_mixed: float, seed: int = 0) -> float:
    """NDCG@10 of one model that learns all events."""
    group = Participants(spec_of(rate, seed), division.learned)
    size = len(people(division.learned)) if is_mixed else SIZE
    for chosen in rounds(people(division.learned), passes, size, seed):
        group.learn_in_one_place(chosen, np.random.default_rng(seed) if is_mixed else None)
    return judged(Judge(division), group.scores)


def federated(division: Division, passes: int, rate: float, times: float, seed: int = 0) -> float:
    """NDCG@10 of a model that gets the mean of what participants changed."""
    group = Participants(spec_of(rate, seed), division.learned)
    for chosen in rounds(people(division.learned), passes, SIZE, seed):
        total = np.zeros(group.rows.shape)
        for _, changed, _ in group.learn(chosen):
            total += changed
        group.add(total * (times / len(chosen)))
    return judged(Judge(division), group.scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ratings", type=Path)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    sets, passes = judgement(given.ratings), given.passes
    central = max(Best(in_one_place(sets.tuning, passes, *each), each) for each in CENTRAL)
    rounded = max(Best(federated(sets.tuning, passes, *each), each) for each in FEDERATED)
    print(f"earlier division: in one place {central}, federated {rounded}", flush=True)
    whole = [in_one_place(sets.final, passes, *central.setting, seed) for seed in range(given.seeds)]
    parts = [federated(sets.final, passes, *rounded.setting, seed) for seed in range(given.seeds)]
    ratio = float(np.mean(parts) / np.mean(whole))
    print(f"in one place {np.round(whole, 4)}, federated {np.round(parts, 4)}, ratio {ratio:.3f}")
    keep(
        federated_ndcg10_to_central=round(ratio, 4),
        federated_rounds={
            "set": "MovieLens-1M, timed half, the last fifth of each user's events is judged",
            "participants": len(people(sets.final.learned)),
            "participants_a_round": SIZE,
            "passes": passes,
            "k": K,
            "central_ndcg10": [round(each, 4) for each in whole],
            "federated_ndcg10": [round(each, 4) for each in parts],
            "central_rate": central.setting[0],
            "central_events_mixed": bool(central.setting[1]),
            "federated_rate": rounded.setting[0],
            "federated_mean_times": rounded.setting[1],
        },
    )


if __name__ == "__main__":
    main()
