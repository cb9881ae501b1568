"""The judge.

It tests each event before the model learns it. It gives the same series for the same log, it
detects drift, and it changes nothing in the model.
"""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from engine_rig import Rig, replayed_root, state_root
from judged import EVERYTHING, Learner, body, change, small
from livefactor.wire import columns as wire
from livefactor_kernels.backend import state_sections
from livefactor_kernels.spec.model import Limits, Loss
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_kernels.update import Update, draw_negatives
from livefactor_server.changes import place
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.judging import drift, judge
from livefactor_server.judging.hold import Hold, HoldFile
from livefactor_server.judging.judge import DRIFT, JudgeSettings
from livefactor_server.judging.observer import ObserverSettings
from livefactor_server.judging.report import Figure, Report
from livefactor_server.log.store import Log
from livefactor_server.snapshots.replay import _runs as decoded_runs
from livefactor_server.statuses import Refused

PRESETS = ("ratings", "clicks", "purchases")


def value(report: Report, metric: str, scorer: str = "model", kind: int | None = None) -> float:
    (found,) = [
        one.windowed
        for one in report.figures
        if (one.metric, one.scorer, one.event_type) == (metric, scorer, kind)
    ]
    return found


def test_an_event_is_scored_before_it_is_learned() -> None:
    """The RMSE is computed from the scores that a reader would have got before the event.

    Unknown users and items count as zero.
    """
    learner, errors = Learner(small("ratings")), []
    for seed in range(30):
        # The judge samples large records only, so it judges all events of this one.
        data = body(seed, 8, "ratings")
        columns, backend = change(data).columns, learner.state.backend
        users = backend.users.find(columns.user_ids, backend.published[USERS])
        items = backend.items.find(columns.item_ids, backend.published[ITEMS])
        (x, a), (y, b) = backend.gather(USERS, users), backend.gather(ITEMS, items)
        errors += ((backend.mean + a + b + (x * y).sum(axis=1)) - columns.values).tolist()
        learner.learn(data)
    report = learner.judge.report()
    assert report.judged_events == len(errors) == 240
    assert value(report, "rmse") == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)
    assert value(report, "loss") == pytest.approx(np.mean(np.square(errors)) / 2, rel=1e-5)


def test_the_loss_is_the_objective_over_the_very_negatives() -> None:
    spec = small("purchases", negatives=3)
    learner, losses = Learner(spec), []
    for seed in range(20):
        data = body(seed, 8, "purchases")
        backend = learner.state.backend
        published = backend.published
        twin = Learner(spec, None)
        for earlier in range(seed + 1):
            placed = place(twin.state, [change(body(earlier, 8, "purchases"))])[0]
        update = Update(
            seed + 1, placed.user_rows, placed.item_rows, None, None, placed.user_count, placed.item_count
        )
        negatives = draw_negatives(spec, update)

        def known(rows: np.ndarray, side: int, published: tuple[int, int] = published) -> np.ndarray:
            return np.where(rows < published[side], rows, NO_ROW).astype(np.uint32)

        x, _ = backend.gather(USERS, known(placed.user_rows, USERS))
        y, b = backend.gather(ITEMS, known(placed.item_rows, ITEMS))
        for n in range(3):
            z, c = backend.gather(ITEMS, known(np.ascontiguousarray(negatives[:, n]), ITEMS))
            margins = (c + (x * z).sum(axis=1)) - (b + (x * y).sum(axis=1))
            losses.append(np.logaddexp(0.0, margins.astype(np.float64)))
        learner.learn(data)
    assert value(learner.judge.report(), "loss") == pytest.approx(np.sum(losses) / 160, rel=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_figures_of_every_kind_stand_beside_their_floors(name: str) -> None:
    learner = Learner(small(name))
    for seed in range(40):
        learner.learn(body(seed, 64, name))
    report = learner.judge.report()
    expected = {"ratings": {"rmse"}, "clicks": {"auc"}, "purchases": set()}[name]
    if name != "ratings":
        expected |= {"sampled_recall@10", "sampled_ndcg@10", "recall@10", "ndcg@10"}
    shown = {(one.metric, one.scorer, one.event_type) for one in report.figures}
    scorers = ("model", "popular", "popular_decayed")
    assert shown == {
        *((metric, scorer, kind) for metric in expected for scorer in scorers for kind in (None, 0, 1)),
        *(("loss", "model", kind) for kind in (None, 0, 1)),
    }
    for figure in report.figures:
        assert math.isfinite(figure.windowed) and math.isfinite(figure.decayed)
        assert figure.metric in ("loss", "rmse") or 0 <= figure.decayed <= 1
    for metric in {one.metric for one in report.figures}:
        both = [one.events for one in report.figures if (one.metric, one.scorer) == (metric, "model")]
        assert both[0] == both[1] + both[2]
    assert report.good_revision > 0 and report.row_norm > 0 and report.clamped_share == 0


def test_new_and_known_users_have_figures_of_their_own() -> None:
    """A user is new if the model had no row of it when it scored the event."""
    learner, losses = Learner(small("ratings")), {False: list[float](), True: list[float]()}
    for seed in range(20):
        data = body(seed, 8, "ratings", users=150)
        columns, backend = change(data).columns, learner.state.backend
        rows = backend.users.find(columns.user_ids, backend.published[USERS])
        items = backend.items.find(columns.item_ids, backend.published[ITEMS])
        (x, a), (y, b) = backend.gather(USERS, rows), backend.gather(ITEMS, items)
        errors = (backend.mean + a + b + (x * y).sum(axis=1)) - columns.values
        for error, row in zip(errors.tolist(), rows.tolist(), strict=True):
            losses[row != NO_ROW].append(error * error / 2)
        learner.learn(data)
        report = learner.judge.report()
        assert (report.known_user_figures == ()) == (not losses[True])
    assert len(losses[False]) > 40 and len(losses[True]) > 40
    for figures, own in (
        (report.new_user_figures, losses[False]),
        (report.known_user_figures, losses[True]),
    ):
        found = {(one.metric, one.scorer): one for one in figures}
        assert set(found) == {
            ("loss", "model"),
            *(("rmse", s) for s in ("model", "popular", "popular_decayed")),
        }
        assert found["loss", "model"].events == len(own)
        assert found["loss", "model"].windowed == pytest.approx(np.mean(own), rel=1e-5)
        assert found["rmse", "model"].windowed == pytest.approx(np.sqrt(2 * np.mean(own)), rel=1e-5)
        assert {one.event_type for one in figures} == {None}


@pytest.mark.parametrize("name", ["clicks", "purchases"])
def test_every_ranked_event_is_of_a_new_or_of_a_known_user(name: str) -> None:
    learner = Learner(small(name))
    for seed in range(30):
        learner.learn(body(seed, 16, name, users=400))
    report = learner.judge.report()

    def events(figures: tuple[Figure, ...]) -> dict[str, int]:
        return {one.metric: one.events for one in figures if (one.scorer, one.event_type) == ("model", None)}

    new, known = events(report.new_user_figures), events(report.known_user_figures)
    assert {metric: new[metric] + known[metric] for metric in new} == events(report.figures)
    assert min(new.values()) > 20 and min(known.values()) > 20


def test_a_trained_model_ranks_better_than_popularity() -> None:
    """Each user buys within one of eight groups, so popularity does not predict the next item."""
    learner, rng = Learner(small("purchases")), np.random.default_rng(1)
    for _ in range(150):
        users = rng.integers(0, 64, 64, np.uint64)
        items = users % 8 * 5 + rng.integers(0, 5, 64, np.uint64)
        learner.learn(wire.encode_interactions(users, items))
    report = learner.judge.report()
    for metric in ("recall@10", "ndcg@10", "sampled_recall@10"):
        assert value(report, metric) > 1.3 * value(report, metric, "popular")


@pytest.mark.parametrize("name", PRESETS)
def test_grouping_changes_no_choice_and_reference_and_cpu_agree(name: str) -> None:
    stream = [body(seed, 1 + seed % 20, name) for seed in range(24)]
    reports = []
    for backend, cuts in (("cpu", 1), ("reference", 1), ("cpu", 6)):
        learner = Learner(small(name), backend=backend)
        for start in range(0, len(stream), cuts):
            learner.learn(*stream[start : start + cuts])
        reports.append(learner.judge.report())
    # These two judges saw the same runs, so their series are equal.
    assert reports[0].figures == reports[1].figures
    sizes = [(one.judged_events, one.ranked_events) for one in reports]
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("name", PRESETS)
def test_judging_changes_no_bit(name: str) -> None:
    plain, judged = Learner(small(name), None), Learner(small(name))
    for seed in range(12):
        data = [body(seed + 100 * part, 33, name) for part in range(2)]
        plain.learn(*data)
        judged.learn(*data)
        judged.judge.report()
    assert judged.judge.report().judged_events > 0
    sections = [state_sections(learner.state.backend) for learner in (plain, judged)]
    assert all(sections[0][key].tobytes() == sections[1][key].tobytes() for key in sections[0])


def observed(**changes: object) -> EngineSettings:
    return EngineSettings(observer=ObserverSettings(EVERYTHING, **changes))  # type: ignore[arg-type]


def test_the_engine_gives_one_root_with_and_without_and_a_replay_judges_the_same(tmp_path: Path) -> None:
    spec, roots = small("clicks"), []
    for folder, settings in (
        ("judged", observed()),
        ("not", EngineSettings(observer=ObserverSettings(JudgeSettings(0.0)))),
    ):
        rig = Rig(tmp_path / folder, spec, settings)
        for seed in range(20):
            # Each record is acknowledged before the next one, so each run has one record.
            rig.push(body(seed, 30, "clicks"))
        rig.close()
        report = rig.engine.observer.report()
        assert (report is None) == (folder == "not")
        if report is not None:
            live = report
        roots.append(replayed_root(tmp_path / folder))
        assert roots[-1] == rig_root(rig)
    assert roots[0] == roots[1]
    replayed = Learner(spec)
    log = Log.open(tmp_path / "judged" / "log", read_only=True)
    for run in decoded_runs(log.read(1), ()):
        for _, one in run:
            replayed.run([one])
    log.close()
    again = replayed.judge.report()
    assert (again.figures, again.judged_events) == (live.figures, live.judged_events)


def rig_root(rig: Rig) -> bytes:
    return state_root(rig.engine.state)


def swapped(seed: int, flipped: bool) -> bytes:
    """Return ratings that depend on the groups of the users. `flipped` reverses them."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 30, 64, np.uint64), rng.integers(0, 30, 64, np.uint64)
    likes = (users + items) % 2 == flipped
    return wire.encode_interactions(users, items, values=np.where(likes, 5.0, 1.0).astype(np.float32))


def test_a_planted_drift_is_detected_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    learner, found = Learner(small("ratings")), []
    for seed in range(200):
        learner.learn(swapped(seed, False))
    before = [event for event in learner.judge.report().events if event.kind == DRIFT]
    # The model was learning, so its loss can only have fallen.
    assert all(not event.worse for event in before)
    for seed in range(200, 240):
        found += [event for event in learner.learn(swapped(seed, True)) if event.kind == DRIFT]
    worse = [event for event in found if event.worse]
    assert worse and worse[0].metric == "loss" and worse[0].after > worse[0].before
    assert 200 < worse[0].revision < 215
    assert worse[0] in learner.judge.report().events


def test_a_series_of_hits_drifts_and_a_steady_one_does_not() -> None:
    rng = np.random.default_rng(5)
    detector = drift.HitDrift()
    assert detector.push((rng.random(3000) < 0.6).astype(float)) is None
    change = detector.push((rng.random(3000) < 0.2).astype(float))
    assert change is not None and change.after < change.before == pytest.approx(0.6, abs=0.05)


def test_adwin_is_rivers_and_loads_none_of_its_dependencies() -> None:
    """River's other detectors need SciPy, whose import would delay every start by a second."""
    code = (
        "import sys\nfrom livefactor_server.judging.drift import HitDrift\nfound = HitDrift()._adwin\n"
        "print(type(found).__name__, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ADWIN", "False"]


def test_without_river_everything_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "river", None)
    monkeypatch.setattr(drift, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        rig = Rig(tmp_path, small("clicks"), observed())
    for seed in range(10):
        rig.push(body(seed, 30, "clicks"))
    rig.close()
    report = rig.engine.observer.report()
    assert not report.drift_detection and report.judged_events == 80
    assert "drift detection is off" in caplog.text


def test_a_judge_that_fails_leaves_the_engine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path, small("clicks"), observed())
    rig.push(body(1, 30, "clicks"))
    monkeypatch.setattr(judge.scoring, "read", lambda *_: 1 / 0)
    assert [rig.push(body(seed, 30, "clicks")).accepted for seed in (2, 3)] == [30, 30]
    rig.close()
    assert rig.engine.observer.report() is None
    assert "the judge failed" in caplog.text
    assert rig_root(rig) == replayed_root(tmp_path)


def test_one_item_alone_has_no_ranking_and_breaks_nothing() -> None:
    for name in ("clicks", "purchases"):
        learner = Learner(small(name))
        learner.learn(wire.encode_interactions(np.array([1, 2], np.uint64), np.array([5, 5], np.uint64)))
        report = learner.judge.report()
        assert report.ranked_events == (0, 0)
        assert report.judged_events == (0 if learner.state.spec.loss == Loss.BPR else 2)


def normal(seed: int, level: float) -> bytes:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 30, 8192, np.uint64) for _ in range(2)]
    values = rng.normal(0.0, level, 8192).clip(-999, 999)
    return wire.encode_interactions(*ids, values=values.astype(np.float32))


def runaway(rig: Rig, epoch: int) -> int:
    """Push until updates are held, and return the sequence that was refused."""
    for sequence in range(1, 100):
        data = normal(sequence, 1.0 if sequence < 60 else 300.0)
        try:
            rig.push(data, b"p", epoch, sequence)
        except Refused as refusal:
            assert refusal.code == grpc.StatusCode.FAILED_PRECONDITION
            assert "on hold" in refusal.text
            return sequence
    raise AssertionError("never held")


def test_a_hold_refuses_interactions_alone_and_consumes_no_sequence(tmp_path: Path) -> None:
    spec = preset("ratings_sgd", k=8, limits=Limits(100, 100, value_abs_max=1000.0, error_max=2.5))
    rig = Rig(tmp_path, spec, observed(hold=True))
    epoch = rig.open(b"p").epoch
    refused = runaway(rig, epoch)
    acknowledged = rig.engine.revision
    hold = rig.engine.observer.hold
    assert hold is not None and 0 < hold.good_revision < hold.revision <= acknowledged
    # A retry of an acknowledged batch gets its first answer. Other changes are still accepted.
    # Refused batches are not logged.
    first = normal(1, 1.0)
    assert rig.push(first, b"p", epoch, 1).duplicate
    assert rig.open(b"q").revision == acknowledged + 1
    assert rig.engine.observer.release() and not rig.engine.observer.release()
    assert rig.push(first, b"p", epoch, refused).revision == acknowledged + 2
    rig.close()
    assert rig_root(rig) == replayed_root(tmp_path)


def test_a_hold_outlives_a_restart(tmp_path: Path) -> None:
    file = HoldFile(tmp_path / "hold.json")
    first, second = Hold("why", 7, 8, 5), Hold("other", 9, 9, 9)
    file.engage(first)
    file.engage(second)
    again = HoldFile(tmp_path / "hold.json")
    assert again.current == file.current == first
    assert again.release() and HoldFile(tmp_path / "hold.json").current is None
