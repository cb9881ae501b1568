"""Optimisers and regularisation on the GPU backend against the reference, bit by bit.

The tests run on a GPU or in the simulator.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpu_models import EVENTS, LAUNCHES, TOGETHER, WALK, assert_same, combinations, pair
from livefactor_kernels import cuda
from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device import plan as cuda_plan
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.spec.model import (
    FactorDtype,
    History,
    Loss,
    Optimizer,
    OptimizerKind,
    Regularization,
    Replay,
)
from specs import POPULARITY, push_lists, softmax_spec
from synthetic import LOSSES, differences, make_spec, push_random, read_pin, unlike

pytestmark = [] if SIMULATED else [pytest.mark.gpu]

SGD, ADAGRAD = OptimizerKind.SGD, OptimizerKind.ADAGRAD
ROWWISE, ADAM, FTRL = OptimizerKind.ROWWISE_ADAGRAD, OptimizerKind.LAZY_ADAM, OptimizerKind.FTRL
NEW = (ROWWISE, ADAM, FTRL)
FREE, CLIPPED = Regularization(), Regularization(gradient_norm_max=0.05, row_norm_max=0.15)


def optimizer(kind: OptimizerKind) -> Optimizer:
    return Optimizer(kind, 0.07, 0.03, 0.1, 1e-6, l1=0.01)


def check_learning(
    kind, loss, negatives, batch, walk, bounds=FREE, dtype=FactorDtype.FLOAT32, **changes
) -> None:
    spec = make_spec(
        loss, k=20, negatives=negatives, micro_batch=batch, hot_row_events=1.5, optimizer=optimizer(kind),
        factor_dtype=dtype, regularization=bounds, **changes,
    )  # fmt: skip
    models = pair(spec, walk)
    for turn, events in enumerate((EVENTS, EVENTS // 2)):
        for model in models:
            push_random(model, np.random.default_rng(turn), events, 4 + 3 * turn, 3 + 2 * turn)
    assert_same(*models)


@pytest.mark.parametrize(("kind", "loss", "negatives"), combinations(NEW, LOSSES))
def test_it_learns_what_the_reference_learns(kind, loss, negatives) -> None:
    check_learning(kind, loss, negatives, 4, LAUNCHES)


@pytest.mark.parametrize(("kind", "batch", "walk"), combinations(NEW, [(1, WALK), (4, WALK), (4, TOGETHER)]))
def test_it_learns_alike_whatever_is_launched(kind, batch, walk) -> None:
    check_learning(kind, Loss.BPR, 3, batch, walk)


@pytest.mark.parametrize(("kind", "walk"), combinations(OptimizerKind, [WALK, LAUNCHES]))
def test_clipped_gradients_and_rows(kind, walk) -> None:
    check_learning(kind, Loss.LOGISTIC, 2, 4, walk, CLIPPED)


@pytest.mark.parametrize(
    ("kind", "dtype"), combinations(OptimizerKind, [FactorDtype.FLOAT16, FactorDtype.BFLOAT16])
)
def test_narrow_factors(kind, dtype) -> None:
    bounds = CLIPPED if kind in (SGD, FTRL) else Regularization(gradient_norm_max=0.1)
    check_learning(kind, Loss.SQUARED, 0, 4, LAUNCHES, bounds, dtype)


SCALED = {"sqrt": Regularization(l2_frequency=0.5), "events": Regularization(l2_frequency=1.0)}
DROPPED = Regularization(dropout=0.4)
ALL = Regularization(0.05, 0.15, 0.5, 0.3)


@pytest.mark.parametrize(("loss", "negatives", "name"), combinations(LOSSES, SCALED))
def test_l2_is_scaled_by_the_events_before_the_record(loss, negatives, name) -> None:
    check_learning(
        ADAGRAD, loss, negatives, 4, LAUNCHES, SCALED[name], history=History(16), l2=0.5, bias_l2=0.5
    )


@pytest.mark.parametrize(("loss", "negatives", "kind"), combinations(LOSSES, [SGD, ADAM]))
def test_dropout_drops_columns_of_each_event(loss, negatives, kind) -> None:
    check_learning(kind, loss, negatives, 4, LAUNCHES, DROPPED)


@pytest.mark.parametrize(
    ("loss", "negatives", "walk", "dtype"),
    [
        (Loss.SQUARED, 0, WALK, FactorDtype.FLOAT16),
        (Loss.LOGISTIC, 2, WALK, FactorDtype.FLOAT32),
        (Loss.BPR, 3, TOGETHER, FactorDtype.BFLOAT16),
    ],
)
def test_all_regularization_at_once(loss, negatives, walk, dtype) -> None:
    """A replayed event draws its columns by its place in the record. It does not count as an event
    of its rows.
    """
    check_learning(FTRL, loss, negatives, 3, walk, ALL, dtype, history=History(16), replay=Replay(8, 0.5))


@pytest.mark.parametrize("name", ["sqrt", "dropped", "all"])
def test_regularization_changes_what_is_learned(name) -> None:
    """The setting changes bits, so the tests above would fail if the device ignored it."""
    models = []
    for bounds in (FREE, {"dropped": DROPPED, "all": ALL, **SCALED}[name]):
        models.append(
            CudaModel(make_spec(Loss.SQUARED, micro_batch=4, history=History(16), regularization=bounds))
        )
        for seed in range(2):
            push_random(models[-1], np.random.default_rng(seed), EVENTS, 3, 3)
    assert {"users.factors", "items.factors"} <= set(differences(*models))


def test_dropout_of_a_record_in_spans(monkeypatch) -> None:
    """An event draws its columns by its number in the record, also in a later span."""
    monkeypatch.setattr(cuda_plan, "SPAN_ENTRIES", 12)
    check_learning(SGD, Loss.LOGISTIC, 2, 2, LAUNCHES, DROPPED)


@pytest.mark.parametrize("kind", OptimizerKind)
def test_rule_softmax(kind) -> None:
    """Users step at each event, and items at the end of the micro-batch. Biases are clipped."""
    bounds = Regularization(gradient_norm_max=0.3, row_norm_max=0.4)
    models = pair(
        softmax_spec(
            POPULARITY, k=18, negatives=3, micro_batch=4, optimizer=optimizer(kind), regularization=bounds
        )
    )
    for seed in (1, 2):
        for model in models:
            push_lists(model, np.random.default_rng(seed), EVENTS, 3 * seed, 4 * seed)
    assert_same(*models)


@pytest.mark.parametrize("kind", NEW)
def test_a_pin_and_a_restored_model(kind) -> None:
    """A pin reads its revision while the model learns on. A model that is loaded from it learns the
    same next.
    """
    spec = make_spec(
        Loss.SQUARED, k=20, micro_batch=4, optimizer=optimizer(kind), history=History(16), factor_dtype=FactorDtype.FLOAT16
    )  # fmt: skip
    first, judge = pair(spec)
    second = CudaModel(spec)
    for model in (first, judge):
        push_random(model, np.random.default_rng(1), 9, 5, 4)
    with first.pin() as pin, judge.pin() as expected:
        for model in (first, judge):
            push_random(model, np.random.default_rng(2), 9, 7, 6)
        saved = read_pin(pin)
        assert unlike(saved, read_pin(expected)) == []
        rows = np.arange(pin.counts[0], dtype=np.uint32)
        names = [
            name.partition(".")[2] for name in saved if name.startswith("users.") and name != "users.keys"
        ]
        assert unlike(pin.read(0, rows, names), expected.read(0, rows, names)) == []
        for side, name in enumerate(("users", "items")):
            sections = {key.partition(".")[2]: view for key, view in saved.items() if key.startswith(name)}
            second.load_sections(side, sections, pin.counts[side])
        second.load_state(pin.state())
        second.advance(pin.revision, *pin.counts)
    push_random(second, np.random.default_rng(2), 9, 7, 6)
    assert differences(first, second) == []
    assert_same(first, judge)
    assert first.users.row_bytes == judge.users.row_bytes


@pytest.mark.parametrize("kind", NEW)
def test_every_kernel_is_known_before_the_first_update(kind) -> None:
    spec = make_spec(
        Loss.LOGISTIC, negatives=1, optimizer=optimizer(kind), regularization=ALL, history=History(16)
    )
    assert cuda._compile_kernels(cuda._kind_of(spec)) > 20
