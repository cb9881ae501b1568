"""The verbs of a backend: threads, malformed input, lists of many users, room.

`test_conformance.py` compares their bits with the reference.
"""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest

from livefactor_kernels.backend import BACKEND_NAMES, Backend, Pin, Update, create_backend
from livefactor_kernels.spec.model import (
    FactorDtype,
    History,
    Loss,
    ModelSpec,
    OptimizerKind,
    Rule,
    SpecError,
)
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from synthetic import (
    BACKENDS,
    SIDES,
    copy_state,
    differences,
    learn_side_by_side,
    make_spec,
    push,
    push_random,
    read_pin,
    unlike,
)

SGD, ADAGRAD = OptimizerKind.SGD, OptimizerKind.ADAGRAD
STORED = [
    pytest.param(name, dtype, marks=pytest.mark.gpu if name == "cuda" else ())
    for name in BACKEND_NAMES
    for dtype in FactorDtype
]
"""Every backend with every type of factors."""


@pytest.mark.parametrize("name", BACKENDS)
def test_an_empty_record_moves_only_the_revision(name) -> None:
    model = create_backend(name, make_spec(Loss.SQUARED))
    push(model, [1], [2], [3.0])
    before = copy_state(model)
    push(model, [], [], [])
    assert model.revision == 2
    model.advance(9)
    # The row is allocated before it is published.
    model.users.allocate(np.array([77], np.uint64))
    assert (model.revision, model.published) == (9, (1, 1))
    after = copy_state(model)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    model.advance(10, 2, 1)
    assert model.published == (2, 1)


def test_models_in_many_threads_learn_the_same() -> None:
    """Kernels release the GIL. The result of learning does not depend on other threads."""
    specs = [make_spec(Loss.BPR, ADAGRAD, negatives=3, micro_batch=batch) for batch in (1, 7)]
    specs.append(make_spec(Loss.SOFTMAX, rule=Rule.SOFTMAX, negatives=9, micro_batch=30, history=History(16)))
    models = [create_backend("cpu", spec) for spec in specs for _ in range(3)]
    learn_side_by_side(models)
    for group in (models[:3], models[3:6], models[6:]):
        assert differences(group[0], group[1]) == differences(group[0], group[2]) == []


@pytest.mark.parametrize("name", BACKENDS)
def test_malformed_columns_are_refused(name) -> None:
    model = create_backend(name, make_spec(Loss.SQUARED))
    rows, values = model.users.allocate(np.arange(4, dtype=np.uint64)), np.ones(4, np.float32)
    model.items.allocate(np.arange(4, dtype=np.uint64))
    for changed in (
        {"values": values.astype(np.float64)},
        {"weights": values[:3]},
        {"item_rows": rows.astype(np.int64)},
        {"user_rows": np.repeat(rows, 2)[::2]},
    ):
        columns = {"user_rows": rows, "item_rows": rows, "values": values, "weights": values} | changed
        with pytest.raises(ValueError, match=next(iter(changed))):
            model.apply(Update(1, user_count=4, item_count=4, **columns))
    assert model.revision == 0


def test_the_choice_of_a_backend_names_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="cpu, cuda, reference"):
        create_backend("abacus", preset("clicks_sgd"))
    with pytest.raises(SpecError, match="k:"):
        create_backend("cpu", make_spec(Loss.SQUARED).__class__(k=0))


# ---------------------------------------------------------------- reads

READ_CASES = [(20, Loss.BPR, 3, ADAGRAD), (64, Loss.LOGISTIC, 2, SGD)]
LISTS_ASKED = (1, 3, 70)
"""Numbers of users in a call: a few, and more than one matrix product takes."""


def taught(name: str, spec: ModelSpec) -> Backend:
    """A model of backend `name` after three records, with at most 90 users and 200 items."""
    model = create_backend(name, spec)
    for turn in range(3):
        push_random(model, np.random.default_rng(turn), 200, 90, 200)
    return model


def push_known(model: Backend, rng: np.random.Generator) -> None:
    """A record of 100 events without a new row."""
    rows = [rng.integers(0, count, 100).astype(np.uint32) for count in model.published]
    values = rng.normal(size=100).astype(np.float32)
    model.apply(Update(model.revision + 1, *rows, values, None, *model.published))


def gathered(model: Backend | Pin, counts: tuple[int, int]) -> dict[str, np.ndarray]:
    """Reads rows of both sides in any order. Some occur twice, and some are unknown."""
    answers = {}
    for side, name in SIDES:
        rows = np.random.default_rng(side).integers(0, counts[side], 300).astype(np.uint32)
        rows[::11] = NO_ROW
        factors, bias = model.gather(side, rows)
        assert factors.ctypes.data % 64 == 0 and factors.flags.c_contiguous
        assert not factors[::11].any() and not bias[::11].any() and factors[1].any()
        answers |= {f"{name}.factors": factors, f"{name}.bias": bias}
    return answers


def best(pin: Pin, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Top-k lists of few and of many users, with and without exclusions."""
    users, items = pin.counts
    answers = {}
    for asked in LISTS_ASKED:
        rows = rng.integers(0, users, asked).astype(np.uint32)
        # An unknown user is ranked by the biases of the items.
        rows[-1] = NO_ROW
        queries = pin.gather(USERS, rows)
        common = np.unique(rng.integers(0, items, items // 3)).astype(np.uint32)
        own = [np.unique(rng.integers(0, items, 5 * (user % 3))).astype(np.uint32) for user in range(asked)]
        ends = np.cumsum([0, *map(len, own)])
        for k in (0, 1, 10, items + 5):
            plain = pin.top_k(*queries, k)
            some = pin.top_k(*queries, k, common, np.concatenate(own), ends)
            for kind, answer in (("all", plain), ("some", some)):
                for part, array in zip(("rows", "scores", "offsets"), answer, strict=True):
                    answers[f"{kind} {k} of {asked}: {part}"] = array
    return answers


@pytest.mark.parametrize(("name", "dtype"), STORED)
@pytest.mark.parametrize(("k", "loss", "negatives", "kind"), READ_CASES)
def test_every_backend_reads_what_the_reference_reads(name, dtype, k, loss, negatives, kind) -> None:
    spec = make_spec(loss, kind, k=k, negatives=negatives, factor_dtype=dtype)
    model, judge = taught(name, spec), taught("reference", spec)
    before = copy_state(model)
    with model.pin() as pin, judge.pin() as expected:
        assert (pin.revision, pin.counts) == (3, model.published)
        assert pin.state()["mean"].tolist() == expected.state()["mean"].tolist()
        assert pin.mean.tobytes() == expected.mean.tobytes()
        of_judge = gathered(judge, judge.published)
        assert unlike(gathered(model, model.published), of_judge) == []
        assert unlike(gathered(pin, pin.counts), of_judge) == []
        assert unlike(read_pin(pin), read_pin(expected)) == []
        answers = best(pin, np.random.default_rng(9))
        assert unlike(answers, best(expected, np.random.default_rng(9))) == []
        assert len(answers["all 10 of 3: rows"]) == 30
    for side, side_name in SIDES:
        sections = model.sections(side, 40)
        assert all(len(array) == 40 for array in sections.values())
        for section, array in sections.items():
            assert array.tobytes() == before[f"{side_name}.{section}"][:40].tobytes(), section
    # A read does not change the digest.
    assert unlike(copy_state(model), before) == []


@pytest.mark.parametrize(("name", "dtype"), STORED)
def test_a_pin_is_read_without_the_gate_while_updates_go_on(name, dtype) -> None:
    model = taught(name, make_spec(Loss.BPR, ADAGRAD, k=20, negatives=3, factor_dtype=dtype))
    turns, revisions, events = (
        (2, 1, 5) if name == "reference" else (6, 2, 100)
        # The reference learns and reads in plain Python.
    )
    gate, wanted, stop, learned = threading.Lock(), threading.Event(), threading.Event(), []

    def learn() -> None:
        rng = np.random.default_rng(5)
        while not stop.is_set():
            while (
                wanted.is_set()
                # A lock is not fair. A thread that nearly always holds it would nearly always get
                # it again.
            ):
                time.sleep(0.0005)
            user_rows = model.users.allocate(rng.integers(0, 300, events).astype(np.uint64))
            item_rows = model.items.allocate(rng.integers(0, 300, events).astype(np.uint64))
            counts = model.users.allocated, model.items.allocated
            model.wait_for_room(events)
            with gate:
                model.apply(Update(model.revision + 1, user_rows, item_rows, None, None, *counts))
            learned.append(model.revision)

    learner = threading.Thread(target=learn)
    learner.start()
    try:
        for turn in range(turns):
            wanted.set()
            with gate:
                wanted.clear()
                pin = model.pin()
                state = copy_state(model)
                expected = gathered(model, model.published) | best(pin, np.random.default_rng(turn))
            with pin:
                goal = pin.revision + revisions
                while model.revision < goal:
                    got = gathered(pin, pin.counts) | best(pin, np.random.default_rng(turn))
                    assert unlike(got, expected) == []
                    assert unlike(read_pin(pin, 23), state) == []
    finally:
        stop.set()
        learner.join()
    assert len(learned) >= turns * revisions


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_allocated_while_a_record_is_applied_cost_it_nothing(name) -> None:
    """The LOG stage runs ahead of the APPLY stage."""
    spec = make_spec(Loss.SQUARED, ADAGRAD)
    model, judge = taught(name, spec), taught("reference", spec)
    stop = threading.Event()

    def allocate() -> None:
        for key in range(1000, 3000):
            for table in (model.users, model.items):
                table.allocate(np.array([key], np.uint64))
            if stop.is_set():
                return

    other = threading.Thread(target=allocate)
    interval = sys.getswitchinterval()
    # The threads then meet at many places.
    sys.setswitchinterval(1e-5)
    try:
        other.start()
        for turn in range(8):
            push_known(model, np.random.default_rng(turn))
    finally:
        stop.set()
        other.join()
        sys.setswitchinterval(interval)
    for turn in range(8):
        push_known(judge, np.random.default_rng(turn))
    assert model.published == judge.published and model.users.allocated > model.published[USERS]
    assert differences(model, judge) == []


@pytest.mark.parametrize("name", BACKENDS)
def test_malformed_reads_are_refused(name) -> None:
    model = taught(name, make_spec(Loss.SQUARED, k=20))
    two = np.array([0, 1], np.uint32)
    with model.pin() as pin:
        users, bias = pin.gather(USERS, two)
        with pytest.raises(ValueError, match=r"user_factors: expected float32\[2, 32\]"):
            pin.top_k(users[:, :16], bias, 3)
        with pytest.raises(ValueError, match="k: expected 0 or more"):
            pin.top_k(users, bias, -1)
        with pytest.raises(ValueError, match="own_offsets: expected 3"):
            pin.top_k(users, bias, 3, None, two, np.array([0, 1]))
        push(model, [1000], [1000], [1.0])
        for side in (USERS, ITEMS):
            with pytest.raises(IndexError, match=rf"0\.\.{pin.counts[side]}"):
                pin.read_rows(side, 0, pin.counts[side] + 1)


@pytest.mark.parametrize("name", BACKENDS)
def test_room_for_few_rows_is_there_and_what_a_row_takes_is_known(name) -> None:
    model = taught(name, make_spec(Loss.SQUARED, ADAGRAD, k=20))
    before, allocated = copy_state(model), (model.users.allocated, model.items.allocated)
    assert model.reserve(1000, 500) and model.reserve(10, 10)
    # There is no pin.
    model.wait_for_room(1 << 20)
    assert (model.users.allocated, model.items.allocated) == allocated
    assert unlike(copy_state(model), before) == []
    for table in (model.users, model.items):
        assert table.row_bytes == 8 + 2 * (32 * 4 + 4)
        assert table.keymap.nbytes >= 8 * table.allocated
