"""Features: the CPU kernels against the reference, bit by bit, and the reference
against algebra.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.solve.features.reference import ReferenceArithmetic
from livefactor_kernels.solve.prior import RIDGE, rows
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import (
    AdaptiveRate,
    Counts,
    Embeddings,
    FactorDtype,
    Features,
    History,
    Loss,
    Merge,
    Mix,
    ModelSpec,
    OptimizerKind,
    Replay,
    Rule,
    Solve,
    SpecError,
)
from livefactor_kernels.tables import ITEMS, USERS
from specs import softmax_spec, solve_spec
from synthetic import assert_same, make_spec, push, restore

FEATURES, FOLLOWS, PER_ID, KEYS = Features(64, 4), Features(64, 4, 2.0), 4, 30
EVENTS = Embeddings(0, 2.0)
SPECS = {
    "plain": solve_spec(features=FEATURES, embeddings=EVENTS),
    "B1": solve_spec(micro_batch=1, counts=Counts(), features=FEATURES, embeddings=EVENTS),
    "mix": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), solve=Solve(0.0, 3, 2, 10.0), mix=Mix(0.05),
        features=FEATURES, embeddings=EVENTS,
    ),
    "both": solve_spec(features=FEATURES, embeddings=Embeddings(5, 2.0)),
    "replay": solve_spec(micro_batch=8, replay=Replay(24, 0.75), features=FEATURES, embeddings=EVENTS),
    "follows": solve_spec(features=FOLLOWS),
    "follows-mix": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), solve=Solve(0.0, 3, 2, 10.0), mix=Mix(0.05),
        features=FOLLOWS, embeddings=Embeddings(5, 2.0),
    ),
}  # fmt: skip
TOLD = {"history": History(16), "features": FEATURES, "embeddings": EVENTS}
STEPS = {
    "squared": make_spec(Loss.SQUARED, micro_batch=4, **TOLD),
    "logistic": make_spec(Loss.LOGISTIC, negatives=3, **TOLD),
    "bpr": make_spec(Loss.BPR, OptimizerKind.ADAGRAD, negatives=2, micro_batch=4, **TOLD),
    "adam": make_spec(
        Loss.LOGISTIC, OptimizerKind.LAZY_ADAM, negatives=1, replay=Replay(24, 0.75),
        **TOLD | {"features": FOLLOWS},
    ),
    "softmax": softmax_spec(**TOLD),
}  # fmt: skip
"""Specs with gradient steps."""
SPECS |= STEPS
EACH = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "REFRESH_MIN", 4)
    monkeypatch.setattr(rows, "SWEEP_ROWS", 5)


def tell(model: Backend, side: int, ids: object, bags: list[dict[int, float]]) -> None:
    """Allocate the ids and set their bags as the next record."""
    table = (model.users, model.items)[side]
    found = table.allocate(np.asarray(ids, np.uint64))
    ends = np.cumsum([len(bag) for bag in bags])
    keys = np.array([key for bag in bags for key in bag], np.uint64)
    weights = np.array([weight for bag in bags for weight in bag.values()], np.float32)
    model.set_features(side, found, Bags(ends, keys, weights), model.revision + 1, table.allocated)


def drop(model: Backend, side: int, keys: list[int]) -> None:
    """Drop features as the next record."""
    model.drop_features(side, np.array(keys, np.uint64), model.revision + 1)


def drawn_bag(rng: np.random.Generator) -> dict[int, float]:
    keys = rng.choice(20, int(rng.integers(0, PER_ID + 1)), replace=False)
    return {int(key) + 1000: float(rng.normal()) for key in keys}


def step(model: Backend, rng: np.random.Generator, turn: int) -> None:
    """Learn one record: events, bags of a side with repeated ids and empty bags, or vectors."""
    if turn % 5 == 4 and model.spec.embeddings.dimension:
        found = model.items.allocate(rng.integers(0, KEYS, 4).astype(np.uint64))
        vectors = rng.normal(size=(4, 5)) * (rng.random((4, 1)) < 0.8)
        model.set_embeddings(
            ITEMS, found, vectors.astype(np.float16), model.revision + 1, model.items.allocated
        )
        return
    if turn in (8, 13):
        drop(model, turn % 2, [1003, 1007, 1011, 5, 1007])
        return
    if turn % 3 == 0:
        side = ITEMS if turn % 2 else USERS
        ids = rng.integers(0, KEYS if side == ITEMS else 14, 7)
        tell(model, side, ids, [drawn_bag(rng) for _ in range(7)])
        return
    events = int(rng.integers(1, 40))
    items = np.where(rng.random(events) < 0.3, 3, rng.integers(0, 6 + turn, events))
    push(model, rng.integers(0, 9, events), items, rng.integers(0, 2, events), rng.random(events) + 0.1)


def learn(model: Backend, turns: range, seed: int = 4) -> None:
    for turn in turns:
        step(model, np.random.default_rng((seed, turn)), turn)


@EACH
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_kernels_have_the_bits_of_the_reference(spec: ModelSpec, seed: int) -> None:
    fast, judge = CpuModel(spec), ReferenceModel(spec)
    for turn in range(20):
        learn(fast, range(turn, turn + 1), seed)
        learn(judge, range(turn, turn + 1), seed)
        assert_same(fast, judge)
    state = fast.state()
    for side, name in ((USERS, "user"), (ITEMS, "item")):
        width = spec.k + (spec.rule != Rule.SOLVE)
        assert state[f"features.{name}.rows"][width:].any() and state[f"features.{name}.progress"][2] > 2
        bagged = fast.sections(side, fast.published[side])["bagged"]
        assert set(bagged.tolist()) == {0, 1, 2}


@EACH
def test_a_restored_model_goes_on_to_the_same_bits(spec: ModelSpec) -> None:
    first, judge = CpuModel(spec), ReferenceModel(spec)
    learn(first, range(11))
    learn(judge, range(11))
    events = int(judge.users.seen_count.sum())
    restored = CpuModel(spec)
    restore(restored, first, events)
    learn(first, range(11, 18))
    learn(restored, range(11, 18))
    assert_same(first, restored)


@pytest.mark.parametrize("name", ["plain", "mix", "follows", "follows-mix", "bpr", "softmax"])
def test_a_pin_keeps_what_features_said(name: str) -> None:
    model = CpuModel(SPECS[name])
    learn(model, range(10))
    with model.pin() as pin:
        counts = model.published
        before = {side: model.sections(side, counts[side]) for side in (USERS, ITEMS)}
        before = {side: {key: array.copy() for key, array in each.items()} for side, each in before.items()}
        learn(model, range(10, 20))
        for side in (USERS, ITEMS):
            found = pin.read_rows(side, 0, counts[side])
            assert found.keys() == before[side].keys()
            for key, array in found.items():
                assert array.tobytes() == before[side][key].tobytes(), (side, key)


def test_the_fit_approaches_ridge_regression() -> None:
    rng = np.random.default_rng(3)
    n, features, k = 40, 6, 3
    bags = np.zeros((n, 3), np.uint32)
    weights = np.zeros((n, 3), np.float32)
    x = np.zeros((n, features + 1))
    x[:, 0] = 1.0
    for i in range(n):
        for place, feature in enumerate(rng.choice(features, int(rng.integers(0, 4)), replace=False)):
            bags[i, place], weights[i, place] = feature + 1, rng.normal()
            x[i, feature + 1] = weights[i, place]
    targets, found = rng.normal(size=(n, k)), np.zeros((features + 1, k), np.float32)
    for _ in range(60):
        ReferenceArithmetic().fit(bags, weights, targets, found)
    ridge = RIDGE * (weights.astype(float) ** 2).sum() / n
    penalty = np.diag([0.0] + [ridge] * features)
    expected = np.linalg.solve(x.T @ x + penalty, x.T @ targets)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(ReferenceArithmetic().summed(bags, weights, found), x @ found, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "mix"])
def test_features_rank_for_cold_items_and_cold_users(name: str) -> None:
    """Two kinds of users and of items, which the features name."""
    spec = replace(SPECS[name], embeddings=Embeddings(0, 4.0))
    model, rng = create_backend("cpu", spec), np.random.default_rng(5)
    kind = {0: {1: 1.0}, 1: {2: 1.0}}
    tell(model, ITEMS, range(32), [kind[i % 2] for i in range(32)])
    tell(model, USERS, range(42), [kind[u % 2] for u in range(42)])
    for _ in range(30):
        users = rng.integers(0, 40, 60)
        items = 2 * rng.integers(0, 14, 60) + users % 2
        push(model, users, items, None)
    reader, rows = PersonReader(spec), np.array([40, 41, 0, 1], np.uint32)
    with model.pin() as pin:
        read = reader.read(pin, rows, pin.counts[ITEMS])
        factors, _ = pin.gather(ITEMS, np.arange(28, 32, dtype=np.uint32))
    scores = read.factors @ factors.T
    for user, line in enumerate(scores):
        assert line[user % 2 :: 2].min() > line[1 - user % 2 :: 2].max()
    # A bag that is taken away leaves nothing behind.
    tell(model, ITEMS, [30], [{}])
    assert not model.gather(ITEMS, np.array([30], np.uint32))[0].any()


@pytest.mark.parametrize("name", ["logistic", "bpr", "softmax"])
def test_cold_rows_begin_with_the_factors_and_the_bias_of_their_features(name: str) -> None:
    """Two kinds of users and of items, of which one is taken more often."""
    spec = replace(STEPS[name], embeddings=Embeddings(0, 4.0), l2=0.001)
    models: list[CpuModel | ReferenceModel] = [CpuModel(spec), ReferenceModel(spec)]
    for model in models:
        rng = np.random.default_rng(5)
        kind = {0: {1: 1.0}, 1: {2: 1.0}}
        tell(model, ITEMS, range(32), [kind[i % 2] for i in range(32)])
        tell(model, USERS, range(42), [kind[u % 2] for u in range(42)])
        for _ in range(40):
            users = np.where(rng.random(60) < 0.7, 0, 1) + 2 * rng.integers(0, 20, 60)
            push(model, users, 2 * rng.integers(0, 14, 60) + users % 2, None)
        tell(model, ITEMS, range(28, 32), [kind[i % 2] for i in range(28, 32)])
        users_factors, _ = model.gather(USERS, np.array([40, 41], np.uint32))
        factors, bias = model.gather(ITEMS, np.arange(28, 32, dtype=np.uint32))
        for user, line in enumerate(users_factors @ factors.T):
            assert line[user % 2 :: 2].min() > line[1 - user % 2 :: 2].max()
        assert bias[0] == bias[2] != bias[1] == bias[3]
        # The first event begins there.
        before = model.gather(ITEMS, np.array([28], np.uint32))
        push(model, [0], [28], None)
        after = model.gather(ITEMS, np.array([28], np.uint32))
        assert 0 < np.abs(after[0] - before[0]).max() < np.abs(before[0]).max()
    assert_same(*models)


@pytest.mark.parametrize("name", ["follows", "follows-mix"])
def test_a_bag_that_comes_after_events_moves_scores_at_once(name: str) -> None:
    """A user and an item with some events of one kind get the bag of the other kind."""
    spec = replace(SPECS[name], features=Features(64, 4, 8.0))
    models: list[Backend] = [CpuModel(spec), ReferenceModel(spec)]
    found = []
    for model in models:
        rng = np.random.default_rng(5)
        tell(model, ITEMS, range(24), [{1 + i % 2: 1.0} for i in range(24)])
        tell(model, USERS, range(20), [{1 + u % 2: 1.0} for u in range(20)])
        for _ in range(12):
            users = rng.integers(0, 20, 30)
            push(model, users, 2 * rng.integers(0, 12, 30) + users % 2, None)
        push(model, [20, 20, 0], [0, 2, 24], None)
        for side, owner in ((USERS, 20), (ITEMS, 24)):
            before = _other_kind(model, side)
            tell(model, side, [owner], [{1: 1.0}])
            same = _other_kind(model, side)
            tell(model, side, [owner], [{2: 1.0}])
            found.append((same - before, _other_kind(model, side) - same))
            # Nothing moves if the bag stays what it is.
            last = _other_kind(model, side)
            tell(model, side, [owner], [{2: 1.0}])
            assert _other_kind(model, side) == pytest.approx(last, abs=1e-3)
    for told, changed in found:
        assert changed > 0.02 and changed > abs(told) / 2
    assert found[:2] == found[2:]
    assert_same(*models)


def _other_kind(model: Backend, side: int) -> float:
    """By how much user 20 prefers odd items, or how much more odd users like item 24."""
    reader = PersonReader(model.spec)
    users = np.array([20] if side == USERS else [*range(20)], np.uint32)
    with model.pin() as pin:
        read = reader.read(pin, users, pin.counts[ITEMS])
        items, _ = pin.gather(ITEMS, np.arange(25, dtype=np.uint32))
    scores = read.factors @ items.T
    if side == USERS:
        return float(scores[0, 1:24:2].mean() - scores[0, 0:24:2].mean())
    return float(scores[1::2, 24].mean() - scores[::2, 24].mean())


def test_a_feature_keeps_its_number_and_the_last_bag_of_a_record_counts() -> None:
    model = create_backend("cpu", SPECS["plain"])
    tell(model, ITEMS, [7, 8, 7], [{50: 1.0, 40: 2.0}, {}, {40: 0.5, 60: -1.0}])
    sections = model.sections(ITEMS, 2)
    assert sections["bag"].tolist() == [[2, 3, 0, 0], [0, 0, 0, 0]]
    assert sections["bag_weights"][0].tolist() == [0.5, -1.0, 0, 0]
    assert model.state()["features.item.keys"].tolist() == [50, 40, 60]
    assert not model.state()["features.user.keys"].size


def test_dropped_features_leave_bags_and_free_their_numbers() -> None:
    model = create_backend("cpu", SPECS["plain"])
    tell(model, ITEMS, [7, 8, 9], [{50: 1.0, 40: 2.0, 60: 3.0}, {40: 4.0}, {60: 5.0}])
    tell(model, USERS, [7], [{40: 1.0}])
    model.drop_features(ITEMS, np.array([40, 99], np.uint64), model.revision + 1)
    sections, state = model.sections(ITEMS, 3), model.state()
    assert sections["bag"].tolist() == [[1, 2, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]]
    assert sections["bag_weights"][:, :2].tolist() == [[1, 3], [0, 0], [5, 0]]
    assert sections["bagged"].tolist() == [1, 0, 1]
    assert state["features.item.keys"].tolist() == [50, 60]
    assert len(state["features.item.rows"]) == 3 * model.spec.k
    assert state["features.user.keys"].tolist() == [40]


def test_specs_without_a_place_for_features_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"features\.size: expected 0\.\.1048576, got -1"):
        solve_spec(features=Features(-1))
    with pytest.raises(SpecError, match=r"features\.per_id: expected 1\.\.64, got 65"):
        solve_spec(features=Features(8, 65))
    with pytest.raises(SpecError, match="loss: expected implicit"):
        solve_spec(Loss.SQUARED, features=Features(8))
    with pytest.raises(SpecError, match=r"features\.size.*backend cuda"):
        check_cuda(check(SPECS["plain"]))
    with pytest.raises(SpecError, match=r"history\.users: expected above 0 with features"):
        make_spec(Loss.LOGISTIC, features=Features(8))
    for name, changes in {
        r"optimizer\.kind.*ftrl": {"kind": OptimizerKind.FTRL},
        "factor_dtype": {"factor_dtype": FactorDtype.FLOAT16},
        r"adaptive_rate\.window": {"adaptive_rate": AdaptiveRate(256)},
        r"merge\.learning_rate": {"merge": Merge(1.0, 1.0)},
    }.items():
        with pytest.raises(SpecError, match=name):
            make_spec(Loss.LOGISTIC, negatives=1, **TOLD | changes)
