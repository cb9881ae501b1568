"""Optimisers against their papers, and the effect of their state.

`test_conformance.py` compares their bits with the reference.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.optimizers import StepRates, choice
from livefactor_kernels.spec.model import (
    FactorDtype,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    SpecError,
)
from livefactor_kernels.tables import USERS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.reference import ReferenceTable, ReferenceTables
from synthetic import (
    LOSSES,
    assert_same,
    copy_state,
    make_spec,
    pair,
    push,
    push_random,
    unlike,
)

ROWWISE, ADAM, FTRL = OptimizerKind.ROWWISE_ADAGRAD, OptimizerKind.LAZY_ADAM, OptimizerKind.FTRL
NEW = (ROWWISE, ADAM, FTRL)


def optimizer(kind: OptimizerKind, **changes: float) -> Optimizer:
    fields = {"learning_rate": 0.07, "bias_learning_rate": 0.03, "initial_g": 0.1, "eps": 1e-6, "l1": 0.004}
    return Optimizer(kind, **{**fields, **changes})


class Paper:
    """An optimiser of one row in float64, written like its paper."""

    def __init__(self, spec: ModelSpec, x: np.ndarray, rate: float) -> None:
        self.o, self.rate, self.x = spec.optimizer, rate, x.astype(np.float64)
        self.t, self.m, self.v = 0, np.zeros_like(self.x), np.zeros_like(self.x)
        self.n = np.full_like(self.x, self.o.initial_g)
        sign = np.sign(self.x)
        self.z = -(self.x * (self.o.beta + np.sqrt(self.n)) / rate + sign * self.o.l1)

    def step(self, g: np.ndarray) -> None:
        o = self.o
        self.t += 1
        if o.kind == ROWWISE:
            self.n = self.n + np.mean(g * g)
            self.x = self.x - self.rate * g / (np.sqrt(self.n) + o.eps)
        elif o.kind == ADAM:
            self.m = o.beta1 * self.m + (1 - o.beta1) * g
            self.v = o.beta2 * self.v + (1 - o.beta2) * g * g
            m, v = self.m / (1 - o.beta1**self.t), self.v / (1 - o.beta2**self.t)
            self.x = self.x - self.rate * m / (np.sqrt(v) + o.eps)
        else:
            sigma = (np.sqrt(self.n + g * g) - np.sqrt(self.n)) / self.rate
            self.z, self.n = self.z + g - sigma * self.x, self.n + g * g
            shrunk = self.z - np.clip(self.z, -o.l1, o.l1)
            self.x = -shrunk / ((o.beta + np.sqrt(self.n)) / self.rate)


@pytest.mark.parametrize("kind", NEW)
def test_steps_are_those_of_the_paper(kind) -> None:
    """One row with chosen gradients becomes what the paper says, except for rounding."""
    spec = make_spec(Loss.SQUARED, k=20, optimizer=optimizer(kind, l1=0.3))
    model, rng, zeros = ReferenceTables(spec), np.random.default_rng(3), 0
    model.users.allocate(np.array([5], np.uint64))
    paper = Paper(spec, model.users.factors[0, :20].copy(), spec.optimizer.learning_rate)
    bias = Paper(spec, np.zeros(1), spec.optimizer.bias_learning_rate)
    for _ in range(40):
        gradient, bias_gradient = np.zeros(32, np.float32), np.float32(rng.normal())
        gradient[:20] = rng.normal(size=20) * 0.3
        model.step(USERS, 0, gradient, bias_gradient, 1)
        paper.step(gradient[:20].astype(np.float64))
        bias.step(np.array([float(bias_gradient)]))
        np.testing.assert_allclose(model.users.factors[0, :20], paper.x, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(model.users.bias[0], bias.x[0], rtol=1e-4, atol=1e-6)
        zeros += int((model.users.factors[0, :20] == 0).sum())
    assert (zeros > 0) == (kind == FTRL)


@pytest.mark.parametrize("dtype", FactorDtype)
@pytest.mark.parametrize("kind", OptimizerKind)
def test_new_rows_have_the_state_of_the_reference(kind, dtype) -> None:
    spec = make_spec(Loss.SQUARED, k=20, optimizer=optimizer(kind), factor_dtype=dtype)
    fast, judge = Table(spec, USERS), ReferenceTable(spec, USERS)
    for keys in ([3, 2**64 - 1], [3, 1 << 40, 9]):
        for table in (fast, judge):
            table.allocate(np.array(keys, np.uint64))
    assert fast.row_bytes == judge.row_bytes
    assert unlike(fast.sections(4), judge.sections(4)) == []


def test_the_first_weight_of_ftrl_is_the_initial_factor() -> None:
    """A step without a gradient changes it only by rounding."""
    spec = make_spec(Loss.SQUARED, k=20, optimizer=optimizer(FTRL))
    model = ReferenceTables(spec)
    model.users.allocate(np.arange(8, dtype=np.uint64))
    before = model.users.factors.copy()
    for row in range(8):
        model.step(USERS, row, np.zeros(32, np.float32), np.float32(0.0), 1)
    np.testing.assert_allclose(model.users.factors, before, rtol=1e-5, atol=1e-7)
    assert not model.users.bias.any()


@pytest.mark.parametrize("l1", [0.0, 2.0])
def test_l1_makes_factors_and_biases_zero(l1) -> None:
    models = pair(make_spec(Loss.SQUARED, optimizer=optimizer(FTRL, l1=l1)))
    for model in models:
        for seed in range(6):
            push_random(model, np.random.default_rng(seed), 80, 9, 7)
    assert_same(*models)
    state = copy_state(models[0])
    for name in ("users.factors", "items.factors", "users.bias", "items.bias"):
        assert (state[name] == 0).any() == (l1 > 0), name


@pytest.mark.parametrize("kind", NEW)
def test_a_learning_rate_of_zero_moves_nothing(kind) -> None:
    rates = {"learning_rate": 0.0, "bias_learning_rate": 0.0}
    model = CpuModel(make_spec(Loss.BPR, negatives=2, optimizer=optimizer(kind, **rates)))
    push(model, range(9), range(9))
    before = copy_state(model)
    push(model, range(9), range(9))
    after = copy_state(model)
    assert not after["items.bias"].any()
    np.testing.assert_allclose(after["users.factors"], before["users.factors"], rtol=1e-6)


@settings(max_examples=15)
@given(data=st.data())
def test_extreme_numbers_stay_finite(data) -> None:
    """With any spec, two records of extreme events give finite numbers, which equal those of the
    reference.
    """
    kind = data.draw(st.sampled_from(OptimizerKind), "kind")
    g_max = data.draw(st.sampled_from([1e-3, 1.0, 1e30]), "g_max")
    numbers = {
        "learning_rate": data.draw(st.sampled_from([1e-3, 100.0]), "rate"),
        "bias_learning_rate": 100.0,
        "initial_g": data.draw(st.sampled_from([0.0, 1e-3]), "initial_g"),
        "eps": data.draw(st.sampled_from([1e-20, 1e6]), "eps"),
        "beta1": data.draw(st.sampled_from([0.0, 0.99]), "beta1"),
        "beta2": data.draw(st.sampled_from([0.0, 0.999999]), "beta2"),
        "l1": data.draw(st.sampled_from([0.0, 1e6]), "l1"),
        "beta": data.draw(st.sampled_from([1e-6, 1e6]), "beta"),
    }
    limits = Limits(users_max=64, items_max=64, error_max=1e6, factor_max=1e3, g_max=g_max)
    loss, negatives = data.draw(st.sampled_from(LOSSES), "loss")
    scale = data.draw(st.sampled_from([0.0, 1e-30, 2e3]), "init_scale")
    spec = make_spec(
        loss, optimizer=Optimizer(kind, **numbers), limits=limits, negatives=negatives, micro_batch=8, l2=100.0,
        bias_l2=100.0, init_scale=scale, hot_row_events=1e9,
    )  # fmt: skip
    models = pair(spec)
    value = data.draw(st.sampled_from([1e6, 1e-30]), "value")
    for model in models:
        for sign in (1.0, -1.0):
            values = [sign * value] * 40 if loss == Loss.SQUARED else [float(sign > 0)] * 40
            push(model, [n % 5 for n in range(40)], [n % 4 for n in range(40)], values, [1e3] * 40)
    assert_same(*models)
    for name, view in copy_state(models[0]).items():
        assert np.isfinite(view).all(), name


LEARNING = {
    OptimizerKind.SGD: Optimizer(OptimizerKind.SGD, 0.05, 0.02),
    OptimizerKind.ADAGRAD: Optimizer(OptimizerKind.ADAGRAD, 0.1, 0.1, 0.1),
    ROWWISE: Optimizer(ROWWISE, 0.1, 0.1, 0.1),
    ADAM: Optimizer(ADAM, 0.01, 0.01),
    FTRL: Optimizer(FTRL, 0.2, 0.2),
}


@pytest.mark.parametrize("kind", OptimizerKind)
@pytest.mark.parametrize("micro_batch", [1, 32])
def test_it_learns(kind, micro_batch) -> None:
    """Ratings from two factors, each predicted before it is learned. The error falls below one
    half.
    """
    rng = np.random.default_rng(11)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
    model = CpuModel(
        make_spec(
            Loss.SQUARED, k=4, optimizer=LEARNING[kind], l2=1e-4, micro_batch=micro_batch, init_scale=0.5
        )
    )
    errors = []
    for _ in range(60):
        users, items = rng.integers(0, 40, 256), rng.integers(0, 30, 256)
        values = (x[users] * y[items]).sum(1).astype(np.float32)
        rows = model.users.allocate(users.astype(np.uint64)), model.items.allocate(items.astype(np.uint64))
        (p, p_bias), (q, q_bias) = model.gather(0, rows[0]), model.gather(1, rows[1])
        errors.append(float(np.mean((model.mean + p_bias + q_bias + (p * q).sum(1) - values) ** 2)))
        push(model, users, items, values)
    assert np.mean(errors[-5:]) < 0.5 * np.mean(errors[:5])


def test_rowwise_adagrad_of_one_factor_is_adagrad() -> None:
    states = []
    for kind in (OptimizerKind.ADAGRAD, ROWWISE):
        model = CpuModel(make_spec(Loss.SQUARED, k=1, optimizer=optimizer(kind)))
        push_random(model, np.random.default_rng(1), 200, 9, 7)
        states.append(copy_state(model))
    for name in ("users.factors", "items.factors", "users.bias", "items.bias"):
        assert states[0][name].tobytes() == states[1][name].tobytes()
    assert states[0]["users.factor_g"].tobytes() == states[1]["users.row_g"].tobytes()


def test_adams_powers_stop_before_they_are_subnormal() -> None:
    model = ReferenceTables(make_spec(Loss.SQUARED, k=1, optimizer=optimizer(ADAM, beta1=0.1, beta2=0.5)))
    model.users.allocate(np.array([1], np.uint64))
    for _ in range(60):
        model.step(USERS, 0, np.zeros(16, np.float32), np.float32(0.0), 1)
    assert (model.users.powers > 1e-10).all() and (model.users.powers <= 2.0**-26).all()
    assert (np.float32(1.0) - model.users.powers == 1.0).all()


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("optimizer.beta1", {"optimizer": optimizer(ADAM, beta1=1.0)}),
        ("optimizer.beta2", {"optimizer": optimizer(ADAM, beta2=-0.1)}),
        ("optimizer.beta2", {"optimizer": optimizer(ADAM, beta2=math.nan)}),
        ("optimizer.eps", {"optimizer": optimizer(ADAM, eps=0.0)}),
        ("optimizer.eps", {"optimizer": optimizer(ROWWISE, eps=0.0)}),
        (
            "optimizer.eps",
            {
                "optimizer": optimizer(ADAM, eps=1e-20), "micro_batch": 65_536,
                "limits": Limits(error_max=1e9, factor_max=1e4),
            },
        ),
        ("optimizer.l1", {"optimizer": optimizer(FTRL, l1=-1.0)}),
        ("optimizer.beta:", {"optimizer": optimizer(FTRL, beta=0.0)}),
        ("limits.g_max", {"optimizer": optimizer(FTRL, beta=1e-3), "limits": Limits(g_max=1e36)}),
        ("limits.g_max", {"optimizer": optimizer(ADAM), "limits": Limits(g_max=1e36)}),
        ("limits:", {"optimizer": optimizer(ROWWISE), "micro_batch": 65_536, "limits": Limits(error_max=1e9, factor_max=1e5)}),
    ],
)  # fmt: skip
def test_specs_are_refused(field, changes) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(field)}"):
        make_spec(Loss.SQUARED, **changes)


@njit(error_model="numpy")
def stepped(kind, x, g, first, second, rates):
    word, other, of_factors, of_bias = choice.step_row(kind, first, second, g * g, rates)
    of_factor = choice.accumulate_factor(kind, x, g, first, second, of_factors, rates)
    factor = choice.step_factor(kind, x, g, of_factor[0], of_factor[2], of_factors, rates)
    of_one = choice.accumulate_bias(kind, x, g, first, second, of_bias, rates)
    bias = choice.step_bias(kind, x, g, of_one[0], of_one[2], of_bias, rates)
    return word, other, *of_factor, factor, *of_one, bias


@pytest.mark.parametrize("kind", OptimizerKind)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_formula_gives_the_same_bits_in_python_and_compiled(kind, data) -> None:
    x, g = (np.float32(data.draw(st.floats(-5, 5, width=32))) for _ in "xg")
    first, second = (np.float32(data.draw(st.floats(0.0625, 1, width=32))) for _ in range(2))
    rates = StepRates.of(make_spec(Loss.SQUARED, optimizer=optimizer(kind)))
    plain = stepped.py_func(int(kind), x, g, first, second, rates)
    assert all(type(value) is np.float32 for value in plain)
    compiled = stepped(int(kind), x, g, first, second, rates)
    assert np.array(plain).tobytes() == np.array(compiled, np.float32).tobytes()
