"""The pure functions of the judge, compared with simple versions in plain Python.

They compute metrics, windows, popularity, the choice of events, and bounds.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor_kernels.numbers.random import NEGATIVE_DOMAIN
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.update import Update, draw_negatives
from livefactor_server.judging import choice, metrics
from livefactor_server.judging.bounds import (
    BLOCK_EVENTS,
    BLOCKS_BEFORE_FIRST,
    FACTORS_CLAMPED,
    LOSS_ABOVE_WINDOW,
    LOSS_NOT_FINITE,
    NORMS_GROWING,
    Bounds,
)
from livefactor_server.judging.popularity import COUNTED_EVENTS, DECAYED, PLAIN, Popularity, joined
from livefactor_server.judging.windows import HALF_LIVES_KEPT, Window

# Few distinct scores make ties common.
FEW = st.integers(0, 4).map(float)


def softplus(x: float) -> float:
    return math.log(1.0 + math.exp(x))


# ------------------------------------------------------------------------------------------------
# Metrics.


@given(st.lists(st.tuples(FEW, st.booleans(), st.integers(1, 3)), max_size=12))
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[float, bool, int]]) -> None:
    pairs, right = 0.0, 0.0
    for (s, up, w), (t, other, v) in itertools.product(rows, rows):
        if up and not other:
            pairs += w * v
            right += w * v * (1.0 if s > t else 0.5 if s == t else 0.0)
    got = metrics.auc(
        *(np.array([row[at] for row in rows], kind) for at, kind in enumerate((float, bool, float)))
    )
    assert math.isnan(got) if not pairs else got == pytest.approx(right / pairs)


@given(st.lists(st.tuples(FEW, st.lists(FEW, min_size=5, max_size=5)), min_size=1, max_size=6))
def test_ranks_count_higher_scores_and_half_of_the_ties(rows: list[tuple[float, list[float]]]) -> None:
    own, others = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    got = metrics.ranks(own, others)
    for rank, (mine, theirs) in zip(got.tolist(), rows, strict=True):
        assert rank == sum(t > mine for t in theirs) + sum(t == mine for t in theirs) // 2
        assert metrics.recall_at(2, np.array([rank]))[0] == (rank < 2)
        assert metrics.ndcg_at(2, np.array([rank]))[0] == pytest.approx(
            1 / math.log2(rank + 2) if rank < 2 else 0
        )


@given(
    st.lists(
        st.tuples(FEW, st.booleans(), st.booleans(), FEW, FEW, st.integers(1, 3)), min_size=1, max_size=5
    )
)
def test_losses_are_the_objectives(rows: list[tuple[float, bool, bool, float, float, int]]) -> None:
    score, label, drawn, first, second, weight = (np.array(column) for column in zip(*rows, strict=True))
    negatives = np.column_stack((first, second))
    logistic = metrics.logistic_loss(score, label.astype(float), negatives, drawn, weight)
    bpr = metrics.bpr_loss(score, negatives, weight)
    squared = metrics.squared_loss(score, first, weight)
    for i, (s, up, took, a, b, w) in enumerate(rows):
        expected = softplus(-s) if up else softplus(s)
        expected += softplus(a) + softplus(b) if up and took else 0.0
        assert logistic[i] == pytest.approx(w * expected)
        assert bpr[i] == pytest.approx(w * (softplus(a - s) + softplus(b - s)))
        assert squared[i] == pytest.approx(w * (s - a) ** 2 / 2)


def test_figures_over_nothing_are_nan_and_nan_is_left_out() -> None:
    nothing = np.empty(0)
    assert math.isnan(metrics.mean(nothing, nothing)) and math.isnan(metrics.rmse(nothing, nothing))
    assert metrics.mean(np.array([1.0, np.nan, 4.0]), np.array([1.0, 5.0, 2.0])) == 3.0
    assert metrics.rmse(np.array([9.0, 1.0]), np.array([1.0, 0.0])) == 3.0


@given(st.integers(0, 30), st.floats(0.5, 20))
def test_an_event_weighs_half_after_a_half_life(count: int, half_life: float) -> None:
    weights = metrics.half_life_weights(count, half_life)
    assert weights.tolist() == pytest.approx([0.5 ** (age / half_life) for age in reversed(range(count))])


# ------------------------------------------------------------------------------------------------
# Windows.


@given(st.integers(1, 9), st.integers(1, 2), st.lists(st.integers(0, 25), max_size=8))
def test_a_window_keeps_the_last_rows_in_order(window: int, half_life: int, pushes: list[int]) -> None:
    made = Window(("a", "b"), window, half_life)
    everything: list[float] = []
    for size in pushes:
        rows = np.arange(len(everything), len(everything) + size, dtype=float)
        made.push(np.column_stack((rows, -rows)), rows.astype(np.uint32) % 3, rows % 2 == 0)
        everything += rows.tolist()
    columns, types, known = made.rows()
    kept = everything[-max(window, HALF_LIVES_KEPT * half_life) :]
    assert columns["a"].tolist() == kept and columns["b"].tolist() == [-x for x in kept]
    assert types.tolist() == [int(x) % 3 for x in kept]
    assert known.tolist() == [x % 2 == 0 for x in kept]
    assert made.pushed == len(everything)


# ------------------------------------------------------------------------------------------------
# Popularity.


@settings(max_examples=30)
@given(
    st.booleans(), st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=9), max_size=5)
)
def test_popularity_is_counts_or_means_with_weights_that_halve(
    means: bool, records: list[list[tuple[int, int]]]
) -> None:
    half_life, items = 3.0, 8
    made = Popularity(means, half_life)
    for record in records:
        rows, values = (
            np.array([event[at] for event in record], kind) for at, kind in ((0, "u4"), (1, "f4"))
        )
        made.count(rows, values)
    made.settle(items)
    events = [event for record in records for event in record]
    all_rows = np.arange(items, dtype=np.uint32)
    for which in (PLAIN, DECAYED):
        # The age counts back from the next event, so the last event has age 1.
        weights = [0.5 ** (age / half_life) if which else 1.0 for age in range(len(events), 0, -1)]
        sums, ones = np.zeros(items), np.zeros(items)
        for (row, value), weight in zip(events, weights, strict=True):
            sums[row] += weight * value
            ones[row] += weight
        if means:
            overall = sums.sum() / ones.sum() if events else 0.0
            expected = (sums + overall) / (ones + 1.0)
        else:
            expected = sums if which else sums / max(1, len(events))
            ranks = made.ranks(which, all_rows, items)
            for row in range(items):
                higher = np.count_nonzero(made.scores(which, all_rows) > made.scores(which, all_rows)[row])
                equal = (
                    np.count_nonzero(made.scores(which, all_rows) == made.scores(which, all_rows)[row]) - 1
                )
                assert ranks[row] == higher + equal // 2
        assert made.scores(which, all_rows) == pytest.approx(expected)


def test_popularity_counts_a_share_of_a_large_record() -> None:
    made = Popularity(False, 1e9)
    made.count(np.arange(8 * COUNTED_EVENTS, dtype=np.uint32) // 8 % 2, None)
    made.settle()
    assert made.scores(PLAIN, np.array([0, 1])).tolist() == [0.5, 0.5]


def test_decayed_counts_outlive_their_renormalisation() -> None:
    # The weight doubles with each event. Without renormalisation it would exceed float64's range.
    made = Popularity(False, 1.0)
    for _ in range(30):
        made.count(np.zeros(100, np.uint32), None)
    made.count(np.array([1], np.uint32), None)
    made.settle()
    assert made.scores(DECAYED, np.array([0, 1])) == pytest.approx([0.5, 0.5])


# ------------------------------------------------------------------------------------------------
# The choice of events.


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.integers(1, 64), st.integers(0, 2**64 - 7))
def test_events_are_chosen_by_revision_alone(sizes: list[int], most: int, first: int) -> None:
    revisions = np.array([first + place for place in range(len(sizes))], np.uint64)
    together = choice.choose(7, revisions, np.array(sizes), most)
    for place, size in enumerate(sizes):
        alone = choice.choose(7, revisions[place : place + 1], np.array([size]), most)
        mine = together.records == place
        assert together.events[mine].tolist() == alone.events.tolist()
        assert together.lots[mine].tolist() == alone.lots.tolist()
        count = min(size, most, max(8, size // 128))
        assert len(alone.events) == count
        strata = [(j * size // count, (j + 1) * size // count) for j in range(count)]
        assert all(low <= event < high for event, (low, high) in zip(alone.events, strata, strict=True))
    assert ((together.lots >= 0) & (together.lots < 1)).all()


def test_the_share_of_judged_records_is_kept() -> None:
    revisions = np.arange(1, 40_001, dtype=np.uint64)
    judged = choice.judged_records(3, 0.25, revisions)
    assert 0.23 < judged.mean() < 0.27
    assert (
        choice.judged_records(3, 1.0, revisions).all() and not choice.judged_records(3, 0.0, revisions).any()
    )
    assert (choice.judged_records(4, 0.25, revisions) != judged).any()


def test_small_records_are_judged_by_blocks_and_their_share_is_kept() -> None:
    revisions = np.arange(16, 16 + 160_000, dtype=np.uint64)
    judged = choice.judged_small_records(3, 0.25, revisions)
    blocks = judged.reshape(-1, choice.BLOCK_RECORDS)
    assert (blocks.all(axis=1) | ~blocks.any(axis=1)).all()
    assert 0.23 < judged.mean() < 0.27
    assert choice.judged_small_records(3, 1.0, revisions).all()
    assert not choice.judged_small_records(3, 0.0, revisions).any()
    alone = choice.judged_records(3, 0.25, revisions[:: choice.BLOCK_RECORDS])
    assert (alone != blocks[:, 0]).any()


@pytest.mark.parametrize("means", [False, True])
def test_small_records_that_are_counted_together_give_the_same_bits(means: bool) -> None:
    draw = np.random.default_rng(5)
    sizes = [*draw.integers(0, 9, 200), 9, 3000, 1, 8, 8]
    records = [
        (
            draw.integers(0, 50, size).astype(np.uint32),
            draw.random(size).astype(np.float32) if number % 40 < 30 else None,
        )
        for number, size in enumerate(sizes)
    ]
    found = list(joined(records))
    assert len(found) < len(records) / 5
    together, alone = (Popularity(means, 100.0) for _ in range(2))
    for rows, values in found:
        together.count(rows, values)
    for rows, values in records:
        alone.count(rows, values)
        # The counts of one call each.
        alone.settle(50)
    together.settle(50)
    every = np.arange(50, dtype=np.uint32)
    for which in (PLAIN, DECAYED):
        assert together.scores(which, every).tobytes() == alone.scores(which, every).tobytes()
    assert together.events == alone.events == sum(sizes)


def test_one_record_has_as_many_judged_events_as_among_others() -> None:
    sizes = np.array([0, 1, 7, 8, 9, 1023, 1024, 1153, 100_000])
    for most in (4, 64):
        counts = choice.counts_of(sizes, most).tolist()
        assert counts == [choice.count_of(size, most) for size in sizes.tolist()]


def test_the_negatives_are_those_that_the_model_learns_from() -> None:
    spec = ModelSpec(k=8, negatives=3, seed=11)
    rows = np.arange(40, dtype=np.uint32) % 7
    update = Update(9, rows, rows, None, None, 7, 7)
    events = np.array([0, 5, 39])
    drawn = choice.draw(
        11, NEGATIVE_DOMAIN, np.full(3, 9, np.uint64), events, rows[events], np.full(3, 7, np.uint64), 3
    )
    assert (drawn == draw_negatives(spec, update)[events]).all()


# ------------------------------------------------------------------------------------------------
# Bounds.


def block(bounds: Bounds, loss: float, factor: float) -> list[str]:
    rows = np.full((BLOCK_EVENTS, 4), factor, np.float32)
    ended, alarms = bounds.push(np.full(BLOCK_EVENTS, loss), (rows, rows))
    assert ended
    return [alarm.kind for alarm in alarms]


@pytest.mark.parametrize(
    ("loss", "factor", "kind"),
    [
        (4.5, 0.5, LOSS_ABOVE_WINDOW),
        (np.inf, 0.5, LOSS_NOT_FINITE),
        (1.0, 1.6, NORMS_GROWING),
        (1.0, 10.0, FACTORS_CLAMPED),
    ],
)
def test_a_divergence_is_reported_once(loss: float, factor: float, kind: str) -> None:
    bounds = Bounds(10.0, 4)
    for _ in range(BLOCKS_BEFORE_FIRST):
        assert block(bounds, 1.0, 0.5) == []
        assert not bounds.passed
    assert kind in block(bounds, loss, factor)
    assert bounds.passed
    assert kind not in block(bounds, loss, factor)
    block(bounds, 1.0, 0.5)
    assert block(bounds, 1.0, 0.5) == [] and not bounds.passed


def test_a_new_model_may_change_fast_and_a_restart_resets_the_bounds() -> None:
    bounds = Bounds(10.0, 4)
    for place in range(BLOCKS_BEFORE_FIRST):
        assert block(bounds, 10.0**-place, 0.001 * 2**place) == []
    bounds.restart()
    assert block(bounds, 100.0, 9.0) == []
