"""The challengers of one model: when contests begin, and what follows from verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import isnan
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from contests import BAD, GOOD, OTHER, InlineProcess, events, learner, push, rig
from engine_rig import Rig, replayed_root
from livefactor_kernels.spec.model import ModelSpec, Optimizer, OptimizerKind
from livefactor_kernels.spec.presets import preset
from livefactor_server.challenging import challengers, notes, schedule
from livefactor_server.challenging.candidates import candidates, fits
from livefactor_server.challenging.challengers import Challengers, Subject
from livefactor_server.challenging.messages import Figures, Report
from livefactor_server.challenging.notes import Notes, Plan
from livefactor_server.model import spec_codec
from livefactor_server.snapshots import replay
from livefactor_server.statuses import Refused


@pytest.fixture
def challenge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Challengers]]:
    """Provide `challenge(live, **tried)`: challengers that work in this thread."""
    monkeypatch.setattr(challengers, "Process", InlineProcess)
    made: list[Challengers] = []

    def make(live: Rig, automatic: bool = True, **tried: ModelSpec) -> Challengers:
        settled = property(lambda self: automatic and not self._notes.settled)
        monkeypatch.setattr(Challengers, "automatic", settled)
        monkeypatch.setattr(challengers, "candidates", lambda champion: tried)
        store = replay.snapshot_store(tmp_path)

        def snapshot() -> None:
            with live.engine.view() as view:
                store.take(view)

        start = partial(replay.start_of, tmp_path, live.log, "cpu")
        subject = Subject(
            tmp_path, live.engine, snapshot, lambda spec: live.engine.promote(spec, start), start
        )
        made.append(Challengers(subject, 1.0, 1 << 30))
        return made[-1]

    yield make
    for each in made:
        each.close()


def work(some: Challengers, polls: int = 4) -> None:
    """Do what the contests' thread does."""
    for _ in range(polls):
        some.poll()
        if some.wants_process():
            some.start()


def test_the_winner_serves_and_its_state_is_that_of_its_spec_from_the_start(
    tmp_path: Path, challenge: Callable[..., Challengers]
) -> None:
    live = rig(tmp_path, BAD)
    some = challenge(live, good=GOOD, other=OTHER)
    push(live, *events(8_900))
    work(some)
    assert some.listing().report is None and not some.listing().is_running
    push(live, *events(600, seed=1))
    work(some)
    assert live.engine.state.spec == GOOD
    found = some.listing()
    assert (found.report.winner, found.contests, found.is_running) == ("good", 1, False)
    assert [each.name for each in found.report.figures] == ["first", "good", "other"]
    same = rig(tmp_path / "same", GOOD)
    for count, seed in ((8_900, 0), (600, 1)):
        push(same, *events(count, seed=seed))
    users, items = np.arange(300, dtype=np.uint64), np.arange(60, dtype=np.uint64)
    for one, other in zip(_factors(live, users, items), _factors(same, users, items), strict=True):
        assert (one == other).all()
    work(some)
    assert not some.listing().is_running, "no contest follows at once"
    push(live, *events(500, seed=2))
    assert live.root() == replayed_root(tmp_path)
    same.close()
    live.close()


def _factors(live: Rig, *keys: np.ndarray) -> list[np.ndarray]:
    backend, found = live.engine.state.backend, []
    for side, (table, some) in enumerate(zip((backend.users, backend.items), keys, strict=True)):
        found += backend.gather(side, table.find(some, backend.published[side]))
    return found


def test_a_restart_begins_the_contest_again_and_forgets_no_verdict(
    tmp_path: Path, challenge: Callable[..., Challengers]
) -> None:
    live = rig(tmp_path, GOOD)
    push(live, *events(9_500))
    some = challenge(live, same=learner(0.29))
    work(some)
    assert some.listing().is_running and some.listing().report.learned >= 9_000
    some.close()
    again = challenge(live, same=learner(0.29))
    assert not again.listing().is_running
    work(again)
    assert again.listing().report.learned >= 9_000
    push(live, *events(24_500, seed=1))
    work(again)
    assert (again.listing().contests, again.listing().report.winner) == (1, "")
    once_more = challenge(live, same=learner(0.29))
    work(once_more)
    assert once_more.listing().contests == 1 and not once_more.listing().is_running
    assert once_more.listing().report == again.listing().report
    live.close()


def test_a_challenger_by_hand_is_judged_on_the_past_and_not_promoted(
    tmp_path: Path, challenge: Callable[..., Challengers]
) -> None:
    live = rig(tmp_path, BAD)
    push(live, *events(20_000))
    some = challenge(live, automatic=False)
    work(some)
    assert not some.listing().is_running
    some.add("good", GOOD)
    assert some.listing().waiting == ("good",)
    work(some)
    found = some.listing()
    assert (found.report.winner, found.waiting, found.contests) == ("good", (), 1)
    assert live.engine.state.spec == BAD
    with pytest.raises(Refused, match="there already"):
        some.add("good", OTHER)
    assert some.free_name("good") == "good-2"
    assert some.spec_of("good") == GOOD
    with pytest.raises(Refused, match="does not exist"):
        some.spec_of("nobody")
    some.settle()
    assert some.listing().waiting == () and notes.load(tmp_path).settled
    live.close()


def test_specs_that_could_reject_what_was_accepted_are_no_challengers(
    tmp_path: Path, challenge: Callable[..., Challengers]
) -> None:
    live = rig(tmp_path, GOOD)
    some = challenge(live)
    for spec, why in ((preset("ratings"), "reject"), (preset("purchases_sgd"), "reject"), (GOOD, "own")):
        with pytest.raises(Refused, match=why):
            some.add("other", spec)
    for number in range(challengers.ADDED_MAX):
        some.add(f"c{number}", learner(0.1 + number / 100))
    with pytest.raises(Refused, match="at most 8"):
        some.add("one-more", BAD)
    live.close()


def test_drift_brings_challengers_back_and_changes_the_champion(
    tmp_path: Path, challenge: Callable[..., Challengers]
) -> None:
    """The first set knows popularity alone, and the second tastes alone."""

    def made(rate: float, bias_rate: float) -> ModelSpec:
        return learner(0.3, optimizer=Optimizer(OptimizerKind.SGD, rate, bias_rate))

    popular, tastes = made(1e-6, 0.3), made(0.4, 1e-6)
    rng = np.random.default_rng(9)
    live = rig(tmp_path, tastes, judge=1.0)
    some = challenge(live, popular=popular, tastes=tastes)
    count = 16_000
    users = rng.integers(0, 300, count).astype(np.uint64)
    push(live, users, (rng.geometric(0.1, count) % 60).astype(np.uint64))
    work(some)
    assert live.engine.state.spec == popular
    push(live, users, (rng.geometric(0.1, count) % 60).astype(np.uint64))
    work(some)
    assert live.engine.state.spec == popular and some.listing().contests == 1
    glued = live.engine.state.events
    likes = rng.integers(60, 260, (300, 3))
    for _ in range(40):
        users = rng.integers(0, 300, 1_000).astype(np.uint64)
        push(live, users, likes[users, rng.integers(0, 3, 1_000)].astype(np.uint64))
        work(some)
        if live.engine.state.spec == tastes:
            break
    assert live.engine.state.spec == tastes
    assert live.engine.state.events - glued < 20_000
    assert live.root() == replayed_root(tmp_path)
    live.close()


def test_a_process_that_dies_is_started_again_after_a_rest(
    tmp_path: Path, challenge: Callable[..., Challengers], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = rig(tmp_path, BAD)
    push(live, *events(9_500))
    some = challenge(live, good=GOOD)
    monkeypatch.setattr(InlineProcess, "go", lambda self, order: setattr(self, "has_ended", True))
    work(some, 2)
    assert not some.listing().is_running and not some.wants_process()
    monkeypatch.undo()
    monkeypatch.setattr(challengers, "Process", InlineProcess)
    live.close()


def test_a_contest_that_waits_for_its_allowance_ends_and_begins_again_when_it_has_it(
    tmp_path: Path, challenge: Callable[..., Challengers], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = rig(tmp_path, BAD)
    push(live, *events(9_500))
    # The champion learns 9,500 events in 1 ms, and may spend 3/4 of it on contests.
    dear = Report(
        learned=9_500, cpu_s=20.0, round_end=9_000, is_waiting=True, is_too_dear=True,
        figures=(Figures("champion", "champion", 0.25, event_s=1e-3 / 9_500), Figures("good", "running", 0.5, 0.25)),
    )  # fmt: skip

    def shown(name: str) -> float | None:
        labels = {"model": some._name, "contestant": "good"}
        return REGISTRY.get_sample_value(f"livefactor_contest_{name}", labels)

    monkeypatch.setattr(InlineProcess, "go", lambda self, order: None)
    monkeypatch.setattr(InlineProcess, "reports", lambda self: iter([dear]))
    monkeypatch.setattr(challengers, "WAIT_S", 0.0)
    some = challenge(live, good=GOOD)
    work(some, 1)
    assert some.listing().is_running
    some.poll()
    assert not some.listing().is_running and some.listing().spent_s == 20.0
    plan = notes.load(tmp_path).plan
    assert plan is not None and plan.resume_at > 1e8 and not some.wants_process()
    assert some.listing().resumes_at == plan.resume_at
    assert (shown("gain"), shown("difference")) == (0.5, 0.25) and isnan(shown("standard_error") or 0.0)
    some.close()
    assert shown("gain") is None
    live.close()


def test_a_contest_begins_again_when_the_allowance_covers_it() -> None:
    report = Report(learned=11_000, cpu_s=2.0)
    for spent_s, champion_s in ((3.0, 1e-5), (0.0, 1e-3), (30.0, 1e-5)):
        at = schedule.affordable_at(Plan(1_000), report, spent_s, champion_s)
        # The whole contest has 33,000 events, and takes three times as long.
        allowed_s = schedule.allowance(at) * champion_s
        assert allowed_s == pytest.approx(spent_s + 6.0, rel=1e-3)


def test_damaged_notes_begin_again(tmp_path: Path, challenge: Callable[..., Challengers]) -> None:
    live = rig(tmp_path, BAD)
    for text in ("{", '{"added": [{}]}', "[]"):
        (tmp_path / notes.FILE).write_text(text)
        assert challenge(live).listing().contests == 0
    live.close()


def test_contests_begin_when_the_events_double_or_drift_is_found() -> None:
    """The numbers of events at which plans begin."""
    plan = partial(schedule.next_plan, automatic=True, drifted=False)
    assert plan(Notes(), 8_999) is None
    assert plan(Notes(), 9_000) == Plan(1_000)
    done = Notes(last_events=40_000)
    assert plan(done, 79_999) is None
    assert plan(done, 80_000) == Plan(80_000, follows=True)
    assert schedule.next_plan(done, 49_999, True, True) is None
    assert schedule.next_plan(done, 50_000, True, True) == Plan(50_000, follows=True)
    assert schedule.next_plan(done, 1_000_000, False, True) is None
    assert schedule.is_ready(Plan(80_000), 88_000) and not schedule.is_ready(Plan(80_000), 87_999)
    assert not schedule.is_ready(Plan(80_000, resume_at=96_000), 95_999)


def test_contests_cost_as_much_as_the_champion_at_most() -> None:
    assert schedule.allowance(400_000) == 300_000
    assert schedule.allowance(11_000_000) == 2_250_000
    plan = Plan(92_000, follows=True)
    costs = {"dear": 3e-4, "cheap": 1e-5, "middle": 3e-5}
    # The champion's 32,000 events take 3.2 s, cheap takes 1 s, middle 3 s and dear 30 s. A contest
    # may always take 5 s.
    for left_s, chosen in (
        (-9.0, ["cheap"]),
        (7.0, ["cheap"]),
        (7.3, ["cheap", "middle"]),
        (38.0, [*sorted(costs)]),
    ):
        assert sorted(schedule.affordable(costs, plan, 1e-4, left_s)) == sorted(chosen)
    assert schedule.affordable({"a": 0.0, "b": 0.0}, plan, 0.0, 0.0) == ["a", "b"]


def test_notes_survive_a_restart(tmp_path: Path) -> None:
    report = Report(5, 6, 7, 1, 9, 1.5, winner="x", figures=(Figures("x", "won", 0.1, 0.2, None, 3, 4, 5.0),))
    written = Notes(plan=Plan(1_000)).with_cost(report, 1.5).with_end(report, 77)
    notes.save(tmp_path, written)
    assert notes.load(tmp_path) == written
    assert (written.spent_s, written.event_s, written.last_events) == (1.5, {"x": 5.0}, 77)


def test_candidates_keep_what_the_model_accepts() -> None:
    auto = preset("auto", seed=7)
    found = candidates(auto)
    plain = ["solve-0.03", "solve-0.1", "solve-0.3"]
    assert list(found) == ["auto", "clicks", "purchases", "news", *plain]
    assert [found[name].solve.unobserved for name in plain] == pytest.approx([0.03, 0.1, 0.3])
    assert {found[name].history.half_life for name in plain} == {0.0}
    assert found["auto"] == auto
    # The preset accepts ratings and learns their signs, and so do its challengers.
    assert {each.limits.value_abs_max for each in found.values()} == {1e6}
    assert {each.auto for each in found.values()} == {auto.auto}
    assert not fits(auto, preset("ratings")) and not fits(preset("ratings"), auto)
    clicks = preset("clicks")
    assert {each.limits.value_abs_max for each in candidates(clicks).values()} == {1.0}
    assert {each.seed for each in found.values()} == {7}
    assert list(candidates(preset("ratings"))) == ["ratings", "ratings_sgd"]
    # A click may be 0, which purchases of rule SGD refuse. So may a value between 0 and 1.
    assert "purchases_sgd" not in found and spec_codec.encode(found["news"])
