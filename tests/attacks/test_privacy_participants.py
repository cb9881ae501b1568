"""The benchmark's participants learn what a server's model of their own would learn."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.privacy.curve import DELTA, least_noise
from benchmarks.privacy.participants import Participants, people, rounds
from benchmarks.quality.data import Events

from livefactor_kernels.spec.presets import preset
from livefactor_kernels.spec.privacy import Privacy


def events() -> Events:
    rng = np.random.default_rng(2)
    users, items = rng.integers(0, 6, 80), rng.integers(0, 30, 80)
    return Events(users.astype(np.int32), items.astype(np.int32), np.ones(80, np.float32), 6, 30)


def test_each_participant_begins_with_the_common_rows_and_keeps_its_own() -> None:
    group = Participants(preset("clicks_sgd", k=8), events())
    common = group.rows.copy()
    before = group.scores(np.arange(6))
    given = {user: (changed, n) for user, changed, n in group.learn(people(events()))}
    assert sum(n for _, n in given.values()) == 80 and group.rows.tobytes() == common.tobytes()
    assert all(np.any(changed) for changed, _ in given.values())
    # The rows of the users have learned, and nothing else has.
    assert (group.scores(np.arange(6)) != before).any(axis=1).all()
    # One participant alone changes what it changed among the others, as its user row is its own.
    alone = Participants(preset("clicks_sgd", k=8), events())
    assert alone.rows.tobytes() == common.tobytes()
    ((user, changed, _),) = alone.learn(people(events())[:1])
    assert changed.tobytes() == given[user][0].tobytes()
    group.add(changed)
    assert np.allclose(group.rows, common + changed)


def test_a_pass_has_everybody_once() -> None:
    parts = list(rounds(np.arange(7), 2, 3, 0))
    assert [len(part) for part in parts] == [3, 3, 1, 3, 3, 1]
    assert sorted(np.concatenate(parts[:3])) == sorted(np.concatenate(parts[3:])) == list(range(7))


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_least_noise_fits_into_the_budget_and_less_does_not(epsilon: float) -> None:
    noise = least_noise(epsilon, 5)
    assert Privacy(epsilon, DELTA, 0, 1.0, noise).releases_max == 5
    assert Privacy(epsilon, DELTA, 0, 1.0, noise * 0.99).releases_max < 5
