"""The quality benchmark divides data, computes metrics and runs opponents correctly.

Its page shows the measured figures.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from repository import ROOT

# No installed package contains the benchmarks.
sys.path.insert(0, str(ROOT))
from benchmarks import topics
from benchmarks.pages import between_marks
from benchmarks.progressive.data import Stream
from benchmarks.quality import als, closed_form, data, metrics, pictures, ratings, report, search
from benchmarks.quality.data import Events
from benchmarks.quality.methods import METHODS
from benchmarks.quality.ranking import QUICK
from benchmarks.quality.suite import NEXT_GRIDS, all_parts
from benchmarks.quality.test_then_learn import knn_hits

MODULES = sorted(
    path.stem for path in (ROOT / "benchmarks" / "quality").glob("*.py") if not path.stem.startswith("__")
)
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
measured = pytest.mark.skipif(not RESULTS.exists(), reason="`make quality` has not been run here")


def events_of(pairs: list[tuple[int, int]], users: int, items: int) -> Events:
    named = np.array(pairs, np.int32).reshape(-1, 2)
    return Events(named[:, 0], named[:, 1], np.ones(len(named), np.float32), users, items)


def tiny(events: int = 60, users: int = 9, items: int = 7) -> Events:
    cells = np.random.default_rng(5).permutation(users * items)[:events]
    return events_of([(int(cell) // items, int(cell) % items) for cell in cells], users, items)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_loads_without_the_libraries_it_compares_with(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("implicit", "implicit.als", "scipy", "scipy.sparse", "matplotlib"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"benchmarks.quality.{name}", raising=False)
    assert importlib.import_module(f"benchmarks.quality.{name}").__doc__


# Divisions.


def test_a_cut_through_all_events_keeps_their_order() -> None:
    events = events_of([(0, n) for n in range(10)], 1, 10)
    division = data.cut(events, False, 0.64, 0.8)
    assert division.learned.items.tolist() == [0, 1, 2, 3, 4, 5]
    assert division.judged.items.tolist() == [6, 7]


def test_a_cut_by_user_rounds_each_users_share_down() -> None:
    pairs = [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3), (0, 4), (1, 2)]
    division = data.cut(events_of(pairs, 2, 5), True, 0.8, 1.0)
    assert list(zip(division.learned.users, division.learned.items, strict=True)) == [
        (0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3),
    ]  # fmt: skip
    assert list(zip(division.judged.users, division.judged.items, strict=True)) == [(0, 4), (1, 2)]


@pytest.mark.parametrize("by_user", [False, True])
@pytest.mark.parametrize("divide", [data.in_time, data.shuffled])
def test_settings_are_picked_without_the_held_out_events(divide, by_user: bool) -> None:
    events = tiny()
    judgement = divide(events, by_user)

    def pairs(part: Events) -> set[tuple[int, int]]:
        return set(zip(part.users.tolist(), part.items.tolist(), strict=True))

    tuned = pairs(judgement.tuning.learned) | pairs(judgement.tuning.judged)
    assert tuned == pairs(judgement.final.learned)
    assert not tuned & pairs(judgement.final.judged)
    assert not pairs(judgement.tuning.learned) & pairs(judgement.tuning.judged)
    assert tuned | pairs(judgement.final.judged) == pairs(events)
    again = pairs(data.reordered(judgement.final.learned, 1))
    assert again == pairs(judgement.final.learned)


def test_only_the_first_of_a_repeated_pair_is_an_event() -> None:
    keys = [np.array(column, np.uint64) for column in ([7, 7, 3, 7], [20, 10, 10, 20])]
    once = data.numbered(Stream(*keys, np.ones(4, np.float32)), once=True)
    assert (once.users.tolist(), once.items.tolist()) == ([1, 1, 0], [1, 0, 0])
    assert len(data.numbered(Stream(*keys, np.ones(4, np.float32)), once=False)) == 4


# Metrics.


def test_lists_are_the_sorted_scores_with_ties_to_the_lower_number() -> None:
    generator = np.random.default_rng(2)
    scores = generator.integers(0, 6, (40, 30)).astype(np.float32)
    left_out = generator.random((40, 30)) < 0.5
    left_out[0] = True
    lists = metrics.top_lists(scores, left_out, 12)
    for user in range(40):
        allowed = [item for item in range(30) if not left_out[user, item]]
        best = sorted(allowed, key=lambda item: (-scores[user, item], item))[:12]
        assert lists[user].tolist() == best + [-1] * (12 - len(best))


def test_metrics_of_a_list_made_by_hand() -> None:
    lists = np.full((2, 20), -1, np.int32)
    lists[0, :12] = np.arange(12)
    lists[1, :3] = [9, 8, 7]
    relevant = np.zeros((2, 40), bool)
    relevant[0, [0, 2, 11, 30]] = True
    relevant[1, 39] = True
    figures = metrics.ranking(lists, relevant)
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4) + 1 / np.log2(5)
    assert figures["ndcg10"] == pytest.approx((1 + 1 / np.log2(4)) / ideal / 2)
    assert figures["recall10"] == pytest.approx(2 / 4 / 2)
    assert figures["recall20"] == pytest.approx(3 / 4 / 2)
    assert figures["hit10"] == 0.5


def test_a_perfect_list_of_more_than_ten_is_worth_one() -> None:
    relevant = np.zeros((1, 20), bool)
    relevant[0, :15] = True
    figures = metrics.ranking(np.arange(20, dtype=np.int32)[None], relevant)
    assert figures["ndcg10"] == pytest.approx(1.0)
    assert figures["recall10"] == pytest.approx(10 / 15)


def test_the_judge_asks_for_new_items_of_known_users() -> None:
    learned = events_of([(0, 0), (0, 1), (1, 1)], 4, 5)
    judged = events_of([(0, 1), (0, 3), (1, 1), (2, 0), (0, 1)], 4, 5)
    judge = metrics.Judge(data.Division(learned, judged))
    # User 1 only repeats an item. User 2 is unknown.
    assert judge.users.tolist() == [0]
    assert judge.relevant.tolist() == [[False, False, False, True, False]]
    # No user had items 2, 3 and 4.
    assert judge.left_out.tolist() == [[True, True, True, True, True]]
    judge = metrics.Judge(data.Division(events_of([(0, 0), (1, 3), (1, 2)], 4, 5), judged))
    assert judge.left_out[0].tolist() == [True, True, False, False, True]
    figures = judge.figures(lambda users: np.array([[9, 9, 1, 2, 9.0]]))
    assert judge.users.tolist() == [0, 1]
    assert figures["hit10"] == 0.5
    # No user had item 1, so no list contains it. User 0 gets item 3, the first of two relevant
    # items. User 1 gets no relevant item.
    assert figures["ndcg10"] == pytest.approx((1.0 / (1 + 1 / np.log2(3)) + 0.0) / 2)
    with pytest.raises(ValueError, match="finite"):
        judge.figures(lambda users: np.full((users.size, 5), np.nan))


def test_the_best_settings_win_and_the_first_of_equals() -> None:
    settings = search.grid(a=(1, 2, 3), b=("x", "y"))
    choice = search.pick(settings, lambda each: -abs(float(each["a"]) - 2))
    assert (choice.settings, choice.size, choice.value) == ({"a": 2, "b": "x"}, 6, 0.0)
    assert choice.words == "a 2, b x"


# Opponents, compared with naive versions.


def test_popularity_halves_in_its_half_life() -> None:
    events = events_of([(0, 0), (1, 0), (0, 1), (1, 1), (2, 1)], 3, 3)
    scores = closed_form.popular(events, half_life=2.0)(np.array([0, 1]))
    ages = [0.5 ** (age / 2) for age in (4, 3, 2, 1, 0)]
    assert scores[1].tolist() == pytest.approx([ages[0] + ages[1], ages[2] + ages[3] + ages[4], 0.0])
    assert closed_form.popular(events)(np.array([0]))[0].tolist() == [2, 3, 0]


@pytest.mark.parametrize("kind", ["cosine", "conditional"])
@pytest.mark.parametrize("neighbours", [0, 2])
def test_item_knn_is_the_sum_over_what_a_user_had(kind: str, neighbours: int) -> None:
    events, shrinkage = tiny(30), 1.5
    matrix = events.matrix()
    # The matrix has one row for each user and one column for each item.
    had = [set(np.flatnonzero(row)) for row in matrix.T]
    expected = np.zeros((9, 7))
    for j in range(7):
        row = np.zeros(7)
        for i in range(7):
            root = np.sqrt(len(had[i]) * len(had[j]))
            below = (root if kind == "cosine" else len(had[j])) + shrinkage
            row[i] = len(had[i] & had[j]) / below if i != j else 0.0
        kept = row >= (sorted(row)[-neighbours] if neighbours else -1)
        for user in had[j]:
            expected[user] += row * kept
    scores = closed_form.item_knn(matrix, closed_form.counted_together(matrix), kind, shrinkage, neighbours)
    np.testing.assert_allclose(scores(np.arange(9)), expected, rtol=1e-5, atol=1e-6)


def test_ease_is_ridge_regression_of_an_item_on_all_others() -> None:
    matrix, l2 = tiny(30).matrix().astype(np.float64), 0.7
    weights = closed_form.ease_weights(closed_form.counted_together(matrix), l2)
    for item in range(7):
        others = [other for other in range(7) if other != item]
        x = matrix[:, others]
        expected = np.linalg.solve(x.T @ x + l2 * np.eye(6), x.T @ matrix[:, item])
        np.testing.assert_allclose(weights[others, item], expected, rtol=1e-4, atol=1e-6)
        assert weights[item, item] == 0.0


def test_recency_counts_a_users_own_events() -> None:
    events = events_of([(0, 0), (1, 0), (0, 1), (0, 2)], 2, 3)
    assert closed_form.recency(events, 1.0).tolist() == [0.25, 1.0, 0.5, 1.0]


def als_loss(model: als.Als, matrix: np.ndarray) -> float:
    scores = model.users.astype(np.float64) @ model.items.T
    fit = ((scores - 1) ** 2)[matrix > 0].sum() + model.unobserved * (scores**2).sum()
    rows = (
        ((matrix > 0).sum(axis=axis) + model.unobserved * matrix.shape[axis]) ** model.nu
        @ np.square(table, dtype=np.float64).sum(axis=1)
        for axis, table in ((1, model.users), (0, model.items))
    )
    return float(fit + model.l2 * sum(rows))


@pytest.mark.parametrize("nu", [0.0, 1.0])
def test_ials_solves_each_row_and_its_loss_only_falls(nu: float) -> None:
    events = tiny(30)
    matrix, model = events.matrix(), als.Als(events, k=3, unobserved=0.2, l2=0.05, nu=nu, seed=1)
    losses = []
    for _ in range(8):
        items_before = model.items.astype(np.float64)
        model.epoch()
        losses.append(als_loss(model, matrix))
        for user in range(9):
            weights = np.diag(0.2 + (matrix[user] > 0))
            ridge = 0.05 * ((matrix[user] > 0).sum() + 0.2 * 7) ** nu
            left = items_before.T @ weights @ items_before + ridge * np.eye(3)
            expected = np.linalg.solve(left, items_before.T @ (matrix[user] > 0))
            np.testing.assert_allclose(model.users[user], expected, rtol=2e-3, atol=1e-5)
    assert all(after <= before + 1e-4 for before, after in pairwise(losses))
    # The items were solved last, so moving any of their values does not reduce the loss.
    step = np.float32(0.01)
    for index in np.ndindex(model.items.shape):
        for sign in (step, -step):
            model.items[index] += sign
            assert als_loss(model, matrix) >= losses[-1] - 1e-5
            model.items[index] -= sign


@pytest.mark.parametrize("kind", ["cosine", "conditional"])
def test_test_then_learn_asks_before_it_learns(kind: str) -> None:
    generator = np.random.default_rng(9)
    pairs = np.column_stack([generator.integers(0, 5, 200), generator.integers(0, 30, 200)])
    events = events_of([(int(user), int(item)) for user, item in pairs], 5, 30)
    shrinkage, half_life, repeats = 0.5, 3.0, 0.4
    hits = knn_hits(events, kind, shrinkage, half_life, repeats, batch_events=16)
    expected = []
    for t, (user, item) in enumerate(pairs):
        known = pairs[: t // 16 * 16]
        matrix = np.zeros((5, 30))
        matrix[known[:, 0], known[:, 1]] = 1
        counts, popularity = matrix.T @ matrix, np.bincount(known[:, 1], minlength=30)
        history = list(dict.fromkeys(reversed([int(i) for u, i in known if u == user])))
        scores = np.zeros(30)
        for age, mine in enumerate(history):
            alone = np.diag(counts)
            below = np.sqrt(alone[mine] * alone) if kind == "cosine" else alone[mine] * np.ones(30)
            said = counts[mine] / (below + shrinkage)
            said[mine] = repeats
            scores += 0.5 ** (age / half_life) * said
        rounded = np.round(scores, 5)
        best = sorted(np.flatnonzero(popularity), key=lambda i: (-rounded[i], -popularity[i], i))[:10]
        expected.append(item in best)
    assert 20 < sum(expected) < 190
    # Sums in another order may differ in the last digit. So another one of two tied items may come
    # tenth.
    assert np.count_nonzero(hits != np.array(expected)) <= 2


def test_multi_pass_sgd_learns_ratings_that_factors_explain() -> None:
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(30, 2)), generator.normal(size=(20, 2))
    users, items = np.divmod(generator.permutation(600), 20)
    values = (3.0 + (x[users] * y[items]).sum(axis=1)).astype(np.float32)
    events = Events(users.astype(np.int32), items.astype(np.int32), values, 30, 20)
    division = data.cut(events, False, 0.9, 1.0)
    error, epochs = ratings.best_epochs(division, {"rate": 0.05, "l2": 0.001, "k": 4})
    assert error < 0.35 * np.std(division.judged.values)
    model = ratings.multi_pass(division.learned, epochs, 0, rate=0.05, l2=0.001, k=4)
    assert ratings.error_of(model, division.judged) == pytest.approx(error)


# The page and the results.


def test_every_method_has_a_colour() -> None:
    shown = {key for grids in NEXT_GRIDS.values() for key in grids} | set(METHODS)
    assert shown <= set(pictures.COLOURS)


def test_opponents_are_tuned_as_long_as_ours() -> None:
    # A grid of length 1 is an unchanged preset.
    ours = {len(method.grid) for method in METHODS.values() if method.ours} - {1}
    assert len(ours) == 1
    assert {len(method.shuffled) for method in METHODS.values() if method.shuffled} == ours
    for key in ("ials", "implicit", "knn", "ease_recent"):
        assert len(METHODS[key].grid) >= max(ours)
    for key in ("popular_decayed", "ease"):
        assert len(METHODS[key].grid) >= 12


def test_figures_that_were_not_measured_are_reported_as_missing() -> None:
    figures = report.completed({"retail_time_clicks_ndcg10": 0.1, "retail_time_ials_ndcg10": 0.2})
    assert figures["ratio_retail_time_clicks_to_ials"] == 0.5
    assert figures["ratio_ml1m_time_clicks_to_ials"] is None
    assert report.shown("ratio_ml1m_time_clicks_to_ials", None) == "missing"
    with pytest.raises(ValueError, match="once"):
        between_marks("no marks", report.COMMAND)


@measured
def test_results_are_flat_dated_and_whole() -> None:
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert [name for name, value in figures.items() if isinstance(value, dict | list)] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", str(figures["run_date"]))
    assert set(report.required()) <= figures.keys()
    for name, ratio in report.ratios().items():
        under = [figures[other] for other in ratio.under if figures[other] is not None]
        if figures[name] is not None:
            assert figures[name] == pytest.approx(figures[ratio.over] / max(under), rel=1e-4)


@measured
def test_figures_with_a_goal_come_from_the_files_of_their_topics() -> None:
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {name: figures[name] for name in topics.GOALS} == topics.with_goals({})
    parts = {part.name for part in all_parts(Path("no folder/ratings.csv.gz"), QUICK)}
    assert set(topics.FILES) <= parts
    assert {goal.part for goal in topics.GOALS.values()} == set(topics.FILES)


def test_a_topic_keeps_the_other_figures_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "RESULTS", tmp_path)
    topics.store("sessions", {"auto_ml1m_auto": 0.25, "sessions_recall20_auto": 0.1})
    topics.store("sessions", {"sessions_recall20_auto": 1 / 3, "sessions_recall20_to_sknn": 0.9})
    assert topics.kept("sessions") == {
        "auto_ml1m_auto": 0.25,
        "sessions_recall20_auto": 0.333333,
        "sessions_recall20_to_sknn": 0.9,
    }
    found = topics.with_goals({"other": 1.0})
    assert (found["other"], found["sessions_recall20_to_sknn"]) == (1.0, 0.9)
    assert found["warm_start_ratio"] is None


@measured
def test_the_page_shows_the_figures_that_were_measured() -> None:
    _, shown, _ = between_marks(report.PAGE.read_text(encoding="utf-8"), report.COMMAND)
    assert shown == report.page(json.loads(RESULTS.read_text(encoding="utf-8")))


@measured
def test_the_page_names_methods_that_ran_on_another_day() -> None:
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    dates = {"a_run_date": "2031-01-02 03:04 UTC", "b_run_date": "2031-01-02 05:06 UTC"}
    assert "- Run alone on 2031-01-02: `a`, `b`." in report.page(figures | dates).splitlines()
