"""Clipping, max-norm, frequency-scaled L2 and dropout: the bits of the reference, and the effect of
each.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.spec.model import (
    History,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Regularization,
    Rule,
    Solve,
    SpecError,
)
from livefactor_kernels.tables import USERS
from livefactor_kernels.tables.reference import ReferenceTables
from synthetic import LOSSES, assert_same, copy_state, differences, make_spec, pair, push, push_random

ONE_BY_ONE = {
    "gradient": Regularization(gradient_norm_max=0.05),
    "row": Regularization(row_norm_max=0.1),
    "l2-sqrt": Regularization(l2_frequency=0.5),
    "l2": Regularization(l2_frequency=1.0),
    "dropout": Regularization(dropout=0.4),
    "all": Regularization(0.05, 0.2, 0.5, 0.3),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_changes_what_is_learned(name) -> None:
    states = []
    for regularization in (Regularization(), ONE_BY_ONE[name]):
        model = CpuModel(make_spec(Loss.SQUARED, history=History(16), regularization=regularization))
        for seed in range(2):
            push_random(model, np.random.default_rng(seed), 60, 11, 9)
        states.append(model)
    assert {"users.factors", "items.factors"} <= set(differences(*states))


def test_a_bound_that_is_never_reached_changes_no_bit() -> None:
    """A regularisation without effect gives the bits of the plain kernel, with every kernel."""
    states = []
    for regularization in (Regularization(), Regularization(gradient_norm_max=1e6, row_norm_max=1e6)):
        model = CpuModel(make_spec(Loss.LOGISTIC, negatives=3, regularization=regularization))
        push_random(model, np.random.default_rng(1), 200, 11, 9)
        states.append(model)
    assert differences(*states) == []


def test_a_gradient_is_scaled_to_its_norm() -> None:
    spec = make_spec(
        Loss.SQUARED, k=20, optimizer=Optimizer(OptimizerKind.SGD, 1.0, 1.0), regularization=Regularization(0.25)
    )  # fmt: skip
    model, rng = ReferenceTables(spec), np.random.default_rng(2)
    model.users.allocate(np.arange(40, dtype=np.uint64))
    before = model.users.factors.astype(np.float64)
    for row in range(40):
        gradient = np.pad(rng.normal(size=20), (0, 12)).astype(np.float32)
        gradient *= np.float32((0.01, 1.0)[row % 2])
        model.step(USERS, row, gradient, np.float32((-5.0, 0.125)[row % 2]), 1)
        moved = before[row] - model.users.factors[row]
        size = float(np.linalg.norm(gradient))
        expected = gradient * min(1.0, 0.25 / size)
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-6)
        assert model.users.bias[row] == (0.25, -0.125)[row % 2]


@pytest.mark.parametrize("kind", OptimizerKind)
def test_no_row_is_longer_than_its_norm(kind) -> None:
    spec = make_spec(
        Loss.SQUARED, kind, k=20, micro_batch=8, regularization=Regularization(row_norm_max=0.125)
    )
    model = CpuModel(spec)
    push_random(model, np.random.default_rng(1), 300, 20, 15)
    lengths = np.linalg.norm(widened(model.users.factors[:20]).astype(np.float64), axis=1)
    assert lengths.max() <= 0.125 * (1 + 1e-6)
    assert (lengths > 0.124).any()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_l2_is_divided_by_a_power_of_the_events_so_far(power) -> None:
    """Errors are clipped to nearly 0, so the steps consist of L2. A record has one event."""
    spec = make_spec(
        Loss.SQUARED, optimizer=Optimizer(OptimizerKind.SGD, 1.0, 1.0), l2=0.5, bias_l2=0.25, history=History(16),
        regularization=Regularization(l2_frequency=power), limits=Limits(users_max=9, items_max=99, error_max=1e-30),
    )  # fmt: skip
    model = CpuModel(spec)
    push(model, [1], [0])
    for events in range(1, 30):
        before = model.users.factors[0, :16].copy(), model.items.factors[:1, :16].copy()
        push(model, [1], [events])
        expected = before[0] * (1 - 0.5 / events**power)
        np.testing.assert_allclose(model.users.factors[0, :16], expected, rtol=1e-4, atol=1e-37)
        assert (model.items.factors[:1, :16] == before[1]).all()


def test_an_events_rows_lose_the_same_columns() -> None:
    """Without L2, the columns that a step does not change are the dropped ones."""
    model = CpuModel(
        make_spec(
            Loss.BPR, k=200, negatives=2, l2=0.0, regularization=Regularization(dropout=0.25), init_scale=1.0
        )
    )
    push(model, range(90), range(90))
    before = copy_state(model)
    push(model, range(40), range(40))
    after = copy_state(model)
    same = before["users.factors"][:40] == after["users.factors"][:40]
    assert 0.2 < same.mean() < 0.3
    # Each event has its own mask.
    assert len({row.tobytes() for row in same}) == 40
    still = before["items.factors"] == after["items.factors"]
    # An item with several events may also change in this event's dropped columns.
    for event in range(40):
        assert (still[event] <= same[event]).all()
    alone = [event for event in range(40) if still[event].sum() == same[event].sum()]
    assert alone and all((still[event] == same[event]).all() for event in alone)


def test_what_is_dropped_depends_on_the_revision_and_the_place_in_the_record() -> None:
    spec = make_spec(Loss.SQUARED, k=64, l2=0.0, regularization=Regularization(dropout=0.5))
    masks = []
    for revision, place in ((0, 0), (0, 1), (5, 0)):
        model = CpuModel(spec)
        model.advance(revision)
        users = [7] * place + [1]
        model.users.allocate(np.array([1], np.uint64))
        before = model.users.factors[0].copy()
        push(model, users, users, [1.0] * len(users))
        masks.append((model.users.factors[0, :64] == before[:64]).tobytes())
    assert len(set(masks)) == 3


def test_dropped_columns_are_made_up_for() -> None:
    """The mean over events of a dot product with dropout is the dot product without dropout.

    The gradients of a first step give the dot products.
    """
    spec = make_spec(
        Loss.SQUARED, k=16, l2=0.0, bias_l2=0.0, optimizer=Optimizer(OptimizerKind.SGD, 0.0, 1e-3), init_scale=1.0,
        regularization=Regularization(dropout=0.5),
    )  # fmt: skip
    model, errors = CpuModel(spec), []
    push(model, [1], [1], [0.0])
    dot = float(model.users.factors[0] @ model.items.factors[0])
    for _ in range(4000):
        bias = float(model.users.bias[0])
        predicted = bias + float(model.items.bias[0])
        push(model, [1], [1], [0.0])
        errors.append((bias - float(model.users.bias[0])) / 1e-3 - predicted)
    assert np.mean(errors) == pytest.approx(dot, abs=4 * np.std(errors) / np.sqrt(len(errors)))
    assert np.std(errors) > 0.05


# Each kind of spec has kernels of its own, so all runs compile and keep the same ones.
@settings(max_examples=12, derandomize=True)
@given(data=st.data())
def test_extreme_numbers_stay_finite(data) -> None:
    kind = data.draw(st.sampled_from(OptimizerKind), "kind")
    regularization = Regularization(
        data.draw(st.sampled_from([0.0, 1e-6, 1e30]), "gradient"),
        data.draw(st.sampled_from([0.0, 1e-6, 1e30]), "row"),
        data.draw(st.sampled_from([0.0, 0.5, 1.0]), "power"),
        data.draw(st.sampled_from([0.0, 1e-9, 0.9]), "dropout"),
    )
    limits = Limits(users_max=64, items_max=64, error_max=1e6, factor_max=1e3)
    loss, negatives = data.draw(st.sampled_from(LOSSES), "loss")
    spec = make_spec(
        loss, optimizer=Optimizer(kind, 100.0, 100.0, 0.0, 1e-6), limits=limits, negatives=negatives, micro_batch=8,
        l2=100.0, bias_l2=100.0, init_scale=data.draw(st.sampled_from([0.0, 1e-30, 2e3]), "init_scale"),
        hot_row_events=1e9, history=History(16), regularization=regularization,
    )  # fmt: skip
    models = pair(spec)
    for model in models:
        for sign in (1.0, -1.0):
            values = [sign * 1e6] * 40 if loss == Loss.SQUARED else [float(sign > 0)] * 40
            push(model, [n % 5 for n in range(40)], [n % 4 for n in range(40)], values, [1e3] * 40)
    assert_same(*models)
    for name, view in copy_state(models[0]).items():
        assert np.isfinite(view).all(), name


def softmax_spec(**changes: object) -> ModelSpec:
    fields = {"rule": Rule.SOFTMAX, "negatives": 9, "micro_batch": 30, "history": History(16)} | changes
    return make_spec(Loss.SOFTMAX, **fields)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("regularization.gradient_norm_max", {"regularization": Regularization(gradient_norm_max=-1.0)}),
        ("regularization.row_norm_max", {"regularization": Regularization(row_norm_max=1e-9)}),
        ("regularization.l2_frequency", {"regularization": Regularization(l2_frequency=0.7)}),
        ("regularization.dropout", {"regularization": Regularization(dropout=0.95)}),
        ("regularization.dropout", {"regularization": Regularization(dropout=float("nan"))}),
        ("history.users", {"regularization": Regularization(l2_frequency=0.5)}),
        (
            "limits",
            {"regularization": Regularization(1.0), "micro_batch": 65_536, "limits": Limits(error_max=1e9, factor_max=1e6)},
        ),
    ],
)  # fmt: skip
def test_specs_are_refused(field, changes) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(field)}"):
        make_spec(Loss.SQUARED, **changes)


@pytest.mark.parametrize("name", ["l2", "dropout"])
def test_rule_softmax_refuses_what_it_has_not(name) -> None:
    with pytest.raises(SpecError, match=r"regularization\.\w+: expected 0 with rule softmax"):
        softmax_spec(regularization=ONE_BY_ONE[name])


@pytest.mark.parametrize("name", ["gradient", "row", "l2", "dropout"])
def test_rule_solve_refuses_all(name) -> None:
    with pytest.raises(SpecError, match=r"regularization\.\w+: expected 0 with rule solve"):
        make_spec(
            Loss.IMPLICIT, rule=Rule.SOLVE, history=History(16, 16), solve=Solve(0.5), regularization=ONE_BY_ONE[name]
        )  # fmt: skip
