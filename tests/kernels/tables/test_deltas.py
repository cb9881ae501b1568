"""Deltas of rows: the formula beside NumPy, the bound on a contribution, and both backends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from livefactor_kernels.backend import Backend, create_backend, state_sections
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import (
    FactorDtype,
    Limits,
    Loss,
    Merge,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Regularization,
    SpecError,
)
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.deltas import Deltas
from livefactor_kernels.update import Update
from specs import solve_spec

K, ROWS = 20, 9
SPEC = ModelSpec(
    k=K,
    loss=Loss.LOGISTIC,
    negatives=1,
    merge=Merge(0.5, 3.0),
    limits=Limits(users_max=50, items_max=50, error_max=1e3, factor_max=2.0),
)
RNG = np.random.default_rng(7)
KEYS = np.arange(ROWS, dtype=np.uint64) + 100


def filled(name: str, spec: ModelSpec = SPEC) -> Backend:
    """A model that has learned three events of nine users and items."""
    model = create_backend(name, spec)
    users, items = model.users.allocate(KEYS), model.items.allocate(KEYS)
    model.apply(Update(1, users[:3].copy(), items[2:5].copy(), None, None, ROWS, ROWS))
    return model


def contribution(side: int = ITEMS, norm: float = 1.0, weight: float = 1.0, revision: int = 2) -> Deltas:
    """Deltas of five rows, not in the order of the rows, with this norm."""
    rng = np.random.default_rng(revision)
    numbers = rng.normal(size=(5, K + 1))
    numbers *= norm / np.linalg.norm(numbers)
    rows = np.array([6, 1, 8, 2, 3], np.uint32)
    factors, bias = (np.ascontiguousarray(numbers[:, part], np.float32) for part in (slice(K), K))
    return Deltas(side, rows, factors, bias, weight, revision, ROWS, ROWS)


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize(("norm", "scale"), [(1.0, 1.0), (3.0, 1.0), (12.0, 0.25), (1e12, 3e-12)])
def test_a_contribution_is_added_and_a_long_one_is_scaled_down(name: str, norm: float, scale: float) -> None:
    model, deltas = filled(name), contribution(norm=norm, weight=1.5)
    before = {part: array.copy() for part, array in model.sections(ITEMS, ROWS).items()}
    model.add(deltas)
    after = model.sections(ITEMS, ROWS)
    expected = before["factors"].astype(np.float64)
    expected[deltas.rows] += 0.5 * 1.5 * scale * deltas.factors.astype(np.float64)
    np.testing.assert_allclose(after["factors"], expected, rtol=1e-5, atol=1e-6)
    moved = before["bias"].astype(np.float64)
    assert deltas.bias is not None
    moved[deltas.rows] += 0.5 * 1.5 * scale * deltas.bias.astype(np.float64)
    np.testing.assert_allclose(after["bias"], moved, rtol=1e-5, atol=1e-6)
    others = np.setdiff1d(np.arange(ROWS), deltas.rows)
    assert after["factors"][others].tobytes() == before["factors"][others].tobytes()
    assert (model.revision, model.published) == (2, (ROWS, ROWS))


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_no_contribution_moves_the_model_further_than_its_bound(name: str) -> None:
    """Also the largest float32, and with a limit of the norm of rows."""
    model = filled(name, replace(SPEC, regularization=Regularization(row_norm_max=0.5)))
    before = model.sections(ITEMS, ROWS)["factors"].copy()
    model.add(contribution(norm=2.0))
    assert np.linalg.norm(model.sections(ITEMS, ROWS)["factors"], axis=1).max() <= 0.5 + 1e-6
    deltas = contribution(revision=3)
    huge = np.full_like(deltas.factors, np.finfo(np.float32).max)
    model = filled(name)
    model.add(deltas._replace(factors=huge, revision=2))
    after = model.sections(ITEMS, ROWS)["factors"]
    assert np.isfinite(after).all()
    assert np.linalg.norm(after - before) <= 0.5 * 3.0 * (1 + 1e-5)


DTYPES = [FactorDtype.FLOAT32, FactorDtype.FLOAT16, FactorDtype.BFLOAT16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cpu_has_the_bits_of_the_reference_and_a_pin_stays(dtype: FactorDtype) -> None:
    kind = OptimizerKind.LAZY_ADAM if dtype == FactorDtype.FLOAT32 else OptimizerKind.SGD
    spec = check(replace(SPEC, factor_dtype=dtype, optimizer=Optimizer(kind)))
    models = [filled(name, spec) for name in ("reference", "cpu")]
    pins = [model.pin() for model in models]
    before = [pin.gather(ITEMS, np.arange(ROWS, dtype=np.uint32))[0] for pin in pins]
    for revision, side in enumerate((ITEMS, USERS, ITEMS), start=2):
        for model in models:
            model.add(contribution(side, 5.0, 2.0, revision))
    rows = np.array([0, 3], np.uint32)
    for model in models:
        model.apply(Update(5, rows, rows, None, None, ROWS, ROWS))
    reference, cpu = (state_sections(model) for model in models)
    assert reference.keys() == cpu.keys()
    for section, array in reference.items():
        assert array.tobytes() == cpu[section].tobytes(), section
    for pin, then in zip(pins, before, strict=True):
        assert pin.gather(ITEMS, np.arange(ROWS, dtype=np.uint32))[0].tobytes() == then.tobytes()
        pin.release()


KINDS = [OptimizerKind.ADAGRAD, OptimizerKind.ROWWISE_ADAGRAD, OptimizerKind.LAZY_ADAM]


@pytest.mark.parametrize("kind", KINDS)
def test_a_contribution_can_be_a_step_of_the_optimizer(kind: OptimizerKind) -> None:
    """Both backends step alike. The first steps of each row have the size that the paper gives."""
    optimizer = Optimizer(kind, initial_g=0.0, eps=1e-8)
    spec = check(replace(SPEC, merge=Merge(0.1, 3.0, True), optimizer=optimizer))
    models = [create_backend(name, spec) for name in ("reference", "cpu")]
    for model in models:
        model.users.allocate(KEYS)
        model.items.allocate(KEYS)
        model.apply(Update(1, np.empty(0, np.uint32), np.empty(0, np.uint32), None, None, ROWS, ROWS))
    deltas = contribution(norm=1.0)
    before = {part: array.copy() for part, array in models[0].sections(ITEMS, ROWS).items()}
    for model in models:
        model.add(deltas)
    after = models[0].sections(ITEMS, ROWS)
    moved = (after["factors"].astype(np.float64) - before["factors"])[deltas.rows]
    if kind == OptimizerKind.ROWWISE_ADAGRAD:
        # One sum of squares a row is their mean, so the mean square of its steps is that of a rate.
        np.testing.assert_allclose((moved**2).mean(axis=1), 0.01, rtol=1e-3)
    else:
        np.testing.assert_allclose(moved, 0.1 * np.sign(deltas.factors), rtol=1e-3)
    assert deltas.bias is not None
    shift = (after["bias"].astype(np.float64) - before["bias"])[deltas.rows]
    np.testing.assert_allclose(shift, 0.1 * np.sign(deltas.bias), rtol=1e-3)
    for revision, side in enumerate((ITEMS, USERS, ITEMS), start=3):
        for model in models:
            model.add(contribution(side, 5.0, 2.0, revision)._replace(bias=None))
    reference, cpu = (state_sections(model) for model in models)
    for section, array in reference.items():
        assert array.tobytes() == cpu[section].tobytes(), section
    others = np.setdiff1d(np.arange(ROWS), deltas.rows)
    unmoved = models[0].sections(ITEMS, ROWS)["factors"][others]
    assert unmoved.tobytes() == before["factors"][others].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_with_limits_and_narrow_factors_have_the_bits_of_the_reference(
    kind: OptimizerKind, dtype: FactorDtype
) -> None:
    limits = Regularization(gradient_norm_max=0.2, row_norm_max=0.15)
    spec = replace(SPEC, merge=Merge(0.1, 3.0, True), optimizer=Optimizer(kind), regularization=limits)
    models = [filled(name, check(replace(spec, factor_dtype=dtype))) for name in ("reference", "cpu")]
    for revision, side in enumerate((ITEMS, USERS, ITEMS), start=2):
        for model in models:
            model.add(contribution(side, 5.0, 2.0, revision))
    reference, cpu = (state_sections(model) for model in models)
    for section, array in reference.items():
        assert array.tobytes() == cpu[section].tobytes(), section


def test_specs_that_cannot_merge_are_refused_with_the_reason() -> None:
    ftrl = Optimizer(OptimizerKind.FTRL)
    for spec, text in (
        (replace(SPEC, merge=Merge(0.5)), "merge.norm_max: expected 1e-6..1e30"),
        (replace(SPEC, merge=Merge(0.0, 1.0)), "merge.norm_max: expected 0 without"),
        (replace(SPEC, merge=Merge(-1.0, 1.0)), "merge.learning_rate: expected 0..100"),
        (replace(SPEC, merge=Merge(0.0, 0.0, True)), "merge.optimizer_step: expected false without"),
        (replace(SPEC, merge=Merge(0.5, 3.0, True)), "optimizer.kind: expected adagrad, rowwise_adagrad or"),
        (replace(SPEC, optimizer=ftrl), "optimizer.kind: expected another one than ftrl"),
        (replace(solve_spec(Loss.IMPLICIT), merge=Merge(1.0, 1.0)), "rule: expected sgd or softmax"),
    ):
        with pytest.raises(SpecError, match=text):
            check(spec)
    with pytest.raises(SpecError, match=r"merge.learning_rate: expected 0 on backend cuda"):
        check_cuda(check(SPEC))
