"""Rule SOFTMAX on the GPU backend against the reference, bit by bit.

The tests are small, because the simulator runs them, too (`test_gpu_simulated.py`).
"""

from __future__ import annotations

import numpy as np
import pytest

from gpu_models import assert_same, pair
from livefactor_kernels import cuda
from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.softmax import cuda as softmax_cuda
from livefactor_kernels.spec.model import Counts, History, OptimizerKind, Replay
from specs import ADAGRAD, IN_BATCH, POPULARITY, UNIFORM, grouped, push_lists, softmax_spec
from synthetic import push

pytestmark = [] if SIMULATED else [pytest.mark.gpu]

EVENTS = 8 if SIMULATED else 500
CASES = [
    pytest.param(softmax_spec(UNIFORM, k=4, negatives=3, micro_batch=5), id="uniform"),
    pytest.param(softmax_spec(UNIFORM, ADAGRAD, k=3, negatives=2, micro_batch=1), id="uniform-B1"),
    pytest.param(softmax_spec(POPULARITY, ADAGRAD, k=5, negatives=18, micro_batch=8), id="popularity"),
    pytest.param(
        softmax_spec(k=18, negatives=3, counts=Counts(16, 5), history=History(16, 16)), id="popularity-counts"
    ),
    pytest.param(softmax_spec(IN_BATCH, ADAGRAD, k=4, micro_batch=9), id="in-batch"),
    pytest.param(softmax_spec(k=2, negatives=2, micro_batch=3, replay=Replay(8, 1.5)), id="replay"),
    pytest.param(grouped(UNIFORM, 2, ADAGRAD, k=2, negatives=3, micro_batch=6), id="uniform-groups"),
    pytest.param(grouped(IN_BATCH, 3, k=2, micro_batch=6), id="in-batch-groups"),
]


def push_some(models, seed: int, events: int = EVENTS, users: int = 3, items: int = 7) -> None:
    for model in models:
        push_lists(model, np.random.default_rng(seed), events, users, items)


@pytest.mark.parametrize("spec", CASES)
def test_it_learns_what_the_reference_learns(spec) -> None:
    models = pair(spec)
    for seed, users in ((1, 2), (2, 4)):
        push_some(models, seed, EVENTS // seed, users=users, items=4 + 3 * seed)
        assert_same(*models)


@pytest.mark.parametrize("kind", [OptimizerKind.SGD, ADAGRAD])
def test_sums_of_more_than_a_chunk(kind) -> None:
    """One item has 33, 32 or 65 events of a micro-batch, and negatives have as many. Some events do
    not count.
    """
    models = pair(softmax_spec(UNIFORM, kind, k=1, negatives=2, micro_batch=70, hot_row_events=40.0))
    for model in models:
        push(model, range(3), range(3))
        for events in (33, 66) if SIMULATED else (31, 32, 33, 64, 65, 66):
            values = np.ones(events)
            values[5] = 0.0
            push(model, range(events), [1] * events, values)
    assert_same(*models)


def test_events_that_do_not_count_step_nothing() -> None:
    models = pair(softmax_spec(POPULARITY, ADAGRAD, k=2, negatives=2))
    for model in models:
        push(model, range(4), range(4))
        push(model, [0, 1, 1], [2, 2, 3], [0.0, 0.0, 0.0])
        push(model, [0, 1, 1], [2, 2, 3], [0.0, 1.0, 0.0])
    assert_same(*models)


def test_a_record_in_pieces(monkeypatch) -> None:
    for module in (softmax_cuda, cuda):
        monkeypatch.setattr(module, "PIECE_EVENTS", 8)
    monkeypatch.setattr("livefactor_kernels.history.cuda.PIECE_EVENTS", 8)
    models = pair(softmax_spec(k=2, negatives=2, micro_batch=4))
    push_some(models, 3, 18)
    assert_same(*models)


def test_three_launches_are_a_micro_batch() -> None:
    model = CudaModel(softmax_spec(UNIFORM, k=1, negatives=1, micro_batch=2))
    push(model, [1, 2], [1, 2])
    before = model.device.launches
    push(model, [1, 2, 1, 2], [1, 2, 2, 1])
    # Two launches order the record.
    assert model.device.launches - before == 2 + 2 * 3


def test_kernels_are_compiled_by_a_small_model() -> None:
    assert cuda._compile_kernels.__wrapped__(cuda._kind_of(grouped(IN_BATCH, 4, micro_batch=8))) > 20


def test_copies_for_pins_are_those_of_micro_batches_not_of_events() -> None:
    model = CudaModel(softmax_spec(UNIFORM, k=1, negatives=8, micro_batch=4))
    assert model.pins._copies_of(10) == (10, 10 + 3 * 8)
