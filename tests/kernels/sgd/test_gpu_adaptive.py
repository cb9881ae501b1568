"""The adaptive learning rate on the GPU backend against the reference, bit by bit, on a GPU or in
the simulator.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpu_models import LAUNCHES, TOGETHER, WALK, assert_same, combinations, long_in_simulator, pair
from livefactor_kernels import cuda
from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device import plan as cuda_plan
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.history import cuda as recording
from livefactor_kernels.sgd import adaptive, cuda_adaptive
from livefactor_kernels.spec.model import (
    AdaptiveRate,
    History,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    Regularization,
    Replay,
)
from synthetic import LOSSES, differences, make_spec, push, push_random, read_pin, restore, unlike

pytestmark = [] if SIMULATED else [pytest.mark.gpu]

FULL = 16
"""Number of events of a record that fills a window."""


def spec_of(loss: Loss, **changes: object) -> ModelSpec:
    fields = {"k": 16, "optimizer": Optimizer(learning_rate=0.02, bias_learning_rate=0.02), "micro_batch": 4}
    return make_spec(loss, **{**fields, "adaptive_rate": AdaptiveRate(16), **changes})


def push_learnable(model: Backend, seed: int, events: int) -> None:
    """Events for which the learning rate is too low."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 3, events), rng.integers(0, 5, events)
    if model.spec.loss == Loss.SQUARED:
        push(model, users, items, 6.0 * (users % 2) - 3.0)
    elif model.spec.loss == Loss.BPR:
        push(model, users, items % 2)
    else:
        push(model, users, items, items < 3 if model.spec.negatives else users % 2)


def check_learning(spec: ModelSpec, walk: int) -> None:
    """The rates change, and a window is incomplete at the comparison of the states."""
    models = pair(spec, walk)
    for model in models:
        push_random(model, np.random.default_rng(9), 3, 2, 6)
        for turn, events in enumerate((FULL, FULL, 6, 5)):
            push_learnable(model, turn, events)
    step, moves, events, total, _ = models[0].state()["rates"]
    assert step >= 1 and moves >= 1 and events == 11 and total != 0
    assert_same(*models)


@pytest.mark.parametrize(
    ("loss", "negatives"),
    # The simulator learns the other losses in the tests below.
    [pytest.param(*each, marks=long_in_simulator(each[0] != Loss.SQUARED)) for each in LOSSES],
)
def test_it_learns_what_the_reference_learns(loss, negatives) -> None:
    check_learning(spec_of(loss, negatives=negatives), LAUNCHES)


@pytest.mark.parametrize(("batch", "walk"), [(1, WALK), (4, TOGETHER)])
def test_it_learns_alike_whatever_is_launched(batch, walk) -> None:
    check_learning(spec_of(Loss.BPR, negatives=3, micro_batch=batch), walk)


@pytest.mark.parametrize("loss", [Loss.SQUARED, pytest.param(Loss.BPR, marks=long_in_simulator(True))])
def test_beside_replay_histories_and_regularization(loss) -> None:
    """Replayed events are no evidence. Dropout does not affect the scores of the evidence."""
    bounds = Regularization(0.5, 1.5, 0.5, 0.25)
    more = {"k": 20, "history": History(16, 16), "replay": Replay(8, 0.5), "regularization": bounds}
    check_learning(spec_of(loss, negatives=2 * (loss == Loss.BPR), **more), LAUNCHES)


def test_a_record_in_spans_and_pieces(monkeypatch) -> None:
    """All evidence is computed from the state before the record, and summed in the order of its
    events.
    """
    for module in (recording, cuda_adaptive):
        monkeypatch.setattr(module, "PIECE_EVENTS", 8)
    monkeypatch.setattr(cuda_plan, "SPAN_ENTRIES", 48)
    monkeypatch.setattr(cuda_adaptive, "_TILE_EVENTS", 5)
    check_learning(spec_of(Loss.LOGISTIC, negatives=2, micro_batch=2), WALK)


def test_the_host_reads_the_evidence_once_a_window(monkeypatch) -> None:
    """A read waits for the device. A window has 16 events, so the fourth record of 4 fills it."""
    model, reads = CudaModel(spec_of(Loss.SQUARED)), [0]
    fetch = model.device.fetch

    def counted(arrays):
        reads[-1] += 1
        return fetch(arrays)

    monkeypatch.setattr(model.device, "fetch", counted)
    for turn in range(5):
        push_learnable(model, turn, 4)
        reads.append(0)
    assert reads[:5] == [0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("first", "second", "last"), combinations([("cuda", "cpu"), ("cpu", "cuda")], [5, FULL])
)
def test_a_restored_model_goes_on_like_the_first(first, second, last) -> None:
    first, second = (create_backend(name, spec_of(Loss.LOGISTIC)) for name in (first, second))
    for turn, events in enumerate((FULL, FULL, last)):
        push_learnable(first, turn, events)
    restore(second, first, 0)
    assert differences(first, second) == [] and first.state()["rates"][adaptive.MOVES] > 0
    state = first.state()["rates"].copy()
    # A step far from the start.
    state[adaptive.STEP] = 5.0
    for model in (first, second):
        model.load_state(model.state() | {"rates": state})
        push_learnable(model, 7, 9)
        push_learnable(model, 8, FULL)
    assert differences(first, second) == []


def test_a_pin_does_not_see_what_the_probe_learns_nor_that_it_begins_again() -> None:
    models = pair(spec_of(Loss.LOGISTIC, negatives=2))
    for model in models:
        for turn in range(2):
            push_learnable(model, turn, FULL)
    # All rows of the probe start again at the next record.
    assert models[0].state()["rates"][adaptive.MOVES] > 0
    with models[0].pin() as pin, models[1].pin() as expected:
        before = read_pin(expected)
        for model in models:
            push_learnable(model, 2, 9)
        assert unlike(read_pin(pin), before) == []
        assert {"users.factor_probe", "items.row_probe"} <= before.keys()
    assert_same(*models)


def test_probes_begin_again_where_nothing_can_be_learned() -> None:
    """BPR with one item. A pin has a copy of the state."""
    models = pair(spec_of(Loss.BPR, negatives=1))
    for model in models:
        push(model, [0, 1], [0, 0])
        model.load_state(model.state() | {"rates": np.array([2.0, 3.0, 4.0, 0.5, 1.5])})
    with models[0].pin() as pin:
        before = read_pin(pin)
        for model in models:
            push(model, [1], [0])
        assert unlike(read_pin(pin), before) == []
    assert_same(*models)
    assert models[0].state()["rates"].tolist() == [2.0, 3.0, 5.0, 0.5, 1.5]
    assert models[0].sections(1, 1)["row_probe"].tolist() == [3.0]


def test_extreme_inputs_stay_finite() -> None:
    limits = Limits(users_max=64, items_max=64, value_abs_max=1e6, error_max=1e6, factor_max=1e3)
    rates = {"optimizer": Optimizer(learning_rate=0.3), "adaptive_rate": AdaptiveRate(1 << 24)}
    models = pair(spec_of(Loss.SQUARED, limits=limits, **rates))
    for model in models:
        for turn in range(2):
            values = np.random.default_rng(turn).choice([-1e4, 1e4], FULL)
            push(model, np.arange(FULL) % 3, np.arange(FULL) % 2, values)
    assert_same(*models)
    assert 1e20 < models[0].state()["rates"][adaptive.SQUARES] < np.inf


def test_every_kernel_is_known_before_the_first_update() -> None:
    plain, adapted = (
        cuda._compile_kernels(cuda._kind_of(spec_of(Loss.SQUARED, adaptive_rate=AdaptiveRate(window))))
        for window in (0, 2048)
    )
    # Each of two records adds evidence, its sums, a start of rows, and the probe's micro-batches.
    assert adapted > plain + 6
