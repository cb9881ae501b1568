"""Replay of past events: the CPU against the reference, bit by bit, and the reservoir against a
uniform sample.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from conformance import SPECS
from livefactor_kernels.backend import Backend, Update, create_backend, state_sections
from livefactor_kernels.replay import most_events, replay_count
from livefactor_kernels.replay.cpu import Reservoir
from livefactor_kernels.spec.model import (
    Counts,
    History,
    Loss,
    Optimizer,
    OptimizerKind,
    Replay,
    Rule,
    Solve,
    SpecError,
)
from synthetic import copy_state, make_spec, push, push_random, unlike

KEPT = ["replay.item_rows", "replay.user_rows", "replay.values", "replay.weights"]

ADAGRAD = OptimizerKind.ADAGRAD
REPLAY = Replay(24, 0.75)
HISTORY = {"history": History(16, 16), "counts": Counts(16, 4)}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["replay-squared-micro", "solve-replay-squared"])
def test_each_event_is_counted_once(backend: str, name: str) -> None:
    squared = create_backend(backend, SPECS[name])
    rng = np.random.default_rng(5)
    for _ in range(4):
        push_random(squared, rng, 50, 20, 12)
    assert squared.state()["mean"][1] == 200
    for side in (0, 1):
        assert squared.sections(side, squared.published[side])["seen_count"].sum() == 200


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_replayed_is_learned_as_the_records_last_events(backend: str) -> None:
    """The reservoir has one event. So a record of one event also learns that event at its end, with
    draws of its own.
    """
    spec = make_spec(Loss.LOGISTIC, negatives=3, replay=Replay(1, 1.0))
    model, plain = (
        create_backend(backend, spec),
        create_backend(backend, make_spec(Loss.LOGISTIC, negatives=3)),
    )
    for each in (model, plain):
        push(each, range(6), range(6), [1.0] * 6, [2.0] * 6)
    (user,), (item,) = (model.state()[f"replay.{name}"] for name in ("user_rows", "item_rows"))
    assert user == item
    push(model, [2], [4], [0.0], [0.5])
    push(plain, [2, user], [4, item], [0.0, 1.0], [0.5, 2.0])
    assert differences_of(model, plain) == KEPT


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rule_solve_solves_rows_of_replayed_events_again_and_remembers_nothing(backend: str) -> None:
    """The reservoir has one event.

    A record of another event also solves the user and the item of the replayed event again. Their
    histories are unchanged. Only the replay makes the item due.
    """
    spec = make_spec(Loss.IMPLICIT, rule=Rule.SOLVE, solve=Solve(0.5, 1), micro_batch=4, **HISTORY)
    model, plain = (create_backend(backend, each) for each in (replace(spec, replay=Replay(1, 1.0)), spec))
    users, items = [*range(6), 0, 1, 2], [*range(6), *[3] * 3]
    for each in (model, plain):
        push(each, users, items, [1.0] * 9)
    assert differences_of(model, plain) == KEPT
    kept = [int(model.state()[f"replay.{name}"][0]) for name in ("user_rows", "item_rows")]
    before = copy_state(model)
    for each in (model, plain):
        push(each, [5], [5], [1.0])
    replayed = {"users.factors", "items.factors", "gram"}
    ours = [name for name in differences_of(model, plain) if not name.startswith("replay.")]
    assert set(ours) == replayed
    for name, row in zip(("users.factors", "items.factors"), kept, strict=True):
        changed = np.flatnonzero((copy_state(model)[name] != before[name]).any(axis=1))
        assert set(changed) == {5, row}


def differences_of(one: Backend, other: Backend) -> list[str]:
    return unlike(state_sections(one), state_sections(other))


def test_the_reservoir_is_a_uniform_sample() -> None:
    """Over many seeds, the reservoir has as many events of each tenth of a stream."""
    tenths = np.zeros(10)
    for seed in range(100):
        spec = make_spec(Loss.BPR, negatives=1, seed=seed, replay=Replay(50, 1.0))
        reservoir = Reservoir(spec)
        for start in range(0, 1000, 125):
            rows = np.arange(start, start + 125, dtype=np.uint32)
            reservoir.keep(Update(1, rows, rows, None, None, 1000, 1000))
        kept = reservoir.columns["user_rows"]
        assert len(set(kept.tolist())) == 50
        assert (reservoir.columns["item_rows"] == kept).all()
        tenths += np.bincount(kept // 100, minlength=10)
    # The limit is 4.5 standard deviations. The seeds are fixed.
    assert np.abs(tenths - 500).max() < 100


def test_fractions_add_up_over_records() -> None:
    spec = make_spec(Loss.BPR, negatives=1, replay=Replay(16, 0.3))
    reservoir, replayed = Reservoir(spec), 0
    rows = np.zeros(7, np.uint32)
    for record in range(100):
        update = reservoir.extend(Update(record, rows, rows, None, None, 1, 1))
        assert update.user_rows.size <= most_events(spec, 7)
        assert update.fresh == 7
        replayed += update.replayed
        reservoir.keep(update)
    # The first record has nothing to replay.
    assert replayed == replay_count(spec, 700) - replay_count(spec, 7)
    assert replay_count(spec, 2**40) == 2**40 * int(np.float32(0.3) * 2**25) // 2**25


def forgotten(replay: Replay) -> float:
    """The RMSE on the first ratings of a model after it has learned as many ratings of other items
    by the same users.
    """
    rng = np.random.default_rng(0)
    tastes, items = rng.normal(size=(2, 60, 4)), rng.normal(size=(40, 4))
    spec = make_spec(
        Loss.SQUARED, optimizer=Optimizer(learning_rate=0.05), init_scale=0.5, l2=0.01, replay=replay
    )
    model = create_backend("cpu", spec)
    model.users.allocate(np.arange(60, dtype=np.uint64))
    model.items.allocate(np.arange(40, dtype=np.uint64))
    pairs = [[part.ravel() for part in np.mgrid[:60, phase : phase + 20]] for phase in (0, 20)]
    truth = [
        (tastes[phase, u] * items[i]).sum(axis=1).astype(np.float32) for phase, (u, i) in enumerate(pairs)
    ]
    for (u, i), values in zip(pairs, truth, strict=True):
        for _ in range(15):
            for part in np.array_split(rng.permutation(1200), 12):
                rows = u[part].astype(np.uint32), i[part].astype(np.uint32)
                model.apply(Update(model.revision + 1, *rows, values[part], None, 60, 40))
    (x, x_bias), (y, y_bias) = (
        model.gather(side, rows.astype(np.uint32)) for side, rows in enumerate(pairs[0])
    )
    errors = model.mean + x_bias + y_bias + (x * y).sum(axis=1) - truth[0]
    return float(np.sqrt(np.mean(errors**2)))


def test_what_was_learned_first_is_forgotten_less() -> None:
    assert forgotten(Replay(500, 1.0)) < 0.6 * forgotten(Replay())


@pytest.mark.parametrize(
    ("replay", "field"),
    [
        (Replay(-1, 1.0), "replay.size"),
        (Replay((1 << 20) + 1, 1.0), "replay.size"),
        (Replay(10, 0.0), "replay.per_event"),
        (Replay(10, 4.5), "replay.per_event"),
        (Replay(10, 1e-60), "replay.per_event"),
        (Replay(10, float("nan")), "replay.per_event"),
        (Replay(0, 0.5), "replay.per_event"),
    ],
)
def test_what_no_model_can_replay_is_refused(replay: Replay, field: str) -> None:
    with pytest.raises(SpecError, match=field.replace(".", r"\.")):
        make_spec(Loss.BPR, negatives=1, replay=replay)
