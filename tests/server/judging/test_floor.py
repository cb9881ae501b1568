"""The floor under the number of judged events: bulk loads and quiet models have figures, too."""

from __future__ import annotations

import numpy as np
import pytest

from judged import Learner, body, change, small
from livefactor_server.judging import judge as judging
from livefactor_server.judging.floor import HOUR_US, Floor
from livefactor_server.judging.judge import JudgeSettings

NOW = 1_700_000_000_000_000


def test_an_allowance_refills_within_an_hour_of_the_log() -> None:
    floor = Floor(1000)
    assert floor.left(NOW) == 1000
    floor.take(1500)
    assert floor.left(NOW) == 0
    assert floor.left(NOW + HOUR_US // 10) == 100
    # Time that goes back adds nothing, and neither does the same time again.
    assert floor.left(NOW) == floor.left(NOW + HOUR_US // 10) == 100
    assert floor.left(NOW + 5 * HOUR_US) == 1000


def counted(learner: Learner) -> tuple[int, int]:
    report = learner.judge.report()
    return report.judged_events, report.ranked_events[1]


def test_a_bulk_load_is_judged_and_ranked() -> None:
    """A few large records in a second. Their share alone would be one record or none."""
    learner = Learner(small("purchases"), JudgeSettings())
    for seed in range(40):
        learner.run([change(body(seed, 4000, "purchases"))], NOW + seed * 10_000)
    judged, ranked = counted(learner)
    assert 900 <= judged <= 1100
    assert 240 <= ranked <= 320


def test_a_quiet_model_is_judged_at_every_event() -> None:
    """300 single events an hour are fewer than the floor. Their share alone would be 5."""
    learner = Learner(small("purchases"), JudgeSettings())
    learner.run([change(body(0, 4000, "purchases"))], NOW)
    before = counted(learner)
    for n in range(600):
        learner.run([change(body(n + 1, 1, "purchases"))], NOW + n * HOUR_US // 300)
    judged, ranked = np.subtract(counted(learner), before)
    assert judged == 600
    assert ranked >= 400


def test_a_busy_model_is_judged_by_its_share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    for floors in ((1000, 250), (0, 0)):
        monkeypatch.setattr(judging, "EVENTS_PER_HOUR", floors[0])
        monkeypatch.setattr(judging, "RANKED_PER_HOUR", floors[1])
        learner = Learner(small("purchases"), JudgeSettings(record_share=0.5))
        for seed in range(200):
            learner.run([change(body(seed, 64, "purchases"))], NOW)
            if seed == 149:
                start = counted(learner)
        figures.append(tuple(np.subtract(counted(learner), start)))
    assert figures[0][0] == figures[1][0] > 100


def test_a_large_catalogue_bounds_what_the_floor_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "FLOOR_ROWS_PER_RECORD", 100)
    learner = Learner(small("purchases"), JudgeSettings(ranked_share=1e-9))
    for seed in range(10):
        learner.run([change(body(seed, 4000, "purchases"))], NOW)
    # 40 items: two rankings for each record, and none for the first, which no item was known to.
    assert counted(learner)[1] <= 20
    off = Learner(small("purchases"), JudgeSettings(ranked_share=0.0))
    off.run([change(body(1, 4000, "purchases"))], NOW)
    assert counted(off)[1] == 0
