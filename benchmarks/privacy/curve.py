"""Quality for privacy: `python -m benchmarks.privacy.curve FILE`.

FILE is ratings.csv.gz of MovieLens-1M. Each user of its timed half is a participant and contributes
once to each release, with the clipping, the whole numbers and the noise of the server
(`livefactor_server.changes.content.releasing`). A user's row stays with the user. For each epsilon
the number of releases and the step are those that are best on the earlier division, and the figures
are of the later one. The same without noise and clipping, and most-popular, stand beside it.
`benchmarks.privacy.pages` writes the page.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.privacy.participants import Participants, judged, judgement, people
from benchmarks.privacy.results import keep
from benchmarks.quality.data import Division
from benchmarks.quality.metrics import Judge
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.spec.privacy import Privacy, delta_of
from livefactor_server.changes.content.releasing import GRID_BITS, clipped, released

EPSILONS, DELTA, CLIP, K = (1.0, 3.0, 8.0), 1e-6, 1.0, 8
GRID = tuple(product((2, 6), (30.0, 100.0)))
"""Releases, and what the mean of the contributions is multiplied by."""


def spec_of(seed: int) -> ModelSpec:
    """Few factors, which begin near zero, because each number gets noise."""
    base = preset("clicks_sgd")
    rates = replace(base.optimizer, learning_rate=0.12, bias_learning_rate=0.1)
    return preset("clicks_sgd", k=K, init_scale=0.1, optimizer=rates, seed=seed)


def least_noise(epsilon: float, releases: int) -> float:
    """The least noise with which so many releases fit into the budget, in steps of a thousandth."""
    noise = 0.1
    while delta_of(releases, noise, epsilon) > DELTA:
        noise *= 1.001
    return noise


def released_model(division: Division, epsilon: float, releases: int, times: float, seed: int = 0) -> float:
    """NDCG@10 after so many releases. epsilon: 0 for neither clipping nor noise."""
    group, users = Participants(spec_of(seed), division.learned), people(division.learned)
    noise = least_noise(epsilon, releases) if epsilon else 0.0
    privacy = Privacy(epsilon, DELTA, 0, CLIP, noise)
    assert not epsilon or privacy.releases_max >= releases
    for _ in range(releases):
        if epsilon:
            whole = np.zeros(group.rows.shape, np.int64)
            for _, changed, _ in group.learn(users):
                whole += clipped(changed, CLIP)
            total = released(whole, privacy)
        else:
            total = np.zeros(group.rows.shape)
            for _, changed, _ in group.learn(users):
                total += changed
        group.add(total * (times / len(users)))
    return judged(Judge(division), group.scores)


def popular(division: Division) -> float:
    """NDCG@10 of the items with the most events."""
    events = division.learned
    counts = np.bincount(events.items, minlength=events.item_count).astype(np.float64)
    return judged(Judge(division), lambda users: np.tile(counts, (len(users), 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ratings", type=Path)
    given = parser.parse_args()
    sets = judgement(given.ratings)
    found, settings = {"popular": popular(sets.final)}, {}
    for epsilon in (*EPSILONS, 0.0):
        tuned = {each: released_model(sets.tuning, epsilon, *each) for each in GRID}
        releases, times = max(tuned, key=lambda each: tuned[each])
        name = f"{epsilon:g}" if epsilon else "not_private"
        noise = least_noise(epsilon, releases) if epsilon else 0.0
        settings[name] = [releases, times, round(noise, 4)]
        found[name] = released_model(sets.final, epsilon, releases, times)
        print(
            name, {each: round(value, 4) for each, value in tuned.items()}, round(found[name], 4), flush=True
        )
    rounded = {name: round(value, 4) for name, value in found.items()}
    about = {"delta": DELTA, "clip": CLIP, "k": K, "grid_bits": GRID_BITS}
    keep(curve={"ndcg10": rounded, "releases_times_noise": settings} | about)


if __name__ == "__main__":
    main()
