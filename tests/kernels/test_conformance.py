"""Every backend against the reference, to the bit: what it learns with every loss, optimiser and kernel, and what it reads."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor_kernels.backend import BACKEND_NAMES, Backend, Pin, Update, create_backend
from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.spec.model import (
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
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from synthetic import (
    BACKENDS,
    LOSSES,
    SIDES,
    assert_same,
    copy_state,
    differences,
    learn_side_by_side,
    make_spec,
    pair,
    push,
    push_random,
    read_pin,
    unlike,
)

SGD, ADAGRAD = OptimizerKind.SGD, OptimizerKind.ADAGRAD
NARROW = [FactorDtype.FLOAT16, FactorDtype.BFLOAT16]
# Every loss, optimiser and kind of kernel at one vector a row; other lengths of a row for each of them once.
CASES = [(16, loss, negatives, kind) for loss, negatives in LOSSES for kind in OptimizerKind]
CASES += [
    (20, Loss.SQUARED, 0, ADAGRAD),
    (20, Loss.BPR, 3, SGD),
    (64, Loss.SQUARED, 0, SGD),
    (64, Loss.LOGISTIC, 3, ADAGRAD),
]
STORED = [
    pytest.param(name, dtype, marks=pytest.mark.gpu if name == "cuda" else ())
    for name in BACKEND_NAMES
    for dtype in FactorDtype
]
"""Every backend with all that factors can be stored as."""


@pytest.mark.parametrize("sequential", [True, False], ids=["B1", "micro"])
@pytest.mark.parametrize(("k", "loss", "negatives", "kind"), CASES)
@settings(max_examples=7)
@given(data=st.data())
def test_random_streams(k, loss, negatives, kind, sequential, data) -> None:
    if k == 16:
        k = data.draw(st.sampled_from([1, 8, 16]), "k")
    if negatives:
        # More than SAMPLED_NEGATIVES_MAX take the micro-batch kernel also at B = 1.
        negatives = data.draw(st.sampled_from([1, 2, 4, 16] if sequential else [1, 3, 17, 40]), "negatives")
    micro_batch = 1 if sequential else data.draw(st.integers(1 if negatives > 16 else 2, 120), "B")
    hot = data.draw(st.sampled_from([1.0, 2.5, 64.0]), "h")
    spec = make_spec(loss, kind, k=k, negatives=negatives, micro_batch=micro_batch, hot_row_events=hot)
    models = pair(spec)
    users, items = data.draw(st.integers(1, 12), "users"), data.draw(st.integers(1, 9), "items")
    for events in data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=3), "records"):
        seed = data.draw(st.integers(0, 2**32), "seed")
        for model in models:
            push_random(model, np.random.default_rng(seed), events, users, items)
        assert_same(*models)


@pytest.mark.parametrize("occurrences", [1, 31, 32, 33, 63, 64, 65, 96, 97])
@pytest.mark.parametrize(("loss", "negatives"), LOSSES)
def test_chunk_boundaries(loss, negatives, occurrences) -> None:
    """One item, then one user, named by just so many events of one micro-batch."""
    models = pair(make_spec(loss, micro_batch=200, negatives=negatives, hot_row_events=1e6))
    rng = np.random.default_rng(occurrences)
    values = rng.integers(0, 2, occurrences) if loss == Loss.LOGISTIC else rng.normal(size=occurrences)
    for model in models:
        push(model, range(200), [n % 50 for n in range(200)], [1.0] * 200)
        push(model, range(occurrences), [7] * occurrences, values)
        push(model, [5] * occurrences, [n % 50 for n in range(occurrences)], values)
    assert_same(*models)


@pytest.mark.parametrize("kind", [SGD, ADAGRAD])  # the others know no clumps
@pytest.mark.parametrize("negatives", [0, 1, 2, 4, 7, 8])
@pytest.mark.parametrize("loss", [Loss.LOGISTIC, Loss.BPR])
def test_clumps_of_events_that_share_no_row(loss, negatives, kind) -> None:
    """Rows repeat at every distance, and often enough not at all; the first records know one item alone."""
    models = pair(make_spec(loss, kind, negatives=max(negatives, int(loss == Loss.BPR))))
    for model in models:
        rng = np.random.default_rng(negatives)
        for events, users, items in ((1, 1, 1), (7, 9, 1), (300, 40, 30), (5, 90, 90), (400, 300, 200)):
            values = rng.integers(0, 2, events) if events % 2 and loss == Loss.LOGISTIC else None
            push(model, rng.integers(0, users, events), rng.integers(0, items, events), values)
    assert_same(*models)


@pytest.mark.parametrize(("loss", "negatives"), [(Loss.LOGISTIC, 16), (Loss.BPR, 16), (Loss.BPR, 40)])
@pytest.mark.parametrize("items", [1, 2, 3])
def test_repeated_negatives_of_one_event(loss, negatives, items) -> None:
    models = pair(make_spec(loss, negatives=negatives))
    for model in models:
        push(model, range(30), [n % items for n in range(30)], None, [0.5] * 30)
        push(model, [3] * 10, [n % items for n in range(10)])
    assert_same(*models)


@pytest.mark.parametrize("kind", OptimizerKind)
@pytest.mark.parametrize("micro_batch", [1, 64])
@pytest.mark.parametrize(("loss", "negatives"), LOSSES)
def test_extreme_inputs_stay_finite(loss, negatives, micro_batch, kind) -> None:
    check_extreme_inputs(loss, negatives, micro_batch, kind, FactorDtype.FLOAT32)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("loss", "negatives"), LOSSES)
def test_extreme_inputs_stay_finite_in_narrow_factors(loss, negatives, dtype) -> None:
    check_extreme_inputs(loss, negatives, 1, SGD, dtype)


def check_extreme_inputs(loss, negatives, micro_batch, kind, dtype) -> None:
    limits = Limits(
        users_max=64, items_max=64, value_abs_max=1e6, weight_max=1e3, error_max=1e6, factor_max=1e3
    )
    optimizer = Optimizer(kind, 100.0, 100.0, 0.0, 1e-20 if kind == OptimizerKind.LAZY_ADAM else 1e-30)
    spec = make_spec(
        loss,
        kind,
        optimizer=optimizer,
        limits=limits,
        negatives=negatives,
        micro_batch=micro_batch,
        l2=100.0,
        bias_l2=100.0,
        init_scale=2e3,
        hot_row_events=1e9,
        factor_dtype=dtype,
    )
    value, models = (1.0 if loss == Loss.LOGISTIC else 1e6), pair(spec)
    for model in models:
        for sign in (1.0, -1.0) if loss == Loss.SQUARED else (1.0, 0.0):
            push(
                model, [n % 5 for n in range(90)], [n % 4 for n in range(90)], [sign * value] * 90, [1e3] * 90
            )
    assert_same(*models)
    for name, view in copy_state(models[0]).items():
        assert np.isfinite(widened(view) if name.endswith("factors") else view).all(), name
    assert np.abs(widened(models[0].items.factors)).max() <= 1e3  # which all three types can say


@pytest.mark.parametrize("name", BACKENDS)
def test_an_empty_record_moves_only_the_revision(name) -> None:
    model = create_backend(name, make_spec(Loss.SQUARED))
    push(model, [1], [2], [3.0])
    before = copy_state(model)
    push(model, [], [], [])
    assert model.revision == 2
    model.advance(9)
    model.users.allocate(np.array([77], np.uint64))  # allocated ahead of what is published
    assert (model.revision, model.published) == (9, (1, 1))
    after = copy_state(model)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    model.advance(10, 2, 1)
    assert model.published == (2, 1)


@pytest.mark.parametrize(("name", "dtype"), STORED)
def test_a_restored_model_goes_on_like_the_first(name, dtype) -> None:
    spec = make_spec(Loss.SQUARED, ADAGRAD, factor_dtype=dtype)
    first, second = create_backend(name, spec), create_backend(name, spec)
    rng = np.random.default_rng(4)
    push_random(first, rng, 80, 10, 8)
    for side, count in enumerate(first.published):
        sections = {section: view.copy() for section, view in first.sections(side, count).items()}
        second.load_sections(side, sections, count)
    second.load_state(first.state())
    second.advance(first.revision, *first.published)
    assert differences(first, second) == []
    for model in (first, second):
        push_random(model, np.random.default_rng(5), 80, 20, 16)
    assert differences(first, second) == []


def test_models_in_many_threads_learn_the_same() -> None:
    """Kernels release the GIL: what a model learns must not depend on what runs beside it."""
    specs = [make_spec(Loss.BPR, ADAGRAD, negatives=3, micro_batch=batch) for batch in (1, 7)]
    specs.append(make_spec(Loss.SOFTMAX, rule=Rule.SOFTMAX, negatives=9, micro_batch=30, history=History(16)))
    models = [create_backend("cpu", spec) for spec in specs for _ in range(3)]
    learn_side_by_side(models)
    for group in (models[:3], models[3:6], models[6:]):
        assert differences(group[0], group[1]) == differences(group[0], group[2]) == []


def test_two_records_are_one_at_the_same_micro_batches() -> None:
    """Without negatives (whose draws take the revision) only the cut into micro-batches counts."""
    whole, halves = (create_backend("cpu", make_spec(Loss.SQUARED, micro_batch=8)) for _ in range(2))
    rng = np.random.default_rng(2)
    users, items, values = rng.integers(0, 9, 64), rng.integers(0, 7, 64), rng.normal(size=64)
    push(whole, users, items, values)
    push(halves, users[:24], items[:24], values[:24])
    push(halves, users[24:], items[24:], values[24:])
    assert differences(whole, halves) == []


def test_missing_columns_mean_one() -> None:
    for loss, negatives in LOSSES:
        models = [create_backend("cpu", make_spec(loss, negatives=negatives)) for _ in range(2)]
        push(models[0], range(9), [n % 4 for n in range(9)])
        push(models[1], range(9), [n % 4 for n in range(9)], [1.0] * 9, [1.0] * 9)
        assert differences(*models) == []


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

READ_CASES = [(3, Loss.SQUARED, 0, SGD), (20, Loss.BPR, 3, ADAGRAD), (64, Loss.LOGISTIC, 2, SGD)]
LISTS_ASKED = (1, 3, 70)
"""Users asked at once: some few, and more than one matrix product takes."""


def taught(name: str, spec: ModelSpec) -> Backend:
    """A model of backend `name` that has seen three records: 90 users and 200 items at most."""
    model = create_backend(name, spec)
    for turn in range(3):
        push_random(model, np.random.default_rng(turn), 200, 90, 200)
    return model


def push_known(model: Backend, rng: np.random.Generator) -> None:
    """A record of 100 events that allocates no row."""
    rows = [rng.integers(0, count, 100).astype(np.uint32) for count in model.published]
    values = rng.normal(size=100).astype(np.float32)
    model.apply(Update(model.revision + 1, *rows, values, None, *model.published))


def gathered(model: Backend | Pin, counts: tuple[int, int]) -> dict[str, np.ndarray]:
    """Rows of both sides in any order, some of them twice and some unknown."""
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
    """Top-k of few and of many users, with and without exclusions."""
    users, items = pin.counts
    answers = {}
    for asked in LISTS_ASKED:
        rows = rng.integers(0, users, asked).astype(np.uint32)
        rows[-1] = NO_ROW  # nobody: by the item biases
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
        assert unlike(pin.state(), expected.state()) == []
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
    assert unlike(copy_state(model), before) == []  # a read leaves the digest unchanged


@pytest.mark.parametrize(("name", "dtype"), STORED)
def test_a_pin_is_its_revision_whatever_is_learned_after_it(name, dtype) -> None:
    spec = make_spec(Loss.BPR, ADAGRAD, k=20, negatives=3, factor_dtype=dtype)
    model, judge = taught(name, spec), taught("reference", spec)
    with model.pin() as first:
        of_first = read_pin(first) | best(first, np.random.default_rng(1))
        for each in (model, judge):
            push_random(each, np.random.default_rng(7), 300, 120, 260)
        with model.pin() as second:
            push_known(model, np.random.default_rng(8))
            push_random(model, np.random.default_rng(8), 300, 150, 300)
            assert (first.revision, second.revision, model.revision) == (3, 4, 6)
            assert unlike(read_pin(first) | best(first, np.random.default_rng(1)), of_first) == []
            with judge.pin() as expected:
                assert unlike(read_pin(second), read_pin(expected)) == []
                of_second, wanted = (best(pin, np.random.default_rng(2)) for pin in (second, expected))
                assert unlike(of_second, wanted) == []
        second.release()
        assert unlike(read_pin(first), {name: of_first[name] for name in read_pin(first)}) == []
    push_known(judge, np.random.default_rng(8))
    push_random(judge, np.random.default_rng(8), 300, 150, 300)
    assert differences(model, judge) == []  # what was pinned meanwhile changes no bit


@pytest.mark.parametrize(("name", "dtype"), STORED)
def test_a_pin_is_read_without_the_gate_while_updates_go_on(name, dtype) -> None:
    model = taught(name, make_spec(Loss.BPR, ADAGRAD, k=20, negatives=3, factor_dtype=dtype))
    turns, revisions, events = (
        (2, 1, 5) if name == "reference" else (6, 2, 100)
    )  # it learns and reads in plain Python
    gate, wanted, stop, learned = threading.Lock(), threading.Event(), threading.Event(), []

    def learn() -> None:
        rng = np.random.default_rng(5)
        while not stop.is_set():
            while (
                wanted.is_set()
            ):  # a lock is not fair: who holds it nearly always would get it nearly always
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
    sys.setswitchinterval(1e-5)  # so that the threads meet everywhere
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
    model.wait_for_room(1 << 20)  # nobody has pinned anything
    assert (model.users.allocated, model.items.allocated) == allocated
    assert unlike(copy_state(model), before) == []
    for table in (model.users, model.items):
        assert table.row_bytes == 8 + 2 * (32 * 4 + 4)
        assert table.keymap.nbytes >= 8 * table.allocated
