"""Rows that begin with the factors of another model: the CPU backend against the reference, bit by
bit, and both against what a start promises.
"""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import (
    Counts,
    Embeddings,
    FactorDtype,
    History,
    Loss,
    Mix,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Rule,
    Softmax,
    Solve,
    SpecError,
)
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.start import Start
from specs import solve_spec
from synthetic import assert_same, copy_state, differences, push, read_pin, restore, unlike

D, KEYS = 5, 16
_ADAGRAD = Optimizer(OptimizerKind.ADAGRAD, 0.1, 0.1, 0.1)
SPECS = {
    "plain": solve_spec(solve=Solve(0.3, 3, 2, start_events=6.0)),
    "mix": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), solve=Solve(0.0, 3, 2, 10.0, start_events=6.0),
        mix=Mix(0.05),
    ),
    "embeddings": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), solve=Solve(0.0, 3, 2, 10.0, start_events=6.0),
        mix=Mix(0.05), embeddings=Embeddings(4, 2.0),
    ),
    "adam": check(ModelSpec(k=8, loss=Loss.BPR, negatives=2, optimizer=Optimizer(OptimizerKind.LAZY_ADAM))),
    "narrow": check(
        ModelSpec(k=8, negatives=2, optimizer=_ADAGRAD, factor_dtype=FactorDtype.BFLOAT16, micro_batch=4)
    ),
    "softmax": check(
        ModelSpec(
            k=8, loss=Loss.SOFTMAX, rule=Rule.SOFTMAX, negatives=4, softmax=Softmax(group_events=2),
            micro_batch=4, history=History(16), optimizer=_ADAGRAD,
        )
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def begin(model: Backend, side: int, keys: object, factors: object, bias: object = None) -> np.ndarray:
    """Allocate the keys and set the factors as the next record. Returns the rows."""
    table = (model.users, model.items)[side]
    rows = table.allocate(np.asarray(keys, np.uint64))
    numbers = None if bias is None else np.asarray(bias, np.float32)
    counts = model.users.allocated, model.items.allocated
    model.begin(Start(side, rows, np.asarray(factors, np.float32), numbers, model.revision + 1, *counts))
    return rows


def step(model: Backend, rng: np.random.Generator, turn: int) -> None:
    """Learn one record: vectors now and then, factors of a side, or events."""
    if turn == 4 and model.spec.embeddings.dimension:
        rows = model.items.allocate(np.arange(KEYS + 4, dtype=np.uint64))
        vectors = rng.normal(size=(len(rows), 4)).astype(np.float16)
        model.set_embeddings(ITEMS, rows, vectors, model.revision + 1, model.items.allocated)
    elif turn % 4 < 2:
        keys = rng.permutation(KEYS)[:7]
        bias = rng.normal(size=7) if turn % 8 < 4 else None
        begin(model, (USERS, ITEMS)[turn % 2], keys, rng.normal(size=(7, D)) * 2, bias)
    else:
        events = int(rng.integers(1, 30))
        columns = rng.integers(0, 12, events), rng.integers(0, KEYS, events)
        push(model, *columns, np.ones(events), rng.random(events) + 0.1)


def learn(model: Backend, turns: range, seed: int = 4) -> None:
    for turn in turns:
        step(model, np.random.default_rng((seed, turn)), turn)


def events_until(turns: range, spec: ModelSpec) -> int:
    return sum(
        int(np.random.default_rng((4, turn)).integers(1, 30))
        for turn in turns
        if turn % 4 >= 2 and not (turn == 4 and spec.embeddings.dimension)
    )


@EACH
def test_the_kernels_have_the_bits_of_the_reference(spec) -> None:
    fast, judge = CpuModel(spec), ReferenceModel(spec)
    for turn in range(14):
        learn(fast, range(turn, turn + 1))
        learn(judge, range(turn, turn + 1))
        assert_same(fast, judge)


@EACH
def test_a_restored_model_goes_on_to_the_same_bits(spec) -> None:
    first, second = ReferenceModel(spec), CpuModel(spec)
    learn(first, range(9))
    restore(second, first, events_until(range(9), spec))
    learn(first, range(9, 14))
    learn(second, range(9, 14))
    assert differences(second, first) == []


@EACH
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_scores_begin_as_those_of_the_other_model(spec, backend) -> None:
    """The remaining columns of users are 0, so scores are the dot products of the given factors."""
    model, rng = create_backend(backend, spec), np.random.default_rng(1)
    users, items = rng.normal(size=(6, D)), rng.normal(size=(KEYS, D))
    user_rows = begin(model, USERS, np.arange(6), users)
    item_rows = begin(model, ITEMS, np.arange(KEYS), items, np.zeros(KEYS))
    begin(model, USERS, [77], np.ones((1, D)))
    factors = model.gather(ITEMS, item_rows)[0]
    assert spec.k <= D or factors[:, D : spec.k].any()
    persons = PersonReader(spec).read(model, user_rows, KEYS)
    got, expected = persons.factors @ factors.T, users @ items.T
    # A mix scales scores: the order is that of the other model.
    assert (np.argsort(got) == np.argsort(expected)).mean() > (0.8 if spec.factor_dtype != 1 else 0.99)
    if not spec.mix.learning_rate and spec.factor_dtype == FactorDtype.FLOAT32:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_start_gives_way_to_events() -> None:
    """Many events replace what the start of a user says, and few add to it."""
    spec = solve_spec(k=8, solve=Solve(0.3, 1, 8, start_events=4.0), history=History(64, 64))
    model, rng = CpuModel(spec), np.random.default_rng(3)
    kinds = np.repeat(np.eye(2), 8, axis=0)
    begin(model, ITEMS, np.arange(16), kinds + rng.normal(size=(16, 2)) * 0.05)
    begin(model, USERS, np.arange(20), np.repeat(np.eye(2), 10, axis=0) * 0.9)
    push(model, [0], [9], np.ones(1))
    push(model, np.full(40, 1), np.tile(np.arange(8, 16), 5), np.ones(40))
    factors = model.sections(USERS, 20)["factors"][:, :2]
    # One event of the other kind adds to the taste of user 0, and 40 replace that of user 1.
    assert factors[0, 0] > factors[0, 1] > 0.0 and factors[1, 1] > 2 * factors[1, 0]
    assert (factors[2] == np.float32([0.9, 0.0])).all()


@EACH
def test_a_pin_keeps_its_revision(spec) -> None:
    model = CpuModel(spec)
    learn(model, range(6))
    before = copy_state(model)
    with model.pin() as pin:
        learn(model, range(6, 12))
        got = read_pin(pin)
        assert unlike(got, {name: before[name] for name in got}) == []
    assert unlike(copy_state(model), before) != []


def test_specs_are_checked() -> None:
    with pytest.raises(SpecError, match=r"solve\.start_events: expected 0, or 0\.001\.\.1e6"):
        solve_spec(solve=Solve(0.3, start_events=-1.0))
    with pytest.raises(SpecError, match=r"loss: expected implicit with solve\.start_events"):
        solve_spec(Loss.SQUARED, solve=Solve(start_events=2.0))
    with pytest.raises(SpecError, match=r"solve\.start_events.*backend cuda"):
        check_cuda(SPECS["plain"])
