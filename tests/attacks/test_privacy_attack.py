"""The attack on differential privacy in short: `make privacy-attack` has the whole one.

A sound model stands, and each planted fault is found.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.privacy import attack as attacks
from benchmarks.privacy.audit import likelihood, lower_bound

DELTA = attacks.DELTA


@pytest.mark.parametrize("fault", ["", *attacks.FAULTS])
def test_the_audit_finds_each_planted_fault_and_no_other(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "SHARE", 0.5)
    found = attacks.attack(tmp_path, 1.2, 4.0, 80, fault)
    assert found["guesses"] == 40 and found["epsilon_claimed"] == 1.0607
    assert found["releases"] == (1 if fault != "the budget is not charged" else attacks.RELEASES_MAX)
    assert found["refuted"] == bool(fault), found


def test_a_lower_bound_is_below_what_coins_of_that_epsilon_give() -> None:
    """Of runs with exactly the claimed epsilon at most one in twenty is refuted."""
    rng, canaries, epsilon = np.random.default_rng(5), 200, 1.0
    right, runs = np.unique(rng.binomial(canaries, 1 / (1 + np.exp(-epsilon)), 2000), return_counts=True)
    above = [lower_bound(canaries, canaries, int(each), 0.0) > epsilon for each in right]
    assert runs @ above / runs.sum() < 0.065
    assert lower_bound(canaries, canaries, 100, DELTA) == 0.0
    # All guesses right: q to the power of 200 is 0.05.
    q = 0.05 ** (1 / canaries)
    assert lower_bound(canaries, canaries, canaries, 0.0) == pytest.approx(np.log(q / (1 - q)), abs=1e-4)
    # A delta makes the bound weaker.
    assert likelihood(200, 200, 180, 1.0, 1e-3) > likelihood(200, 200, 180, 1.0, 1e-6)
