"""The search for a spec.

The tests cover the protocol, the table of rules, and the study. A kill does not change its result.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor_kernels.backend import Update
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import AdaptiveRate, Limits, SpecError
from livefactor_kernels.spec.presets import preset
from livefactor_server.model import spec_codec
from livefactor_server.tuning import metrics, plan, progressive, report, search
from livefactor_server.tuning.plan import Plan, Settings
from livefactor_server.tuning.progressive import TOP, Stream, judge_then_learn
from livefactor_server.tuning.rules import RULES, TASKS, Choice, field_of
from livefactor_server.tuning.starts import Start, starts

RULE = ["logistic-sgd"]
FIRST = [Start("clicks_sgd", RULE[0], {"rule": RULE[0], **RULES[RULE[0]].first(RULE[0])})]
FOR_EVER = float("inf")
TRIALS = 7
NOTHING = lambda *_: None  # noqa: E731


def groups(events: int = 2500, seed: int = 1) -> Stream:
    """Return a stream with eight groups of users, who take only items of their own group."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 80, events)
    items = (users % 8) * 20 + rng.integers(0, 20, events)
    return Stream(users.astype(np.uint64), items.astype(np.uint64), np.ones(events, np.float32))


# ------------------------------------------------------------------------------------------------
# The protocol.


def test_ranks_are_those_of_the_sorted_scores_before_the_batch() -> None:
    spec, stream = preset("purchases_sgd", k=8), groups(900)
    asked = np.random.default_rng(3).random(900) < 0.5
    judge = metrics.METRICS["ndcg"].judge
    steps = list(judge_then_learn(spec, stream, judge, asked, 100))
    model, expected = ReferenceModel(spec), []
    for revision, start in enumerate(range(0, 900, 100), 1):
        known_users, known_items = model.published
        for at in range(start, start + 100):
            if not asked[at]:
                continue
            row = model.users.find(stream.user_keys[at : at + 1], known_users)[0]
            scores = np.array(model.items.bias[:known_items], np.float64)
            if row < known_users:
                scores += model.items.factors[:known_items] @ model.users.factors[row]
            keys = model.items.keys[:known_items]
            best = [int(keys[i]) for i in np.lexsort((keys, -scores))[:TOP]]
            item = int(stream.item_keys[at])
            expected.append(1 / np.log2(2 + best.index(item)) if item in best else 0.0)
        part = slice(start, start + 100)
        rows = model.users.allocate(stream.user_keys[part]), model.items.allocate(stream.item_keys[part])
        counts = model.users.allocated, model.items.allocated
        model.apply(Update(revision, *rows, None, None, *counts))
    judged = np.concatenate([step.judged for step in steps])
    assert np.count_nonzero(expected) > 50
    # Scores that differ only in the last digit may change places.
    assert np.count_nonzero(~np.isclose(judged, expected)) <= 2


def test_predictions_are_exact_and_weights_reach_the_model() -> None:
    rng = np.random.default_rng(2)
    stream = replace(groups(600), values=rng.integers(1, 6, 600).astype(np.float32))
    everything = np.ones(600, bool)
    judge = metrics.METRICS["rmse"].judge
    spec = preset("ratings_sgd", k=8)
    plain = np.concatenate([s.judged for s in judge_then_learn(spec, stream, judge, everything, 64)])
    first = stream.values[:64].astype(np.float64) ** 2
    # Nothing is known, so the prediction is 0.
    np.testing.assert_array_equal(plain[:64], first)
    heavy = replace(stream, weights=np.full(600, 2.0, np.float32))
    other = np.concatenate([s.judged for s in judge_then_learn(spec, heavy, judge, everything, 64)])
    assert (plain[:64] == other[:64]).all() and (plain[64:] != other[64:]).mean() > 0.9


def test_baselines_know_what_came_before() -> None:
    stream = replace(groups(300), values=np.arange(300, dtype=np.float32))
    means = progressive.item_means(stream, 50)
    for at in (0, 49, 50, 299):
        start = at // 50 * 50
        same = stream.item_keys[:start] == stream.item_keys[at]
        values = stream.values[:start]
        expected = values[same].mean() if same.any() else (values.mean() if start else 0.0)
        assert means[at] == pytest.approx(expected)
    zeros = replace(stream, values=(stream.item_keys >= 20).astype(np.float32))
    places = progressive.popular_ranks(zeros, batch_events=50)
    assert (places[stream.item_keys < 20] == TOP).all() and (places[stream.item_keys >= 20] < TOP).any()


@given(st.integers(0, 5), st.floats(0.2, 0.8), st.floats(0.0, 0.5), st.integers(50, 3000))
@settings(max_examples=30)
def test_judged_events_are_a_sample_of_their_part(seed: int, part: float, warm_up: float, most: int) -> None:
    stream = groups(2000)
    made = Plan(stream, Settings("recall", 100, part, warm_up, most, seed))
    for mask, start, stop in (
        (made.search_sample, made.start, made.search_events),
        (made.rest_sample, made.search_events, 2000),
    ):
        assert not mask[:start].any() and not mask[stop:].any()
        spread = 5 * np.sqrt(most) + 1
        assert min(most, stop - start) - spread <= mask.sum() <= min(most + spread, stop - start)
    again = Plan(stream, Settings("recall", 100, part, warm_up, most, seed))
    np.testing.assert_array_equal(made.search_sample, again.search_sample)


def test_a_stream_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        Plan(groups(1), Settings("recall"))


# ------------------------------------------------------------------------------------------------
# The table of rules.


@pytest.mark.parametrize("name", RULES)
def test_every_corner_of_a_rule_is_a_spec(name: str) -> None:
    rule = RULES[name]
    ends = [
        axis.options[:: len(axis.options) - 1] if isinstance(axis, Choice) else (axis.low, axis.high)
        for axis in rule.axes
    ]
    for values in itertools.product(*ends):
        spec = rule.spec(dict(zip((axis.field for axis in rule.axes), values, strict=True)))
        assert spec == spec_codec.decode(spec_codec.encode(spec))
        assert [field_of(spec, axis.field) for axis in rule.axes] == pytest.approx(list(values))


def test_the_rules_serve_every_task_and_no_other() -> None:
    assert {task for rule in RULES.values() for task in rule.tasks} == set(TASKS)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_starts_within_its_ranges_and_at_its_spec(name: str) -> None:
    rule = RULES[name]
    for axis in rule.axes:
        start = field_of(rule.start, axis.field)
        assert start in axis.options if isinstance(axis, Choice) else axis.low <= start <= axis.high
    assert rule.of_parameters(rule.first(name), name) == rule.spec({})
    older = {key: value for key, value in rule.first(name).items() if key != f"{name}.{rule.axes[-1].field}"}
    # The parameters come from a study that is older than the axis.
    assert rule.of_parameters(older, name) == rule.spec({})


@pytest.mark.parametrize("name", RULES)
def test_an_adaptive_rate_is_tried_by_the_rules_that_take_it(name: str) -> None:
    axes = [axis.field for axis in RULES[name].axes]
    adapted = replace(RULES[name].start, adaptive_rate=AdaptiveRate(2048))
    if "adaptive_rate.window" in axes:
        assert RULES[name].spec({"adaptive_rate.window": 2048}).adaptive_rate == adapted.adaptive_rate
    else:
        with pytest.raises(SpecError, match="with an adaptive rate"):
            check(adapted)


def test_every_task_starts_with_its_preset() -> None:
    for task in TASKS:
        starts = [rule.start for rule in RULES.values() if task in rule.tasks]
        assert preset(task) in starts


def test_a_search_learns_and_ranks_with_the_context_of_events() -> None:
    """Users have no taste, and the context of an event names the group of its item."""
    rng = np.random.default_rng(8)
    users, items = (rng.integers(0, count, 2400).astype(np.uint64) for count in (200, 160))
    told = Bags(np.arange(1, 2401), items // np.uint64(10), np.ones(2400, np.float32))
    plain = Stream(users, items, np.ones(2400, np.float32))
    spec = preset("clicks_sgd", k=16)
    found = {}
    for weight, stream in (
        (0.0, plain),
        (0.0, replace(plain, context=told)),
        (4.0, replace(plain, context=told)),
    ):
        made = Plan(stream, Settings("recall", 200, seed=5, context_weight=weight))
        assert made.with_context(spec).context.size == (0 if stream is plain else plan.CONTEXT_SIZE)
        outcomes = made.search(spec, NOTHING, NOTHING), made.rest(spec, NOTHING)
        found[stream is plain, weight] = [outcome.value for outcome in outcomes]
    assert found[False, 0.0] == found[True, 0.0]
    for with_it, without in zip(found[False, 4.0], found[True, 0.0], strict=True):
        assert with_it > 3 * without
    assert plan.with_context(preset("ratings_sgd")).context.size == 0


# ------------------------------------------------------------------------------------------------
# The study.


SETTINGS = {"events": "groups", "seed": 5}


def run(folder: Path, made: Plan, trials: int = TRIALS, on_events=NOTHING) -> list[search.FinishedTrial]:
    with search.open_study(folder, SETTINGS, made.metric.larger_is_better) as study:
        return search.search(study, made, FIRST, RULE, trials, FOR_EVER, on_events, NOTHING)


def said(done: list[search.FinishedTrial]) -> list[search.FinishedTrial]:
    """Return the trials without their times."""
    return [replace(one, events_per_s=0.0, seconds=0.0) for one in done]


@pytest.fixture(scope="module")
def made() -> Plan:
    pytest.importorskip("optuna")
    return Plan(groups(), Settings("recall", 250, seed=5))


@pytest.fixture(scope="module")
def whole(made: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[search.FinishedTrial], bytes]:
    """Run a search without interruption, and return its trials and its journal."""
    folder = tmp_path_factory.mktemp("whole")
    return said(run(folder, made)), (folder / search.JOURNAL).read_bytes()


def test_a_search_is_a_function_of_its_seed(made: Plan, whole, tmp_path: Path) -> None:
    assert said(run(tmp_path, made)) == whole[0]
    other = Plan(made.stream, replace(made.settings, seed=6))
    assert said(run(tmp_path / "other", other))[1:] != whole[0][1:]
    assert whole[0][0].spec == RULES[RULE[0]].spec({}) and whole[0][0].preset == "clicks_sgd"
    assert len({one.spec for one in whole[0]}) == TRIALS
    assert {one.spec.adaptive_rate.window for one in whole[0]} == {0, 2048}


@given(st.data())
@settings(max_examples=8)
def test_whatever_a_kill_leaves_of_the_journal_the_search_ends_the_same(
    made: Plan, whole, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The kill can cut the journal at any byte and leave Optuna's lock behind."""
    done, journal = whole
    folder = tmp_path_factory.mktemp("cut")
    (folder / search.JOURNAL).write_bytes(journal[: data.draw(st.integers(0, len(journal)))])
    (folder / f"{search.JOURNAL}.lock").symlink_to(folder / search.JOURNAL)
    assert said(run(folder, made)) == done


def test_a_search_that_dies_in_a_trial_begins_that_trial_again(made: Plan, whole, tmp_path: Path) -> None:
    def die_later(after: int):
        calls = itertools.count()

        def on_events(_: int) -> None:
            if next(calls) == after:
                raise KeyboardInterrupt

        return on_events

    for after in (3, 8, 11):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, made, on_events=die_later(after))
    assert said(run(tmp_path, made)) == whole[0]
    with search.open_study(tmp_path, SETTINGS, True) as study:
        states = [trial.state.name for trial in study.trials]
    assert states.count("FAIL") == 3 and set(states) == {"COMPLETE", "PRUNED", "FAIL"}


def test_more_trials_go_on_where_fewer_ended(made: Plan, whole, tmp_path: Path) -> None:
    assert said(run(tmp_path, made, 3)) == whole[0][:3]
    assert said(run(tmp_path, made, 3)) == whole[0][:3]
    assert said(run(tmp_path, made)) == whole[0]


def test_a_study_of_other_settings_or_in_use_is_refused(made: Plan, tmp_path: Path) -> None:
    with (
        search.open_study(tmp_path, SETTINGS, True),
        pytest.raises(search.StudyError, match="in use"),
        search.open_study(tmp_path, SETTINGS, True),
    ):
        pass
    with (
        pytest.raises(search.StudyError, match="has a search with seed 5, not 6"),
        search.open_study(tmp_path, {**SETTINGS, "seed": 6}, True),
    ):
        pass
    (tmp_path / search.JOURNAL).write_bytes(b"no journal\n{}\n")
    with pytest.raises(search.StudyError, match="damaged"), search.open_study(tmp_path, SETTINGS, True):
        pass


def test_hopeless_trials_are_stopped_and_never_win(made: Plan, tmp_path: Path, monkeypatch) -> None:
    """All trials have equal specs. A run that is worse from its first point stops at its second."""
    worth = iter([*[0.5] * search.JUDGED_TRIALS, 0.1, 0.9])

    def run_of(self, spec, stream, asked, on_point, on_events) -> plan.Outcome:
        value = next(worth)
        for point in range(1, plan.POINTS + 1):
            on_point(point, value)
        return plan.Outcome(value, 1.0, ())

    monkeypatch.setattr(Plan, "_run", run_of)
    done = run(tmp_path, made)
    assert [one.stopped for one in done] == [False] * search.JUDGED_TRIALS + [True, False]
    best = search.best_first(done, made)
    assert best[0].number == TRIALS - 1 and len(best) == TRIALS - 1


# ------------------------------------------------------------------------------------------------
# Presets, and the time limit.


@dataclass
class Played:
    """A clock, and the number of runs over the whole stream."""

    now: float = 0.0
    rests: int = 0


def test_every_preset_that_fits_is_tried_before_anything_else() -> None:
    ones, stars = np.ones(3, np.float32), np.array([1, 4, 5], np.float32)
    for task in ("clicks", "purchases", "news"):
        rules = [name for name, rule in RULES.items() if task in rule.tasks]
        found = starts(task, rules, ones)
        presets = [one.preset for one in found if one.preset]
        assert presets[0] == task
        assert sorted(presets) == ["auto", "clicks", "clicks_sgd", "news", "purchases", "purchases_sgd"]
        assert [one.preset for one in found[len(presets) :]] == [""] * (len(found) - len(presets))
        specs = [
            replace(RULES[one.rule].of_parameters(one.parameters, one.rule), limits=Limits()) for one in found
        ]
        assert len(set(specs)) == len(specs)
        expected = replace(spec_codec.decode(spec_codec.encode(preset(presets[1]))), limits=Limits())
        assert specs[1] == expected
    assert [one.preset for one in starts("ratings", ["squared-sgd"], stars)][:2] == ["ratings", "ratings_sgd"]
    # Amounts are no clicks.
    amounts = [one.preset for one in starts("purchases", ["softmax-repeats"], stars)]
    assert amounts == ["purchases", "auto", "purchases_sgd"]
    # A preset whose rule is not searched is tried all the same.
    assert [one.parameters for one in starts("purchases", [], stars)] == [{}, {}, {}]


def played(monkeypatch: pytest.MonkeyPatch, worth: dict[str, tuple[float, float]], seconds: float) -> Played:
    """Replace every run by figures (search, rest) of its rule, which take `seconds` of a clock."""
    played = Played()
    monkeypatch.setattr(search.time, "monotonic", lambda: played.now)

    def run_of(self, spec, stream, asked, on_point, on_events) -> plan.Outcome:
        is_rest = len(stream) == len(self.stream)
        played.rests += is_rest
        for tenth in range(1, 11):
            played.now += seconds / 10
            on_events(len(stream) * tenth // 10)
        return plan.Outcome(worth.get(spec.rule.name, (0.2, 0.2))[is_rest], 1.0, ())

    monkeypatch.setattr(Plan, "_run", run_of)
    return played


def both(rules: list[str]) -> list[Start]:
    found = starts("purchases", rules, np.full(3, 4, np.float32))
    return [start for start in found if start.preset != "auto"]


@pytest.mark.parametrize(
    ("figures", "winner", "reason"),
    [
        # The preset `purchases` has rule SOFTMAX, and what is searched has rule SGD.
        ({"SOFTMAX": (0.11, 0.10), "SGD": (0.09, 0.09)}, "preset purchases", ""),
        ({"SOFTMAX": (0.09, 0.10), "SGD": (0.11, 0.09)}, "preset purchases", "not better than the preset"),
        ({"SOFTMAX": (0.09, 0.09), "SGD": (0.11, 0.11)}, "preset purchases_sgd", ""),
    ],
)
def test_nothing_worse_than_the_best_preset_is_chosen(
    made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: dict, winner: str, reason: str
) -> None:
    first = both(["logistic-sgd"])
    played(monkeypatch, figures, 0.0)
    with search.open_study(tmp_path, SETTINGS, True) as study:
        done = search.search(study, made, first, ["logistic-sgd"], 6, FOR_EVER, NOTHING, NOTHING)
    assert [one.preset for one in done] == ["purchases", "purchases_sgd", "", "", "", ""]
    if reason:
        done = [replace(one, preset="" if one.preset == "purchases_sgd" else one.preset) for one in done]
    found = report.make_report(made, done, "purchases", sum(bool(one.preset) for one in done))
    assert (found.winner.name, reason in found.reason) == (f"best: {winner}", True)
    assert found.winner.rest is not None and found.winner.rest >= found.preset.rest


def test_the_minutes_cover_presets_trials_and_the_rest(
    made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = both(["logistic-sgd"])
    clock = played(monkeypatch, {"SOFTMAX": (0.1, 0.1)}, 10.0)
    for until, presets, trials, rests in ((5.0, 0, 0, 0), (25.0, 2, 0, 0), (95.0, 2, 5, 1)):
        clock.now, clock.rests, folder = 0.0, 0, tmp_path / str(until)
        with search.open_study(folder, SETTINGS, True) as study:
            done = search.search(study, made, first, ["logistic-sgd"], 100, until, NOTHING, NOTHING)
        assert sum(bool(one.preset) for one in done) == presets
        assert len(done) == presets + trials
        if not presets:
            with pytest.raises(ValueError, match="0 of 2 presets were tried; nothing was written"):
                report.make_report(made, done, "purchases", 2, until)
            continue
        found = report.make_report(made, done, "purchases", 2, until)
        assert clock.now <= until + 1.0
        if rests:
            assert (clock.rests, found.reason) == (rests, "")
        else:
            assert (found.winner.rest, found.preset.rest) == (None, None)
            assert "time was up" in found.reason


def test_an_interrupted_trial_is_tried_again_by_the_same_command(
    made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = both(["logistic-sgd"])
    played(monkeypatch, {}, 10.0)
    with search.open_study(tmp_path, SETTINGS, True) as study:
        assert len(search.search(study, made, first, ["logistic-sgd"], 4, 15.0, NOTHING, NOTHING)) == 1
        done = search.search(study, made, first, ["logistic-sgd"], 4, FOR_EVER, NOTHING, NOTHING)
    assert [one.preset for one in done] == ["purchases", "purchases_sgd", "", ""]
