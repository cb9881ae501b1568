"""The adaptive learning rate: the CPU against the reference, bit by bit, its definition, and its
direction.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from conformance import SPECS
from livefactor_kernels.backend import create_backend, state_sections
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.sgd import adaptive
from livefactor_kernels.spec.model import (
    AdaptiveRate,
    FactorDtype,
    History,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Rule,
    SpecError,
)
from synthetic import (
    SIDES,
    assert_same,
    copy_state,
    make_spec,
    pair,
    push,
    push_random,
    read_pin,
    restore,
    unlike,
)

ADAPTIVE = {name: spec for name, spec in SPECS.items() if spec.adaptive_rate.window}


@pytest.mark.parametrize(
    "name", ["adaptive-squared", "adaptive-negatives", "adaptive-micro", "adaptive-replay"]
)
def test_rates_that_move_and_probes_that_begin_again(name: str) -> None:
    """Learnable events, at a learning rate that is too low."""
    models = pair(replace(SPECS[name], optimizer=Optimizer(learning_rate=0.01, bias_learning_rate=0.01)))
    for model in models:
        rng = np.random.default_rng(9)
        for _ in range(8):
            users, items = rng.integers(0, 20, 60), rng.integers(0, 8, 60)
            push(model, users, items, (users + items) % 2 if model.spec.loss == Loss.LOGISTIC else items % 3)
    assert models[0].state()["rates"][adaptive.STEP] >= 2
    assert_same(*models)


@pytest.mark.parametrize("spec", ADAPTIVE.values(), ids=ADAPTIVE)
def test_until_it_moves_it_is_two_models_of_fixed_rates(spec: ModelSpec) -> None:
    spec = replace(spec, adaptive_rate=AdaptiveRate(1 << 24))
    adapted = CpuModel(spec)
    fixed, faster = (CpuModel(adaptive.at_step(spec, step)) for step in (0, 1))
    assert np.float32(faster.spec.optimizer.learning_rate) == np.float32(
        np.float32(0.07) * np.float32(2**0.25)
    )
    for model in (adapted, fixed, faster):
        rng = np.random.default_rng(5)
        for _ in range(4):
            push_random(model, rng, 60, 20, 12)
    assert adapted.state()["rates"][adaptive.EVENTS] == 240
    got, plain, probe = (state_sections(model) for model in (adapted, fixed, faster))
    assert not np.array_equal(got["users.factors"], got["users.factor_probe"])
    for _, side in SIDES:
        for name, probed in (("factors", "factor_probe"), ("bias", "bias_probe")):
            assert got[f"{side}.{name}"].tobytes() == plain[f"{side}.{name}"].tobytes()
            assert got[f"{side}.{probed}"].tobytes() == probe[f"{side}.{name}"].tobytes()


@pytest.mark.parametrize("spec", ADAPTIVE.values(), ids=ADAPTIVE)
def test_a_restored_model_goes_on_like_the_first(spec: ModelSpec) -> None:
    for names in (("cpu", "reference"), ("reference", "cpu")):
        first, second = (create_backend(name, spec) for name in names)
        rng = np.random.default_rng(3)
        for _ in range(3):
            push_random(first, rng, 35, 20, 12)
        restore(second, first, 105)
        state = first.state()["rates"].copy()
        # A step far from the start.
        state[adaptive.STEP] = 3.0
        for model in (first, second):
            model.load_state(model.state() | {"rates": state, "events": np.array([105], np.uint64)})
            push_random(model, np.random.default_rng(4), 35, 25, 15)
        assert unlike(state_sections(second), state_sections(first)) == []


def test_a_pin_does_not_see_what_the_probe_learns() -> None:
    model = create_backend("cpu", SPECS["adaptive-negatives"])
    rng = np.random.default_rng(6)
    push_random(model, rng, 60, 20, 12)
    before = {name: view for name, view in copy_state(model).items() if name != "rates"}
    with model.pin() as pin:
        push_random(model, rng, 5, 20, 12)
        assert unlike(read_pin(pin), before) == []


def test_a_rate_moves_where_the_evidence_is_beyond_noise() -> None:
    for before, total, squares, after in (
        (0, -6.1, 4.0, 1),
        (0, 6.1, 4.0, -1),
        (24, -6.1, 4.0, 24),
        (-24, 6.1, 4.0, -24),
        (5, -6.0, 4.0, 5),
        (5, 6.0, 4.0, 5),
        (5, 0.0, 0.0, 5),
    ):
        state = np.array([before, 7.0, 16.0, total, squares])
        adaptive.end_window(state)
        assert state.tolist() == [after, 8.0 if abs(total) > 6 else 7.0, 0.0, 0.0, 0.0]
    state = np.array([0.0, 2.0**24 - 1, 16.0, 7.0, 4.0])
    adaptive.end_window(state)
    assert state[adaptive.MOVES] == 0
    assert [float(adaptive.multiple(step)) for step in (-24, -4, 0, 4, 24)] == [2.0**-6, 0.5, 1.0, 2.0, 64.0]
    steps = [np.log2(float(adaptive.multiple(step))) for step in range(-24, 26)]
    assert np.abs(np.diff(steps) - 0.25).max() < 1e-6


def test_the_probe_begins_again_as_the_model_is_with_the_rows_of_the_next_record() -> None:
    model = CpuModel(SPECS["adaptive-squared"])
    push_random(model, np.random.default_rng(8), 60, 20, 12)
    moved = model.state()["rates"].copy()
    moved[adaptive.MOVES] += 1
    model.load_state(model.state() | {"rates": moved})
    before = copy_state(model)
    # The weight is 0, so the rows change only by L2.
    push(model, [1], [3], [1.0], [0.0])
    after = state_sections(model)
    for side, key in (("users", 1), ("items", 3)):
        named = after[f"{side}.keys"] == key
        probe, rows = after[f"{side}.factor_probe"], after[f"{side}.factors"]
        assert np.allclose(probe[named], before[f"{side}.factors"][named], rtol=0.01)
        assert not np.allclose(
            before[f"{side}.factor_probe"][named], before[f"{side}.factors"][named], rtol=0.01
        )
        assert (probe[~named] == before[f"{side}.factor_probe"][~named]).all()
        assert (
            after[f"{side}.row_probe"] == np.where(named, moved[adaptive.MOVES], before[f"{side}.row_probe"])
        ).all()
        assert (rows[~named] == before[f"{side}.factors"][~named]).all()


def test_a_window_ends_with_the_record_that_fills_it() -> None:
    model = CpuModel(SPECS["adaptive-squared"])
    rng, counts = np.random.default_rng(7), []
    for events in (15, 0, 3, 40, 15):
        push_random(model, rng, events, 20, 12)
        counts.append(model.state()["rates"][adaptive.EVENTS])
    assert counts == [15, 15, 0, 0, 15]


def taught(rate: float, window: int, events: int) -> tuple[CpuModel, float]:
    """A model after noisy ratings from a matrix of rank 4, and the RMSE of its scores."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(100, 4))
    spec = make_spec(
        Loss.SQUARED, optimizer=Optimizer(learning_rate=rate, bias_learning_rate=rate), l2=0.01, init_scale=0.5,
        adaptive_rate=AdaptiveRate(window),
    )  # fmt: skip
    model = CpuModel(spec)
    users, items = rng.integers(0, 300, events), rng.integers(0, 100, events)
    values = (x[users] * y[items]).sum(axis=1) + rng.normal(size=events)
    for start in range(0, events, 100):
        part = slice(start, start + 100)
        push(model, users[part], items[part], values[part])
    users = model.users.find(np.arange(300, dtype=np.uint64), 300)
    items = model.items.find(np.arange(100, dtype=np.uint64), 100)
    (p, p_bias), (q, q_bias) = (model.gather(side, rows) for side, rows in enumerate((users, items)))
    scores = model.mean + p_bias[:, None] + q_bias + p @ q.T
    return model, float(np.sqrt(np.mean((scores - x @ y.T) ** 2)))


@pytest.mark.parametrize(("rate", "sign", "most"), [(0.01, 1, 0.8), (0.1, -1, 0.4)])
def test_a_rate_that_is_far_off_finds_back(rate: float, sign: int, most: float) -> None:
    """It starts from a rate that is too low, and from one that learns the noise."""
    model, error = taught(rate, 1024, 40_000)
    assert sign * model.state()["rates"][adaptive.STEP] >= 4
    assert error < most * taught(rate, 0, 40_000)[1]


@pytest.mark.parametrize("rate", [0.03, 0.05, 0.1])
@pytest.mark.parametrize("events", [2_000, 20_000])
def test_little_data_that_stands_still_is_learned_about_as_well_as_at_the_rate_of_the_spec(
    rate: float, events: int
) -> None:
    adapted, fixed = (taught(rate, window, events)[1] for window in (2048, 0))
    assert adapted < 1.05 * fixed


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"adaptive_rate": AdaptiveRate(15)}, "adaptive_rate.window"),
        ({"adaptive_rate": AdaptiveRate((1 << 24) + 1)}, "adaptive_rate.window"),
        ({"optimizer": Optimizer(OptimizerKind.ADAGRAD)}, "optimizer.kind"),
        ({"factor_dtype": FactorDtype.BFLOAT16}, "factor_dtype"),
        ({"loss": Loss.SOFTMAX, "rule": Rule.SOFTMAX, "negatives": 1, "history": History(16)}, "rule"),
        ({"limits": Limits(factor_max=1e15, error_max=1e21)}, "limits"),
    ],
)
def test_what_has_no_adaptive_rate_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    fields: dict[str, object] = {"loss": Loss.LOGISTIC, "adaptive_rate": AdaptiveRate(16)}
    with pytest.raises(SpecError, match=field.replace(".", r"\.")):
        make_spec(**{**fields, **changes})  # type: ignore[arg-type]
