"""The ledger of differential privacy: its accountant, its budget, its noise."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Merge, Privacy, SpecError
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.spec.privacy import delta_of, epsilon_of
from livefactor_server.changes.content.releasing import GRID_BITS, clipped, normal, released
from livefactor_server.model.ledger import BudgetSpent, Ledger

SCHEDULES = 10_000

REFERENCE = [
    (1, 1.0, 1e-6, 4.886554117462159),
    (10, 1.0, 1e-6, 19.423656474031056),
    (100, 1.0, 1e-6, 96.71727196386772),
    (1, 5.0, 1e-6, 0.8341175486240523),
    (10, 5.0, 1e-9, 3.745466819242597),
    (100, 5.0, 1e-6, 10.997151214220652),
    (1, 10.0, 1e-6, 0.3968573776440832),
    (100, 10.0, 1e-9, 6.173935046670899),
    (30, 23.1, 1e-6, 1.001844143399992),
    (30, 3.6, 1e-6, 7.937999654663421),
    (1, 0.5, 1e-9, 13.534772219165546),
    (7, 2.25, 1e-6, 5.882195179198339),
    (365, 4.0, 1e-6, 33.41780445307423),
    (1000, 50.0, 1e-9, 3.7454668192426035),
]
"""Releases, noise, delta, and the epsilon of `get_epsilon_gaussian` of dp-accounting 0.6.0. Its
PLDAccountant gives the same to 2e-7.
"""


@pytest.mark.parametrize(("releases", "noise", "delta", "epsilon"), REFERENCE)
def test_the_accountant_equals_that_of_dp_accounting(
    releases: int, noise: float, delta: float, epsilon: float
) -> None:
    found = epsilon_of(releases, noise, delta)
    assert found == pytest.approx(epsilon, rel=1e-9)
    assert delta_of(releases, noise, found) <= delta < delta_of(releases, noise, found - 1e-9)


def test_more_releases_cost_more_and_too_many_cost_infinity() -> None:
    spent = [epsilon_of(n, 3.0, 1e-6) for n in range(1, 60)]
    assert spent == sorted(spent) and spent[0] > 0
    assert epsilon_of(100_000, 1.0, 1e-6) == math.inf
    assert epsilon_of(1, 1e4, 1e-3) == 0.0


def test_a_window_never_has_more_releases_than_its_budget() -> None:
    chance = random.Random(7)
    budgets = [
        Privacy(chance.choice((0.5, 1.0, 3.0, 8.0)), chance.choice((1e-6, 1e-9)), length, 1.0, noise)
        for length in (0, 1, 60, 3600)
        for noise in (2.5, 7.0, 15.0, 40.0)
    ]
    budgets = [each for each in budgets if each.releases_max]
    most = {each: each.releases_max for each in budgets}
    for each, releases in most.items():
        # The next release would be above the budget.
        assert each.spent(releases) <= each.epsilon < each.spent(releases + 1)
    over = refused = 0
    for _ in range(SCHEDULES):
        budget = chance.choice(budgets)
        ledger, now = Ledger.__new__(Ledger), 1e9
        ledger.privacy, ledger._releases_max = budget, most[budget]
        ledger.window = ledger.releases = ledger.all_releases = 0
        made: dict[int, int] = {}
        for _ in range(chance.randint(1, 2 * min(40, most[budget]) + 2)):
            # The clock jumps, also backwards, and the process starts again from a snapshot.
            now += chance.choice((0.0, 0.3, 1.0, 59.0, 3600.0, -1.0, -1e5))
            if chance.random() < 0.1:
                section = ledger.arrays()["privacy"]
                ledger.window = ledger.releases = ledger.all_releases = 0
                ledger.load(section)
            window = ledger.window_at(now)
            try:
                ledger.charge(window, ledger.all_releases + 1)
            except BudgetSpent:
                refused += 1
                continue
            made[window] = made.get(window, 0) + 1
        over += sum(releases > most[budget] for releases in made.values())
    assert over == 0 and refused > SCHEDULES / 10


def test_a_release_out_of_order_or_of_an_earlier_window_is_refused() -> None:
    ledger = Ledger(Privacy(8.0, 1e-6, 60, 1.0, 2.0))
    ledger.charge(5, 1)
    with pytest.raises(BudgetSpent, match="expected number 2, got 1"):
        ledger.charge(5, 1)
    with pytest.raises(BudgetSpent, match="window 4 is over"):
        ledger.charge(4, 2)


def test_no_contribution_is_longer_than_the_clip() -> None:
    chance = np.random.default_rng(3)
    for scale in (1e-30, 1e-3, 1.0, 1e3, 1e30):
        for rows in (1, 7, 300):
            numbers = (chance.standard_normal((rows, 9)) * scale).astype(np.float32)
            whole = clipped(numbers, 0.5)
            assert math.isqrt(sum(int(each) ** 2 for each in whole.ravel())) <= 1 << GRID_BITS
    few = np.array([[0.1, -0.2]], np.float32)
    np.testing.assert_allclose(clipped(few, 0.5) * 0.5 / (1 << GRID_BITS), few, atol=1e-6)
    assert not clipped(np.zeros((2, 3), np.float32), 1.0).any()


def test_the_noise_is_normal_and_never_twice_the_same() -> None:
    drawn = normal(1_000_001)
    assert len(drawn) == 1_000_001 and abs(drawn.std() - 1) < 0.005
    # The import takes two seconds of a processor, and each process of a run collects this file.
    from scipy import stats

    assert stats.kstest(drawn[:200_000], "norm").pvalue > 1e-6
    assert not np.array_equal(drawn[:100], normal(100))
    privacy = Privacy(8.0, 1e-6, 0, 0.5, 4.0)
    noisy = released(np.full((500, 40), 1 << GRID_BITS), privacy)
    assert abs(noisy.std() - 2.0) < 0.05 and abs(noisy.mean() - 0.5) < 0.08
    # Every number is a multiple of the grid.
    steps = noisy.astype(np.float64) * (1 << GRID_BITS) / 0.5
    np.testing.assert_array_equal(steps, np.rint(steps))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"epsilon": 101.0}, "privacy.epsilon: expected 0..100"),
        ({"epsilon": 0.0}, "privacy.epsilon: expected above 0"),
        ({"delta": 0.5}, "privacy.delta"),
        ({"clip": math.nan}, "privacy.clip"),
        ({"noise": 0.0}, "privacy.noise: expected 0.001"),
        ({"epsilon": 0.1}, "privacy.noise: expected enough noise for one release"),
    ],
)
def test_a_budget_without_sense_is_refused(fields: dict[str, float], text: str) -> None:
    sound = {"epsilon": 8.0, "delta": 1e-6, "window_seconds": 60, "clip": 1.0, "noise": 2.0}
    check(preset("clicks_sgd", merge=Merge(1.0, 10.0), privacy=Privacy(**sound)))  # type: ignore[arg-type]
    wrong = Privacy(**(sound | fields))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=text.replace(".", r"\.")):
        check(preset("clicks_sgd", merge=Merge(1.0, 10.0), privacy=wrong))


def test_privacy_needs_deltas() -> None:
    with pytest.raises(SpecError, match="0 without merge"):
        check(preset("clicks_sgd", privacy=Privacy(8.0, 1e-6, 60, 1.0, 2.0)))
