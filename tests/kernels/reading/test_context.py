"""Context: the CPU kernels against the reference, bit by bit, and the reference against algebra."""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_kernels.backend import Backend
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reading.context import GRAM, KEYS, PRIOR_EVENTS, SUMS, learning
from livefactor_kernels.reading.context.learning import factors_of, strengths_of
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.solve.prior import RIDGE
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import Context, FactorDtype, Loss, ModelSpec, SpecError
from livefactor_kernels.tables import ITEMS
from specs import softmax_spec, solve_spec
from synthetic import assert_same, differences, make_spec, push, restore

CONTEXT = Context(12)
SPECS = {
    "solve": solve_spec(context=CONTEXT),
    "softmax": softmax_spec(context=CONTEXT),
    "sgd": make_spec(Loss.BPR, negatives=2, context=CONTEXT, factor_dtype=FactorDtype.BFLOAT16),
}


def bags_of(bags: list[dict[int, float]]) -> Bags:
    keys = np.array([key for bag in bags for key in bag], np.uint64)
    weights = np.array([weight for bag in bags for weight in bag.values()], np.float32)
    return Bags(np.cumsum([len(bag) for bag in bags]), keys, weights)


def learn(model: Backend, rng: np.random.Generator, turn: int) -> None:
    """Learn a record whose events have up to 3 of the features of the turn."""
    users, items = rng.integers(0, 15, 24), rng.integers(0, 20, 24)
    push(model, users, items)
    bags = []
    for _ in range(24):
        keys = rng.choice(9, int(rng.integers(0, 4)), replace=False) + 3 * turn
        bags.append({int(key): float(rng.normal()) for key in keys})
    model.learn_context(model.items.find(items.astype(np.uint64), model.published[ITEMS]), bags_of(bags))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_kernels_and_reference_agree_to_the_bit(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 places fill up, features are forgotten, and a restored model goes on alike."""
    monkeypatch.setattr(learning, "HALVED_EVENTS", 40.0)
    fast, judge, again = CpuModel(spec), ReferenceModel(spec), CpuModel(spec)
    rngs = [np.random.default_rng(4) for _ in range(2)]
    seen = set()
    for turn in range(8):
        for model, rng in zip((fast, judge), rngs, strict=True):
            learn(model, rng, turn)
        assert_same(fast, judge)
        seen |= set(fast.state()[KEYS].tolist())
        assert len(fast.state()[KEYS]) <= 12
    assert len(seen) > 12
    restore(again, fast, 8 * 24)
    for model, rng in zip((again, judge), (rngs[0], rngs[1]), strict=True):
        learn(model, rng, 8)
    assert_same(again, judge)


def test_rows_are_the_ridge_regression_of_the_features_on_the_items() -> None:
    model = ReferenceModel(check(SPECS["solve"]))
    rng = np.random.default_rng(1)
    push(model, rng.integers(0, 15, 60), np.arange(60) % 12)
    rows = (np.arange(60) % 12).astype(np.uint32)
    bags = [{7: 2.0} if row % 3 == 0 else {8: 1.0} if row % 3 == 1 else {} for row in rows.tolist()]
    model.learn_context(rows, bags_of(bags))
    told = [at for at, bag in enumerate(bags) if bag]
    e = np.hstack([model.gather(ITEMS, rows)[0][told, :20].astype(np.float64), np.ones((len(told), 1))])
    w = np.array([[bags[at].get(7, 0.0), bags[at].get(8, 0.0)] for at in told])
    a = e.T @ e
    a[np.arange(20), np.arange(20)] += RIDGE * np.trace(a[:20, :20]) / len(told)
    expected = len(told) / (np.abs(w).sum(axis=0) + PRIOR_EVENTS) * np.linalg.solve(a, e.T @ w)[:20]
    asked = bags_of([{7: 3.0, 8: -1.0, 99: 5.0}, {99: 1.0}, {}])
    found = factors_of(model.context(asked.keys), asked)
    np.testing.assert_allclose(found[0], 3.0 * expected[:, 0] - expected[:, 1], rtol=1e-5, atol=1e-6)
    assert not found[1:].any()


def test_context_without_events_says_nothing() -> None:
    model = CpuModel(check(SPECS["solve"]))
    asked = bags_of([{1: 1.0}])
    assert not factors_of(model.context(asked.keys), asked).any()
    push(model, [1], [1])
    before = model.state()[GRAM].copy()
    model.learn_context(np.array([0], np.uint32), bags_of([{}]))
    assert not model.state()[SUMS].size
    np.testing.assert_array_equal(model.state()[GRAM], before)
    again = ReferenceModel(model.spec)
    restore(again, model, 1)
    assert not differences(again, model)


def test_squared_loss_and_cuda_have_no_context() -> None:
    with pytest.raises(SpecError, match="loss: expected another one than squared with context"):
        make_spec(Loss.SQUARED, context=CONTEXT)
    with pytest.raises(SpecError, match=r"context\.size: expected 0\.\.1048576"):
        make_spec(Loss.BPR, negatives=1, context=Context(1 << 21))
    with pytest.raises(SpecError, match=r"context\.size: expected 0 on backend cuda"):
        check_cuda(make_spec(Loss.BPR, negatives=1, context=CONTEXT))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_dropped_features_are_forgotten_until_an_event_has_them(spec: ModelSpec) -> None:
    fast, judge = CpuModel(spec), ReferenceModel(spec)
    asked = bags_of([{3: 1.0}, {4: 1.0}])
    for model in (fast, judge):
        learn(model, np.random.default_rng(4), 0)
        rows = np.arange(4, dtype=np.uint32)
        assert not model.learn_context(rows, bags_of([{3: 1.0}, {4: 1.0}, {3: 1.0}, {}])).placed.size
        before, kept = model.state()[KEYS].tolist(), factors_of(model.context(asked.keys), asked)[1]
        model.drop_context(np.array([3, 77, 3], np.uint64), 9)
        assert model.revision == 9 and model.state()[KEYS].tolist() == [key for key in before if key != 3]
        found = factors_of(model.context(asked.keys), asked)
        assert not found[0].any() and found[1].tobytes() == kept.tobytes() and kept.any()
        moves = model.learn_context(rows[:1], bags_of([{3: 2.0}]))
        assert moves.placed.tolist() == [3] and not moves.forgotten.size
        assert model.state()[KEYS].tolist()[-1] == 3 and factors_of(model.context(asked.keys), asked)[0].any()
    assert_same(fast, judge)


def test_a_record_tells_which_features_get_and_lose_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature 1 occurred once before the halving, and feature 2 twice. There are 12 places."""
    monkeypatch.setattr(learning, "HALVED_EVENTS", 3.0)
    model = CpuModel(check(SPECS["solve"]))
    push(model, np.arange(20), np.arange(20))
    rows = np.arange(3, dtype=np.uint32)
    moves = model.learn_context(rows, bags_of([{1: 0.9}, {2: 1.0}, {2: 1.0}]))
    assert moves.placed.tolist() == [1, 2] and not moves.forgotten.size
    many = dict.fromkeys(range(10, 30), 1.0)
    moves = model.learn_context(rows[:2], bags_of([{1: 1.0}, many]))
    assert moves.forgotten.tolist() == [1]
    assert moves.placed.tolist() == [1, *range(10, 20)]
    assert model.state()[KEYS].tolist() == [2, 1, *range(10, 20)]


def test_the_strength_tells_features_of_some_items_from_chance() -> None:
    """Feature 1 is that of a kind of items. Feature 2 comes by chance, and feature 0 always."""
    model = CpuModel(check(SPECS["solve"]))
    rng = np.random.default_rng(3)
    strengths = []
    # Users take items of one of five kinds, so the items' rows tell the kinds.
    users, items = np.repeat(np.arange(15), 4), np.tile(np.arange(4), 15)
    push(model, users, 5 * items + users % 5)
    for _ in range(4):
        items = rng.integers(0, 20, 500)
        bags = [{0: 1.0} | ({1: 1.0} if item % 5 == 0 else {}) for item in items.tolist()]
        bags = [bag | ({2: 1.0} if rng.random() < 0.2 else {}) for bag in bags]
        rows = model.items.find(items.astype(np.uint64), model.published[ITEMS])
        model.learn_context(rows, bags_of(bags))
        strengths.append(strengths_of(model.context(np.arange(3, dtype=np.uint64))))
    every, some, chance = np.array(strengths).T
    assert every.max() < 1e-3 and chance.min() > 0.1 and chance.max() < 2.0
    assert (some > 2 * chance).all() and (np.diff(some) > 0).all()
    assert not strengths_of(model.context(np.array([9], np.uint64))).any()
    assert not strengths_of(CpuModel(model.spec).context(np.arange(3, dtype=np.uint64))).any()
