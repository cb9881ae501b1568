"""The GPU backend against the reference, bit by bit.

The tests run on a GPU if there is one. They are small, because the simulator runs them, too
(`test_gpu_simulated.py`).
"""

from __future__ import annotations

import numpy as np
import pytest

from gpu_models import EVENTS, LAUNCHES, TOGETHER, WALK, asked, assert_same, combinations, gathered, pair
from livefactor_kernels import cuda
from livefactor_kernels.backend import Update
from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device import plan as cuda_plan
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.scoring import cuda as cuda_top_k
from livefactor_kernels.spec.model import History, Loss, ModelSpec, OptimizerKind, Replay
from livefactor_kernels.tables import USERS
from synthetic import copy_state, differences, make_spec, push, push_random, read_pin, unlike

pytestmark = [] if SIMULATED else [pytest.mark.gpu]

SGD, ADAGRAD = OptimizerKind.SGD, OptimizerKind.ADAGRAD
LOSSES = ((Loss.SQUARED, 0), (Loss.LOGISTIC, 0), (Loss.LOGISTIC, 3), (Loss.BPR, 3))


@pytest.mark.parametrize(
    ("loss", "negatives", "batch", "walk", "kind"),
    combinations(LOSSES, [(1, WALK), (4, WALK), (4, LAUNCHES), (4, TOGETHER)], [SGD, ADAGRAD]),
)
def test_it_learns_what_the_reference_learns(loss, negatives, kind, batch, walk) -> None:
    """Growing tables, explicit zeros, repeated rows, hot rows, and a short last micro-batch."""
    spec = make_spec(loss, kind, k=20, negatives=negatives, micro_batch=batch, hot_row_events=1.5)
    models = pair(spec, walk)
    for turn, events in enumerate((EVENTS, EVENTS // 2)):
        for model in models:
            push_random(model, np.random.default_rng(turn), events, 4 + 3 * turn, 3 + 2 * turn)
    assert_same(*models)


@pytest.mark.parametrize(
    ("loss", "negatives", "events", "walk"),
    combinations([(Loss.SQUARED, 0, 70), (Loss.BPR, 16, 5)], [WALK, LAUNCHES]),
)
def test_rows_of_several_chunks(loss, negatives, events, walk) -> None:
    """One user and one item have all events, so their sums take more than two chunks."""
    models = pair(make_spec(loss, ADAGRAD, k=1, negatives=negatives, micro_batch=100), walk)
    for model in models:
        push(model, range(3), range(3))
        push(model, [2] * events, [1] * events, np.random.default_rng(1).normal(size=events))
    assert_same(*models)


def test_a_row_of_many_chunks_is_summed_in_order() -> None:
    """A row has more chunk sums than a thread loads at once (`sgd/cuda_micro_batch.py`)."""
    models = pair(make_spec(Loss.SQUARED, k=1, micro_batch=400, hot_row_events=1e6), LAUNCHES)
    events = 32 * 9 + 1
    for model in models:
        push(model, [5] * events, [7] * events, np.random.default_rng(1).normal(size=events))
    assert_same(*models)


@pytest.mark.parametrize(
    ("loss", "negatives", "items"), combinations([(Loss.LOGISTIC, 4), (Loss.BPR, 4)], [1, 2])
)
def test_repeated_negatives_of_one_event(loss, negatives, items) -> None:
    models = pair(make_spec(loss, negatives=negatives))
    for model in models:
        push(model, range(4), [n % items for n in range(4)], None, [0.5] * 4)
        push(model, [3] * 2, [n % items for n in range(2)])
    assert_same(*models)


@pytest.mark.parametrize(("loss", "negatives"), [(Loss.SQUARED, 0), (Loss.BPR, 2)])
def test_a_record_of_several_spans(loss, negatives, monkeypatch) -> None:
    monkeypatch.setattr(cuda_plan, "SPAN_ENTRIES", 24)
    models = pair(make_spec(loss, negatives=negatives, micro_batch=2), LAUNCHES)
    for model in models:
        push_random(model, np.random.default_rng(3), 11, 4, 4)
    assert_same(*models)


def test_the_launches_of_a_micro_batch_are_three() -> None:
    """A record takes three launches and one for its new rows, in addition to those that order its
    occurrences.
    """
    model = CudaModel(make_spec(Loss.LOGISTIC, negatives=1, micro_batch=2), walk_entries_max=LAUNCHES)
    push(model, [1, 2, 3, 4], [1, 2, 1, 2])
    before = model.device.launches
    push(model, [1, 2, 3, 4, 1, 2], [1, 2, 1, 2, 1, 2])
    assert model.device.launches - before == 3 + 3 * 3
    model = CudaModel(make_spec(Loss.SQUARED))
    push(model, [1, 2, 3, 4], [1, 2, 1, 2])
    assert model.device.launches == 2 + 3 + 1


@pytest.mark.parametrize(("loss", "negatives"), LOSSES)
def test_kernels_are_compiled_by_a_small_model(loss, negatives) -> None:
    """A small model launches every kernel of updates and reads once. Other models of its kind then
    compile nothing on a GPU.
    """
    compile_kernels = cuda._compile_kernels.__wrapped__
    assert compile_kernels(cuda._kind_of(make_spec(loss, ADAGRAD, negatives=negatives))) > 20


def test_missing_columns_mean_one() -> None:
    for loss in (Loss.SQUARED, Loss.LOGISTIC):
        models = [CudaModel(make_spec(loss)) for _ in range(2)]
        push(models[0], range(3), [n % 2 for n in range(3)])
        push(models[1], range(3), [n % 2 for n in range(3)], [1.0] * 3, [1.0] * 3)
        assert differences(*models) == []
        assert models[0].mean == models[1].mean


def test_an_empty_record_moves_only_the_revision() -> None:
    model = CudaModel(make_spec(Loss.SQUARED))
    push(model, [1], [2], [3.0])
    before = copy_state(model)
    push(model, [], [], [])
    # The row is allocated before it is published.
    model.users.allocate(np.array([77], np.uint64))
    assert (model.revision, model.published) == (2, (1, 1))
    assert unlike(copy_state(model), before) == []
    model.advance(10, 2, 1)
    judge = ReferenceModel(model.spec)
    push(judge, [1], [2], [3.0])
    judge.users.allocate(np.array([77], np.uint64))
    judge.advance(10, 2, 1)
    assert_same(model, judge)


def test_bpr_with_one_item_changes_nothing() -> None:
    models = pair(make_spec(Loss.BPR, negatives=2))
    for model in models:
        push(model, [1, 2], [5, 5])
    assert_same(*models)


@pytest.mark.parametrize(
    ("loss", "negatives", "walk"), combinations([(Loss.SQUARED, 0), (Loss.BPR, 2)], [WALK, LAUNCHES])
)
def test_it_replays_what_the_reference_replays(loss, negatives, walk) -> None:
    """Micro-batches of fresh and replayed events, with histories, and with a pin that sees none of
    them.
    """
    spec = make_spec(
        loss, k=20, negatives=negatives, micro_batch=4, replay=Replay(6, 0.75), history=History(16, 16)
    )
    model, judge = pair(spec, walk)
    for each in (model, judge):
        push_random(each, np.random.default_rng(1), EVENTS, 5, 4)
    with model.pin() as pin, judge.pin() as expected:
        for turn, events in enumerate((1, 0, EVENTS)):
            model.wait_for_room(events)
            for each in (model, judge):
                push_random(each, np.random.default_rng(turn), events, 6, 4)
        assert unlike(read_pin(pin, 20), read_pin(expected, 20)) == []
    assert_same(model, judge)
    restored = CudaModel(spec)
    for side, count in enumerate(judge.published):
        restored.load_sections(side, judge.sections(side, count), count)
    restored.load_state(judge.state() | {"events": np.array([2 * EVENTS + 1], np.uint64)})
    restored.advance(judge.revision, *judge.published)
    for each in (restored, judge):
        push_random(each, np.random.default_rng(5), EVENTS, 6, 4)
    assert_same(restored, judge)


def test_wrong_sections_are_refused_and_leave_the_table_empty() -> None:
    judge, model = ReferenceModel(make_spec(Loss.SQUARED)), CudaModel(make_spec(Loss.SQUARED))
    push(judge, [1, 2, 3], [1, 2, 3], [1.0] * 3)
    good = judge.sections(USERS, 3)
    for bad in ({**good, "keys": np.array([1, 2, 1], np.uint64)}, {"keys": good["keys"]}):
        with pytest.raises(ValueError, match="load_sections"):
            model.load_sections(USERS, bad, 3)
        assert model.users.allocated == 0


def test_malformed_columns_are_refused() -> None:
    model = CudaModel(make_spec(Loss.SQUARED))
    rows = model.users.allocate(np.arange(4, dtype=np.uint64))
    with pytest.raises(ValueError, match="values"):
        model.apply(Update(1, rows, rows, np.ones(4), None, 4, 4))
    assert model.revision == 0


# ---------------------------------------------------------------- reads


def taught(spec: ModelSpec) -> tuple[CudaModel, ReferenceModel]:
    models = pair(spec)
    for model in models:
        push_random(model, np.random.default_rng(0), 9, 6, 7)
    return models


@pytest.mark.parametrize(("k", "kind"), [(3, SGD), (20, ADAGRAD)])
def test_it_reads_what_the_reference_reads(k, kind) -> None:
    model, judge = taught(make_spec(Loss.SQUARED, kind, k=k, micro_batch=14))
    before = copy_state(model)
    assert unlike(gathered(model, model.published), gathered(judge, judge.published)) == []
    with model.pin() as pin, judge.pin() as expected:
        assert (pin.revision, pin.counts) == (1, model.published)
        assert unlike(pin.state(), expected.state()) == []
        assert unlike(gathered(pin, pin.counts), gathered(expected, pin.counts)) == []
        assert unlike(read_pin(pin), read_pin(expected)) == []
        for users in (1, 4):
            assert unlike(asked(pin, users), asked(expected, users)) == []
        with pytest.raises(IndexError, match="expected within"):
            pin.read_rows(USERS, 0, pin.counts[USERS] + 1)
        with pytest.raises(ValueError, match="k: expected"):
            pin.top_k(np.zeros((1, model.spec.k_padded), np.float32), np.zeros(1, np.float32), -1)
    assert unlike(copy_state(model), before) == []


def test_a_pin_is_its_revision_whatever_is_learned_after_it() -> None:
    model, judge = taught(make_spec(Loss.BPR, ADAGRAD, k=20, negatives=1, micro_batch=8))
    with model.pin() as first, judge.pin() as of_first:
        for each in (model, judge):
            push_random(each, np.random.default_rng(7), 4, 8, 9)
        with model.pin() as second, model.pin() as third, judge.pin() as of_second:
            # Pins of one revision share their copies.
            assert len(model.pins.frozen) == 2
            for each in (model, judge):
                push_random(each, np.random.default_rng(8), 4, 9, 9)
            assert (first.revision, second.revision, model.revision) == (1, 2, 3)
            for pin, expected in ((first, of_first), (second, of_second), (third, of_second)):
                assert unlike(read_pin(pin, 20), read_pin(expected, 20)) == []
            for users in (1, 4):
                assert unlike(asked(first, users), asked(of_first, users)) == []
        second.release()
        assert unlike(read_pin(first, 20), read_pin(of_first, 20)) == []
    assert model.pins.frozen == []
    # The pins have changed no bit.
    assert_same(model, judge)


def test_equal_scores_are_ordered_by_key(monkeypatch) -> None:
    # The device scores a few users at a time.
    monkeypatch.setattr(cuda_top_k, "SCORES_AT_ONCE", 16)
    model = CudaModel(make_spec(Loss.SQUARED, init_scale=0.0))
    push(model, [1], [9], [0.0])
    model.items.allocate(np.array([3, 7, 5, 1], np.uint64))
    model.advance(2, 1, 5)
    with model.pin() as pin:
        users = pin.gather(USERS, np.zeros(5, np.uint32))
        rows, scores, offsets = pin.top_k(*users, 3)
        assert model.items.keys[rows].tolist() == [1, 3, 5] * 5
        assert offsets.tolist() == [0, 3, 6, 9, 12, 15] and not scores.any()
        rows, scores, offsets = pin.top_k(*users, 3, np.arange(5, dtype=np.uint32))
        # All items are excluded.
        assert (rows.size, scores.size, offsets.tolist()) == (0, 0, [0] * 6)


def test_the_writer_waits_for_room_until_a_pin_is_released() -> None:
    model = CudaModel(make_spec(Loss.SQUARED, micro_batch=20))
    model.pins.rows_max = 5
    push(model, range(8), range(8), [1.0] * 8)
    # There is no pin.
    assert model.pins.wait_for_room(10_000, timeout=0)
    pin = model.pin()
    # The number is above the cap, but there are no copies yet.
    assert model.pins.wait_for_room(10_000, timeout=0)
    push(model, [1, 1, 1, 1], [2, 2, 2, 2], [1.0] * 4)
    # There is one copy, because a row is copied once.
    assert model.pins.wait_for_room(4, timeout=0)
    push(model, [1, 2, 3, 4], [1, 2, 3, 4], [1.0] * 4)
    assert not model.pins.wait_for_room(4, timeout=0.01)
    pin.release()
    pin.release()
    assert model.pins.wait_for_room(4, timeout=0)


def test_memory_has_a_limit() -> None:
    spec = make_spec(Loss.SQUARED, ADAGRAD)
    model = CudaModel(spec, device_bytes_max=4096 if SIMULATED else 64 << 20)
    assert model.reserve(10, 10) and model.reserve(3, 3)
    assert model.users.row_bytes == 8 + 2 * (64 + 4)
    push(model, range(5), range(5), [0.0] * 5)
    # On a GPU the smallest piece of memory has more rows than the spec allows.
    if SIMULATED:
        assert not model.reserve(30, 10)
        before = copy_state(model)
        with pytest.raises(MemoryError, match="too little memory"):
            push(model, range(30), range(30), [0.0] * 30)
        assert (model.revision, model.published) == (1, (5, 5))
        assert unlike(copy_state(model), before) == []
