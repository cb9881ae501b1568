"""The reference against hand-written SGD in float64, and against small examples of the rules."""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_kernels.numbers.sums import chunked_sum
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.spec.model import Limits, Loss, ModelSpec, Optimizer, OptimizerKind
from synthetic import make_spec, push

F = np.float32


def plain(model: ReferenceModel) -> list[np.ndarray]:
    tables = (model.users, model.items)
    return [t.factors.astype(np.float64) for t in tables] + [t.bias.astype(np.float64) for t in tables]


def test_squared_loss_is_sequential_sgd() -> None:
    spec = ModelSpec(
        k=5, loss=Loss.SQUARED, optimizer=Optimizer(OptimizerKind.SGD, 0.1, 0.05), l2=0.02, bias_l2=0.01
    )
    model = ReferenceModel(spec)
    rng = np.random.default_rng(1)
    users, items, values = rng.integers(0, 6, 200), rng.integers(0, 5, 200), rng.normal(3, 1, 200).astype(F)
    weights = rng.random(200).astype(F) + F(0.5)
    user_rows, item_rows = (
        model.users.allocate(users.astype(np.uint64)),
        model.items.allocate(items.astype(np.uint64)),
    )
    x, y, bu, bi = plain(model)
    for t, (u, i) in enumerate(zip(user_rows, item_rows, strict=True)):
        mean = values[:t].mean(dtype=np.float64) if t else 0.0
        e = weights[t] * (mean + bu[u] + bi[i] + x[u] @ y[i] - values[t])
        x[u], y[i] = x[u] - 0.1 * (e * y[i] + 0.02 * x[u]), y[i] - 0.1 * (e * x[u] + 0.02 * y[i])
        bu[u] -= 0.05 * (e + 0.01 * bu[u])
        bi[i] -= 0.05 * (e + 0.01 * bi[i])
    push(model, users, items, values, weights)
    for got, expected in zip(plain(model), (x, y, bu, bi), strict=True):
        assert got == pytest.approx(expected, abs=2e-5)
    assert model.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-6)


def test_a_whole_batch_is_one_gradient_step() -> None:
    spec = make_spec(Loss.SQUARED, micro_batch=64, hot_row_events=1e9, l2=0.0, bias_l2=0.0)
    model = ReferenceModel(spec)
    model.users.allocate(np.arange(3, dtype=np.uint64))
    model.items.allocate(np.arange(1, dtype=np.uint64))
    x, y, _, _ = plain(model)
    push(model, [0, 1, 2, 0], [0, 0, 0, 0], [1, 2, 3, 4])
    errors = [float(x[u] @ y[0]) - v for u, v in ((0, 1), (1, 2), (2, 3), (0, 4))]
    gradient = sum(e * x[u] for e, u in zip(errors, (0, 1, 2, 0), strict=True))
    assert model.items.factors[0] == pytest.approx(y[0] - 0.07 * gradient, abs=1e-6)
    assert model.users.factors[0] == pytest.approx(x[0] - 0.07 * (errors[0] + errors[3]) * y[0], abs=1e-6)


def test_a_hot_row_moves_as_if_h_events_had_named_it() -> None:
    def moved(h: float) -> np.ndarray:
        model = ReferenceModel(make_spec(Loss.SQUARED, micro_batch=64, hot_row_events=h, l2=0.0, bias_l2=0.0))
        model.items.allocate(np.array([7], np.uint64))
        start = model.items.factors[0].copy()
        push(model, range(40), [7] * 40, [3.0] * 40)
        return model.items.factors[0] - start

    assert moved(10.0) == pytest.approx(moved(1e9) * 0.25, rel=1e-4, abs=1e-7)
    assert moved(40.0).tobytes() == moved(1e9).tobytes()


def test_the_mean_waits_for_the_end_of_its_micro_batch() -> None:
    spec = make_spec(
        Loss.SQUARED, micro_batch=2, optimizer=Optimizer(OptimizerKind.SGD, 0.0, 1.0), bias_l2=0.0
    )
    model = ReferenceModel(spec)
    push(model, [1, 2, 3], [1, 2, 3], [4.0, 2.0, 3.0])
    dots = [float(model.users.factors[r] @ model.items.factors[r]) for r in range(3)]
    # Without a step of the factors a bias is -e: value - mean - dot. The third's mean is the first
    # two's.
    assert model.users.bias == pytest.approx([4.0 - dots[0], 2.0 - dots[1], 3.0 - 3.0 - dots[2]], abs=1e-5)
    assert model.state()["mean"].tolist() == [9 << 20, 3]


def test_bpr_leaves_the_users_bias_and_needs_two_items() -> None:
    model = ReferenceModel(make_spec(Loss.BPR, negatives=3))
    push(model, [1, 2], [5, 5])
    alone = [table.tobytes() for table in (model.users.factors, model.items.factors, model.items.bias)]
    fresh = ReferenceModel(model.spec)
    fresh.users.allocate(np.array([1, 2], np.uint64))
    fresh.items.allocate(np.array([5], np.uint64))
    assert alone == [
        table.tobytes() for table in (fresh.users.factors, fresh.items.factors, fresh.items.bias)
    ]
    push(model, [1, 2], [5, 6])
    assert not model.users.bias.any()
    assert model.items.bias.any()


def test_a_logistic_zero_draws_no_negatives() -> None:
    model = ReferenceModel(make_spec(Loss.LOGISTIC, negatives=4))
    push(model, [0] * 4, [0, 1, 2, 3], [0.0] * 4)
    touched = model.items.factors.copy()
    push(model, [0], [1], [0.0])
    changed = (model.items.factors != touched).any(axis=1)
    assert changed.tolist() == [False, True, False, False]


def test_biases_stay_zero_without_a_rate() -> None:
    model = ReferenceModel(
        make_spec(Loss.LOGISTIC, optimizer=Optimizer(OptimizerKind.SGD, 0.1, 0.0), negatives=2)
    )
    push(model, range(20), [n % 5 for n in range(20)], [1.0] * 20)
    assert not model.users.bias.any() and not model.items.bias.any()
    assert model.items.factors.any()


def test_chunks_are_of_32_terms_each_left_to_right() -> None:
    # 2**24 + 1 is lost in float32; in chunks of their own the small ones survive.
    terms = [F(2.0**24)] + [F(1.0)] * 31 + [F(1.0)] * 32 + [F(1.0)]
    assert chunked_sum(terms) == F(2.0**24) + F(32.0) + F(1.0)
    # The sum begins with the first term, not with 0.
    assert chunked_sum([F(-0.0)]).tobytes() == F(-0.0).tobytes()


def test_everything_stays_within_its_limits() -> None:
    limits = Limits(users_max=9, items_max=9, value_abs_max=5.0, error_max=2.0, factor_max=0.25, g_max=3.0)
    spec = make_spec(Loss.SQUARED, OptimizerKind.ADAGRAD, limits=limits)
    model = ReferenceModel(spec)
    push(model, [1, 2] * 40, [1, 2, 2, 1] * 20, [5.0, -5.0] * 40)
    assert np.abs(model.users.factors).max() <= 0.25 and np.abs(model.items.bias).max() <= 0.25
    assert model.items.bias_g.max() == 3.0
