"""Random schedules of releases stay within their budget: `benchmarks.privacy.budget`, in short."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.privacy.budget import SLACK, delta_of, schedule

from livefactor_kernels.spec.privacy import delta_of as own_delta_of
from livefactor_server.model.ledger import Ledger


def test_no_schedule_goes_over_its_budget() -> None:
    rng = np.random.default_rng(4)
    done = [schedule(rng) for _ in range(60)]
    assert sum(each[0] for each in done) > 100 and sum(each[1] for each in done) > 100
    assert max(each[2] for each in done) <= 1 + SLACK


def test_a_ledger_that_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes back, and a restart, each give the budget again."""
    monkeypatch.setattr(Ledger, "released_in", lambda self, window: 0)
    rng = np.random.default_rng(4)
    assert max(schedule(rng)[2] for _ in range(60)) > 1 + SLACK


def test_two_formulas_of_delta_agree() -> None:
    rng = np.random.default_rng(8)
    for _ in range(200):
        releases, noise, epsilon = int(rng.integers(1, 100)), rng.uniform(1, 30), rng.uniform(0.1, 10)
        assert delta_of(releases, noise, epsilon) == pytest.approx(
            own_delta_of(releases, noise, epsilon), rel=1e-6, abs=1e-15
        )
