"""Progressive validation: the definition of a hit, no prediction from the event itself, and presets
that learn.
"""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

# The benchmarks are not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from benchmarks.progressive.data import Stream, read_purchases, read_ratings
from benchmarks.progressive.recall import model_hits, own_first_hits, popular_hits
from benchmarks.progressive.rmse import float64_errors, model_errors, rmse
from benchmarks.progressive.suite import measure, table

from livefactor_kernels.backend import Update
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import FactorDtype, ModelSpec
from livefactor_kernels.spec.presets import preset

USERS, ITEMS = 60, 40
SMALL = {"users_max": 500, "items_max": 500}


def small(name: str, **changes: object) -> ModelSpec:
    spec = preset(name, **changes)
    return check(replace(spec, limits=replace(spec.limits, **SMALL)))


def stream(users, items, values=None) -> Stream:
    users, items = np.asarray(users, np.uint64), np.asarray(items, np.uint64)
    return Stream(users, items, np.asarray(np.ones(users.size) if values is None else values, np.float32))


def random_stream(events: int, seed: int) -> Stream:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, USERS, events), rng.integers(1000, 1000 + ITEMS, events)
    return stream(users, items, rng.integers(1, 6, events))


# ---------------------------------------------------------------- ratings


def reference_errors(spec: ModelSpec, events: Stream, record_events: int) -> np.ndarray:
    """The protocol, slowly: predict a record with the known rows, then allocate its rows, then
    learn it.
    """
    model, predictions = ReferenceModel(spec), []
    for revision, start in enumerate(range(0, len(events), record_events), 1):
        part = slice(start, start + record_events)
        users, items = model.published
        for user, item in zip(events.user_keys[part], events.item_keys[part], strict=True):
            row, column = model.users.find([user], users)[0], model.items.find([item], items)[0]
            prediction = float(model.mean)
            if row < users:
                prediction += float(model.users.bias[row])
            if column < items:
                prediction += float(model.items.bias[column])
            if row < users and column < items:
                prediction += float(model.users.factors[row] @ model.items.factors[column])
            predictions.append(prediction)
        rows = model.users.allocate(events.user_keys[part]), model.items.allocate(events.item_keys[part])
        counts = model.users.allocated, model.items.allocated
        model.apply(Update(revision, *rows, events.values[part], None, *counts))
    return np.array(predictions) - events.values


@pytest.mark.parametrize(("micro_batch", "record_events"), [(1, 1), (1, 7), (16, 50)])
def test_each_rating_is_predicted_from_what_came_before_its_record(micro_batch, record_events):
    spec, events = small("ratings_sgd", k=8, micro_batch=micro_batch), random_stream(300, 1)
    errors = model_errors(spec, events, record_events)
    np.testing.assert_allclose(errors, reference_errors(spec, events, record_events), atol=1e-5)


def test_a_later_rating_changes_no_earlier_error():
    events = random_stream(200, 2)
    changed = replace(events, values=np.where(np.arange(200) < 120, events.values, 5).astype(np.float32))
    assert (changed.values != events.values).any()
    for errors_of in (model_errors, float64_errors):
        before, after = errors_of(small("ratings_sgd"), events), errors_of(small("ratings_sgd"), changed)
        np.testing.assert_array_equal((before + events.values)[:121], (after + changed.values)[:121])
        assert (before + events.values)[121:].tolist() != (after + changed.values)[121:].tolist()


def test_the_model_is_as_good_as_float64():
    spec, events = small("ratings_sgd"), random_stream(3000, 3)
    same = float64_errors(spec, events, spec.limits.error_max)
    np.testing.assert_allclose(model_errors(spec, events), same, atol=1e-4)
    # Some errors exceed the limit of the spec.
    assert rmse(float64_errors(spec, events)) != rmse(same)
    with pytest.raises(ValueError, match="squared loss"):
        float64_errors(small("clicks_sgd"), events)


@pytest.mark.parametrize("dtype", [FactorDtype.FLOAT16, FactorDtype.BFLOAT16])
def test_narrow_factors_predict_as_well_as_wide_ones(dtype):
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, USERS, 20_000), rng.integers(0, ITEMS, 20_000)
    taste = rng.normal(size=(USERS, 3)) @ rng.normal(size=(3, ITEMS))
    events = stream(users, items, np.clip(np.rint(3 + taste[users, items]), 1, 5))
    wide = model_errors(small("ratings_sgd"), events)
    narrow = model_errors(small("ratings_sgd", factor_dtype=dtype), events)
    assert (wide != narrow).mean() > 0.9
    assert rmse(narrow) == pytest.approx(rmse(wide), rel=0.005)


def test_ratings_learn_taste_and_stay_finite_on_any_scale():
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, USERS, 20_000), rng.integers(0, ITEMS, 20_000)
    taste = rng.normal(size=(USERS, 3)) @ rng.normal(size=(3, ITEMS))
    stars = np.clip(np.rint(3 + taste[users, items]), 1, 5)
    last = model_errors(small("ratings_sgd"), stream(users, items, stars))[15_000:]
    assert rmse(last) < 0.6 * stars.std()
    for scale in (20, 200):
        errors = model_errors(small("ratings_sgd"), stream(users, items, stars * scale))[15_000:]
        assert rmse(errors) < 1.5 * stars.std() * scale


# ---------------------------------------------------------------- purchases


def test_popular_counts_decay_and_ties_go_to_the_lower_key():
    items = [50] * 12 + [*range(1, 11)] * 2 + [50, 20, 1, 10]
    alike = popular_hits(stream(range(len(items)), items), np.inf, 4)
    # The order is 50, then 1 to 9. So ten items are before item 10.
    assert alike[-4:].tolist() == [True, False, True, False]
    faded = popular_hits(stream(range(len(items)), items), 1.0, 4)
    assert faded[-4:].tolist() == [False, False, True, True]
    # No item is known yet.
    assert not alike[:4].any()


def test_a_user_s_own_items_come_first():
    items = [7] * 3 + [*range(20, 40)] * 4 + [7, 7]
    users = [1] * 3 + [2] * 80 + [1, 3]
    # Cut before the last two events: both customers are asked about item 7; 20 others are more
    # popular.
    assert not popular_hits(stream(users, items), np.inf, 83)[-2:].any()
    assert own_first_hits(stream(users, items), np.inf, 83)[-2:].tolist() == [True, False]


def test_nothing_of_a_batch_counts_for_the_batch():
    """60 items with one customer each. All are new, so there is no hit. When they come again, there
    are hits.
    """
    spec = small("purchases_sgd")
    events = stream(range(60), range(60))
    assert not model_hits(spec, events, 60).any() and not model_hits(spec, events, 1).any()
    twice = stream([*range(60)] * 20, [*range(60)] * 20)
    hits = model_hits(spec, twice, 60)
    assert not hits[:60].any() and hits[-60:].mean() > 0.9
    np.testing.assert_array_equal(model_hits(spec, twice.head(1170), 60), hits[:1170])


def test_an_unknown_user_has_the_list_of_the_item_biases():
    rng = np.random.default_rng(5)
    popular, rare = rng.integers(0, 10, 5000), rng.integers(10, 40, 1000)
    items = rng.permutation(np.concatenate([popular, rare]))
    events = stream([*rng.integers(0, 50, items.size), *range(1000, 1020)], [*items, *range(20)])
    hits = model_hits(small("purchases_sgd"), events, items.size // 60)
    # The last batch holds the 20 new customers, with the 10 popular items and 10 others.
    assert hits[-20:-10].sum() >= 9 and hits[-10:].sum() <= 1


@pytest.mark.parametrize("name", ["purchases_sgd", "clicks_sgd"])
def test_presets_find_groups_where_popularity_cannot(name):
    rng = np.random.default_rng(6)
    users = rng.integers(0, 200, 30_000)
    events = stream(users, (users % 8) * 20 + rng.integers(0, 20, users.size))
    found, popular = model_hits(small(name), events)[-10_000:].mean(), popular_hits(events)[-10_000:].mean()
    # By chance 10 of 160 items hit, and 10 of the 20 in the group.
    assert popular < 0.1 and found > 0.35


def test_presets_beat_decayed_popularity_on_the_shipped_purchases():
    events = read_purchases().head(100_000)
    popular = popular_hits(events).mean()
    assert model_hits(preset("purchases_sgd"), events).mean() > 1.3 * popular
    assert model_hits(preset("clicks_sgd"), events).mean() > 1.2 * popular


# ---------------------------------------------------------------- files


def test_ratings_are_read_in_time_order_without_the_untimed(tmp_path):
    path = tmp_path / "ratings.csv.gz"
    lines = ["user,item,rating,timestamp", "9,1,5,300", "8,2,4,0", "7,3,3,200", "6,4,2,200", "5,5,1,100"]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    events = read_ratings(path)
    assert events.user_keys.tolist() == [5, 7, 6, 9]
    assert events.item_keys.tolist() == [5, 3, 4, 1]
    assert events.values.tolist() == [1, 3, 2, 5]


def test_purchases_are_the_whole_year():
    events = read_purchases()
    assert len(events) == 397_924
    assert (np.unique(events.user_keys).size, np.unique(events.item_keys).size) == (4339, 3665)


def test_a_missing_data_set_is_reported_as_missing(tmp_path):
    figures = measure(None, tmp_path / "none.csv.gz")
    assert figures and set(figures.values()) == {None}
    assert table(figures).count("missing") == len(figures)
