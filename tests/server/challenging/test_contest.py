"""The verdicts of contests, on simulated outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_server.challenging import contest
from livefactor_server.challenging.contest import Contest, Evidence, Standing, evidence

CHAMPION_MEAN = 0.2


def hold(factors: list[float], rng: np.random.Generator, users: int = 300) -> Contest:
    """Hold a contest of specs whose mean gain is a multiple of the champion's.

    A gain is 0 or near 1, as an NDCG is. Users differ in how well each spec suits them, so that the
    events of a user are dependent.
    """
    made = Contest.of([f"c{n}" for n in range(len(factors))], 0)
    taste = rng.normal(0.0, 0.03, (len(factors), users))
    while not made.over:
        running, count = (
            made.running,
            int(contest.SHARES[made.round] * (made.round_end - made.round_start)) // 2,
        )
        who = rng.integers(0, users, count)
        luck = rng.random(count)
        gains = np.empty((count, len(running)))
        for column, number in enumerate(running):
            # Specs agree on most events, as they do in practice.
            own = np.where(rng.random(count) < 0.5, rng.random(count), luck)
            gains[:, column] = own < CHAMPION_MEAN * factors[number] + taste[number][who]
        made.add(gains, who.astype(np.uint64))
        assert made.advance(made.round_end)
    return made


def paired(champion: float, other: np.ndarray) -> np.ndarray:
    return np.column_stack((np.full(len(other), champion), other))


def test_equal_specs_are_promoted_in_less_than_one_of_a_hundred_contests() -> None:
    rng = np.random.default_rng(1)
    false = sum(hold([1.0] * 7, rng).winner is not None for _ in range(1000))
    assert false < 10


def test_a_clearly_better_spec_wins_and_the_best_of_several_does() -> None:
    rng = np.random.default_rng(2)
    winners = [hold([1.0, 1.0, 1.4, 0.5], rng).winner for _ in range(50)]
    assert [each is not None and each.name for each in winners].count("c2") == 50


def test_a_gain_of_five_percent_is_found_when_specs_mostly_agree() -> None:
    """The difference is 0.01 on gains of 0.2. The last round has 2,000 events of the contest."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(20):
        made = Contest.of(["champion", "better"], 0)
        while not made.over:
            count = int(contest.SHARES[made.round] * (made.round_end - made.round_start))
            own = rng.random(count)
            # One event in 20 has another outcome, mostly for the better.
            other = np.where(rng.random(count) < 0.05, own + rng.normal(0.2, 0.1, count), own)
            made.add(np.column_stack((own, other)) * 0.4, rng.integers(0, 400, count).astype(np.uint64))
            made.advance(made.round_end)
        found += made.winner is not None
    assert found == 20


def test_a_gain_too_small_to_matter_does_not_win() -> None:
    made = Contest.of(["champion", "other"], 0)
    users = np.arange(2000, dtype=np.uint64)
    while not made.over:
        # Always better by half a percent, with certainty.
        made.add(np.column_stack((np.full(2000, 0.2), np.full(2000, 0.201))), users)
        made.advance(made.round_end)
    assert made.winner is None and made.round == contest.ROUNDS


def test_the_worse_half_is_dropped_but_nobody_who_is_not_clearly_worse() -> None:
    rng = np.random.default_rng(4)
    made = Contest.of(["champion", "bad", "worse", "equal", "same"], 0)
    users = np.arange(2000, dtype=np.uint64)
    champion = rng.random(2000)
    columns = [champion, champion - 0.2, champion - 0.3, champion, champion]
    made.add(np.column_stack(columns) + rng.normal(0, 0.1, (2000, 5)), users)
    assert made.advance(8_000)
    standings = {each.name: each.standing for each in made.contestants}
    assert standings == {
        "champion": Standing.CHAMPION, "bad": Standing.DROPPED, "worse": Standing.DROPPED,
        "equal": Standing.RUNNING, "same": Standing.RUNNING,
    }  # fmt: skip
    assert not made.over and made.running == [0, 3, 4]


def test_a_contest_ends_when_the_last_challenger_is_dropped() -> None:
    made = Contest.of(["champion", "bad"], 1_000)
    assert not made.advance(8_999)
    users = np.arange(500, dtype=np.uint64)
    made.add(np.column_stack((np.full(500, 0.4), np.linspace(0.1, 0.3, 500))), users)
    assert made.advance(9_000)
    assert made.over and made.winner is None


def test_the_standard_error_is_clustered_by_user() -> None:
    """A user with many equal events counts as one: the error is that of the users' means."""
    rng = np.random.default_rng(5)
    per_user = rng.normal(0.0, 0.1, 100)
    users = np.repeat(np.arange(100, dtype=np.uint64), 30)
    gains = np.repeat(per_user, 30)
    found = evidence(paired(0.0, gains), users)[1]
    assert found.error == pytest.approx(per_user.std(ddof=1) / 10, rel=1e-12)
    assert found.users == 100 and found.events == 3000
    alone = evidence(paired(0.0, gains), np.arange(3000, dtype=np.uint64))[1]
    assert alone.error < found.error / 4


def test_few_users_are_no_evidence() -> None:
    users = np.arange(3000, dtype=np.uint64) % (contest.USERS_MIN - 1)
    found = evidence(paired(0.1, np.full(3000, 0.9)), users)[1]
    assert not found.is_better(0.1) and not found.is_worse


def test_figures_that_are_not_numbers_win_nothing() -> None:
    nan = float("nan")
    assert not Evidence(nan, nan, nan, 2000, 400).is_better(0.2)
    assert not Evidence(nan, nan, nan, 2000, 400).is_worse
