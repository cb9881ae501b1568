"""An adapted learning rate: the CPU beside the reference, to the bit; where rates go beside what is best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor_kernels.backend import Update, create_backend, state_sections
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.sgd import adaptive
from livefactor_kernels.spec import (
    AdaptiveRate,
    FactorDtype,
    History,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Replay,
    Rule,
    SpecError,
)
from synthetic import assert_same, copy_state, make_spec, pair, push, push_random, read_pin, unlike

WINDOW = AdaptiveRate(16)
CASES = {
    "squared": make_spec(Loss.SQUARED, k=20, adaptive_rate=WINDOW),
    "logistic": make_spec(Loss.LOGISTIC, k=16, adaptive_rate=WINDOW),
    "negatives": make_spec(Loss.LOGISTIC, k=33, negatives=3, adaptive_rate=WINDOW),
    "sixteen-negatives": make_spec(Loss.LOGISTIC, k=1, negatives=16, adaptive_rate=AdaptiveRate(50)),
    "replay-history": make_spec(
        Loss.SQUARED, replay=Replay(30, 0.75), history=History(16, 16), adaptive_rate=WINDOW
    ),
    "negatives-replay": make_spec(Loss.LOGISTIC, negatives=2, replay=Replay(30, 0.75), adaptive_rate=WINDOW),
}


@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(0, 70), min_size=2, max_size=5))
def test_random_streams(spec: ModelSpec, seed: int, sizes: list[int]) -> None:
    """Items repeat among an event's negatives, values are 0 and 1, tables grow, windows end within records."""
    fast, judge = pair(spec)
    for model in (fast, judge):
        rng = np.random.default_rng(seed)
        for size in sizes:
            push_random(model, rng, size, 20, 6)
    assert_same(fast, judge)


@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
def test_extreme_inputs_stay_finite(spec: ModelSpec) -> None:
    limits = Limits(
        users_max=64, items_max=64, value_abs_max=1e6, weight_max=1e6, factor_max=1e3, error_max=1e6
    )
    models = pair(replace(spec, limits=limits, optimizer=Optimizer(learning_rate=100.0)).check())
    rng = np.random.default_rng(2)
    users, items = rng.integers(0, 5, 90), rng.integers(0, 4, 90)
    values = rng.choice([0.0, 1.0] if spec.loss == Loss.LOGISTIC else [-1e6, 1e6], 90)
    for model in models:
        push(model, users, items, values, np.full(90, 1e6))
        assert all(
            np.isfinite(array).all() for array in state_sections(model).values() if array.dtype.kind == "f"
        )
    assert_same(*models)


@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
def test_records_applied_at_once_are_those_one_by_one(spec: ModelSpec) -> None:
    together, apart = pair(spec)
    for model in (together, apart):
        model.users.allocate(np.arange(20, dtype=np.uint64))
        model.items.allocate(np.arange(12, dtype=np.uint64))
    rng, updates = np.random.default_rng(1), []
    for revision, events in enumerate((30, 1, 0, 1, 17), 1):
        users, items = (rng.integers(0, most, events).astype(np.uint32) for most in (20, 12))
        updates.append(
            Update(revision, users, items, rng.integers(0, 2, events).astype(np.float32), None, 20, 12)
        )
    together.apply_all(updates)
    for update in updates:
        apart.apply(update)
    assert_same(together, apart)


@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
def test_a_restored_model_goes_on_like_the_first(spec: ModelSpec) -> None:
    for names in (("cpu", "reference"), ("reference", "cpu")):
        first, second = (create_backend(name, spec) for name in names)
        rng = np.random.default_rng(3)
        for _ in range(3):
            push_random(first, rng, 35, 20, 12)
        for side, count in enumerate(first.published):
            second.load_sections(side, {n: v.copy() for n, v in first.sections(side, count).items()}, count)
        second.advance(first.revision, *first.published)
        second.set_mean(first.mean_sum, first.mean_count)
        second.set_reservoir({name: column.copy() for name, column in first.reservoir.items()}, 105)
        second.set_rate_state(first.rate_state.copy())
        for model in (first, second):
            push_random(model, np.random.default_rng(4), 35, 25, 15)
        assert unlike(state_sections(second), state_sections(first)) == []


def test_a_pin_does_not_see_what_twins_learn() -> None:
    model = create_backend("cpu", CASES["negatives"])
    rng = np.random.default_rng(6)
    push_random(model, rng, 60, 20, 12)
    before = {name: view for name, view in copy_state(model).items() if name != "rates"}
    with model.pin() as pin:
        push_random(model, rng, 5, 20, 12)
        assert unlike(read_pin(pin), before) == []


def test_rates_stay_within_their_steps() -> None:
    assert adaptive.moved(0, 2.0, 1.0, 1.5) == 1
    assert adaptive.moved(0, 2.0, 1.5, 1.0) == -1
    assert adaptive.moved(0, 2.0, 3.0, 1.0) == -1
    assert adaptive.moved(5, 1.0, 1.0, 1.0) == 5
    assert adaptive.moved(24, 2.0, 1.0, 3.0) == 24
    assert adaptive.moved(-24, 2.0, 3.0, 1.0) == -24
    multiples = adaptive.multiples()
    assert multiples[26] == 1.0
    assert multiples[30] == 2.0
    assert multiples[-1] == np.float32(2**6.5)
    assert (np.abs(np.diff(np.log2(multiples.astype(np.float64))) - 0.25) < 1e-6).all()


def taught(rate: float, window: int, events: int = 40_000) -> tuple[CpuModel, float]:
    """A model that has learned ratings of one rank-4 truth with noise, and the RMSE of its scores in the end."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(100, 4))
    spec = make_spec(
        Loss.SQUARED, optimizer=Optimizer(learning_rate=rate, bias_learning_rate=rate), l2=0.01, init_scale=0.5,
        adaptive_rate=AdaptiveRate(window),
    )  # fmt: skip
    model = CpuModel(spec)
    users, items = rng.integers(0, 300, events), rng.integers(0, 100, events)
    values = (x[users] * y[items]).sum(axis=1) + rng.normal(size=events)
    push(model, users, items, values)
    (p, p_bias), (q, q_bias) = (
        model.gather(side, np.arange(n, dtype=np.uint32)) for side, n in ((0, 300), (1, 100))
    )
    order = [np.argsort(table.keys[:n]) for table, n in ((model.users, 300), (model.items, 100))]
    scores = (model.mean + p_bias[:, None] + q_bias + p @ q.T)[np.ix_(*order)]
    return model, float(np.sqrt(np.mean((scores - x @ y.T) ** 2)))


def test_a_rate_that_is_far_off_finds_back() -> None:
    """From a rate at which nothing is learned in time, and from one at which noise is."""
    for rate, sign in ((0.003, 1), (0.1, -1)):
        model, error = taught(rate, 500)
        assert sign * model.rate_state[adaptive.USERS_STEP] >= 4
        assert error < 0.7 * taught(rate, 0)[1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"adaptive_rate": AdaptiveRate(15)}, "adaptive_rate.window"),
        ({"adaptive_rate": AdaptiveRate((1 << 24) + 1)}, "adaptive_rate.window"),
        ({"optimizer": Optimizer(OptimizerKind.ADAGRAD)}, "optimizer.kind"),
        ({"micro_batch": 2}, "micro_batch"),
        ({"negatives": 17}, "negatives"),
        ({"factor_dtype": FactorDtype.BFLOAT16}, "factor_dtype"),
        ({"loss": Loss.BPR, "negatives": 1}, "loss"),
        ({"loss": Loss.SOFTMAX, "rule": Rule.SOFTMAX, "negatives": 1, "history": History(16)}, "rule"),
    ],
)
def test_what_has_no_adaptive_rate_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    fields: dict[str, object] = {"loss": Loss.LOGISTIC, "adaptive_rate": WINDOW}
    with pytest.raises(SpecError, match=field.replace(".", r"\.")):
        make_spec(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_gpu_backend_refuses_it_by_name() -> None:
    with pytest.raises(SpecError, match=r"adaptive_rate\.window: expected 0 on backend cuda"):
        CudaModel(CASES["squared"])
