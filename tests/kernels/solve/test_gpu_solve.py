"""Histories, counts and rule SOLVE on the GPU backend against the reference, bit by bit.

The tests are small, because the simulator runs them, too (`test_gpu_simulated.py`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpu_models import assert_same, pair
from livefactor_kernels import cuda
from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.history import cuda as history_cuda
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.solve import cuda as solve_cuda
from livefactor_kernels.spec.model import Counts, History, Loss, Optimizer, OptimizerKind, Replay, Solve
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from specs import solve_spec
from synthetic import make_spec, push, read_pin, unlike

pytestmark = [] if SIMULATED else [pytest.mark.gpu]

EVENTS = 10 if SIMULATED else 400
ADAGRAD = Optimizer(OptimizerKind.ADAGRAD, 0.07, 0.03, 0.1, 1e-6)
COUNTED = History(16, 0, 1.5)
CASES = [
    pytest.param(solve_spec(k=4, micro_batch=6), id="implicit"),
    pytest.param(solve_spec(k=3, micro_batch=1, counts=Counts()), id="implicit-B1"),
    pytest.param(solve_spec(Loss.SQUARED, k=16, micro_batch=9), id="squared"),
    pytest.param(
        solve_spec(Loss.SQUARED, k=1, micro_batch=64, solve=Solve(0.0, 1, 3)), id="squared-every-item"
    ),
    pytest.param(
        make_spec(Loss.BPR, negatives=2, optimizer=ADAGRAD, history=COUNTED, counts=Counts(16, 5)),
        id="bpr-counts",
    ),
    pytest.param(solve_spec(k=4, micro_batch=6, replay=Replay(8, 0.7)), id="implicit-replay"),
    pytest.param(solve_spec(Loss.SQUARED, k=3, micro_batch=4, replay=Replay(6, 1.5)), id="squared-replay"),
    pytest.param(make_spec(Loss.LOGISTIC, micro_batch=8, history=History(16, 32)), id="logistic-history"),
]


def push_some(models, seed: int, events: int = EVENTS, users: int = 3, items: int = 7) -> None:
    """Gives all models the same record, with repeats and baskets. The seed selects all columns or
    none.
    """
    rng = np.random.default_rng(seed)
    loss = models[0].spec.loss
    values = rng.integers(1, 6, events) if loss == Loss.SQUARED else rng.integers(0, 2, events)
    columns = (
        (values, rng.random(events) * 2 + 0.1, np.sort(rng.integers(0, 5, events))) if seed % 2 else (values,)
    )
    users, items = rng.integers(0, users, events), rng.integers(0, items, events)
    for model in models:
        push(model, users, items, *columns)


@pytest.mark.parametrize("spec", CASES)
def test_it_learns_what_the_reference_learns(spec) -> None:
    models = pair(spec)
    for seed, users in ((1, 2), (2, 4)):
        push_some(models, seed, EVENTS // seed, users=users, items=4 + 3 * seed)
        assert_same(*models)


@pytest.mark.skipif(not SIMULATED, reason="a device maps memory when it is reserved")
def test_new_rows_are_empty_in_memory_that_is_not() -> None:
    models = pair(solve_spec(k=2, micro_batch=4))
    for table in (models[0].users, models[0].items):
        for name, array in table.arrays.items():
            array.buffer.array[: 9 * table.widths[name]].view(np.uint8)[:] = 0xFF
    push_some(models, 1, 6)
    assert_same(*models)


def test_items_are_solved_when_they_are_due() -> None:
    """An item is solved at its first events, and then at every third one, also after exactly three
    events.
    """
    models = pair(solve_spec(k=2, micro_batch=4, counts=Counts()))
    for events in (3, 1, 1, 2, 4):
        for model in models:
            push(model, range(events), [7] * events)
        assert_same(*models)


@pytest.mark.parametrize(
    ("spec", "launches"),
    [
        (solve_spec(Loss.SQUARED, k=1, micro_batch=2, counts=Counts()), 5),
        (solve_spec(k=1, micro_batch=2, counts=Counts()), 7),
        (solve_spec(k=1, micro_batch=2), 8),
    ],
)
def test_the_launches_of_a_micro_batch(spec, launches) -> None:
    model = CudaModel(spec)
    push(model, [1, 2], [1, 2], [1.0, 1.0])
    before = model.device.launches
    push(model, [1, 2, 1, 2], [1, 2, 2, 1], [1.0] * 4)
    # One launch orders the record.
    assert model.device.launches - before == 1 + 2 * launches


def test_rings_go_round_and_lists_of_followers_are_full() -> None:
    """A user with more events than its ring, and an item with more followers than its list."""
    spec = make_spec(Loss.LOGISTIC, micro_batch=64, k=1, history=History(16, 16), counts=Counts(16, 3, 1.0))
    models, rng = pair(spec), np.random.default_rng(0)
    items = np.zeros(44, np.int64)
    # Each item follows item 0, which has a list of 16.
    items[1::2] = rng.permutation(22) + 1
    for model in models:
        push(model, [5] * 20, items[:20])
        push(model, [5] * 24, items[20:], None, np.linspace(0.1, 3.0, 24), np.repeat(np.arange(1, 7), 4))
    assert_same(*models)
    assert models[0].read(ITEMS, np.zeros(1, np.uint32), ("neighbor_counts",))["neighbor_counts"].all()


def test_a_record_in_pieces_and_slices(monkeypatch) -> None:
    monkeypatch.setattr(history_cuda, "PIECE_EVENTS", 8)
    monkeypatch.setattr(cuda, "PIECE_EVENTS", 8)
    # Three events fill the buffer.
    monkeypatch.setattr(history_cuda, "ADDITIONS_AT_ONCE", 20)
    counts = Counts(16, 3)
    counted = make_spec(Loss.SQUARED, micro_batch=4, history=COUNTED, counts=counts)
    for spec in (solve_spec(k=2, micro_batch=4, counts=counts), counted):
        models = pair(spec)
        push_some(models, 3, 18)
        assert_same(*models)
    models = pair(solve_spec(k=2, micro_batch=4, counts=counts, replay=Replay(16, 1.0)))
    # The second record has a piece with both kinds of events, and one with only replayed events.
    for events in (6, 9):
        push_some(models, 3, events)
    assert_same(*models)


def test_matrices_in_scratch_are_those_in_shared_memory(monkeypatch) -> None:
    monkeypatch.setattr(solve_cuda, "_SHARED_COORDINATES", 2)
    # Scratch memory for two blocks.
    monkeypatch.setattr(solve_cuda, "_MATRICES_BYTES", 2 * 4 * 25)
    solve_cuda.solve_kernel.cache_clear()
    models = pair(solve_spec(k=5, micro_batch=8, counts=Counts()))
    push_some(models, 1, 12)
    assert_same(*models)
    solve_cuda.solve_kernel.cache_clear()


@pytest.mark.parametrize("spec", [CASES[2], CASES[4]])
def test_kernels_are_compiled_by_a_small_model(spec) -> None:
    assert cuda._compile_kernels.__wrapped__(cuda._kind_of(spec)) > 20


def test_a_time_of_every_sign_is_a_visit_of_its_own() -> None:
    models = pair(make_spec(Loss.SQUARED, micro_batch=8, history=COUNTED))
    for model in models:
        push(model, [1] * 8, range(8), [1.0] * 8, None, [0, 0, -5, -5, 2**62, 2**62, 7, 0])
    assert_same(*models)
    assert models[0].read(USERS, np.zeros(1, np.uint32), ("visits", "last_time"))["visits"].tolist() == [6]


@pytest.mark.parametrize("spec", [CASES[0], CASES[4]])
def test_a_pin_is_its_revision_whatever_is_learned_after_it(spec) -> None:
    model, judge = pair(spec)
    push_some([model, judge], 1)
    rows = np.array([0, NO_ROW, 1, 1], np.uint32)
    with model.pin() as pin, judge.pin() as expected:
        for seed in (2, 3):
            # A pin covers a few rows and the followers of their items.
            push_some([model, judge], seed, users=1)
        assert unlike(read_pin(pin, 50), read_pin(expected, 50)) == []
        assert unlike(model.state(), judge.state()) == []
        for readable, wanted in ((pin, expected), (model, judge)):
            for side in (USERS, ITEMS):
                names = tuple(model._table(side).arrays)
                assert unlike(readable.read(side, rows, names), wanted.read(side, rows, names)) == []
    assert_same(model, judge)


@pytest.mark.parametrize("spec", [CASES[0], CASES[4]])
def test_persons_are_those_of_the_reference(spec) -> None:
    model, judge = pair(spec)
    push_some([model, judge], 1)
    spec = replace(spec, counts=replace(spec.counts, repeat=0.3))
    rows, reader = np.array([1, NO_ROW, 0], np.uint32), PersonReader(spec)
    with model.pin() as pin, judge.pin() as expected:
        for source, wanted in ((pin, expected), (model, judge)):
            persons, others = (reader.read(each, rows, model.published[ITEMS]) for each in (source, wanted))
            assert persons.factors.tobytes() == others.factors.tobytes()
            assert [part.tolist() for part in persons.items] == [part.tolist() for part in others.items]
            for (named, gained), (others_named, others_gained) in zip(
                persons.followers, others.followers, strict=True
            ):
                assert (named.tolist(), gained.tobytes()) == (others_named.tolist(), others_gained.tobytes())
