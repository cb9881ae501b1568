"""Rule SOLVE, histories and counts: the CPU kernels against the reference, bit by bit, and the
reference against algebra.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.history import cpu as history_cpu
from livefactor_kernels.history import decays
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.scoring.cpu import score_candidates
from livefactor_kernels.solve import SolveRates
from livefactor_kernels.solve import cpu as solve_cpu
from livefactor_kernels.solve.reference import System, solve_row
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    Counts,
    EventType,
    History,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Rule,
    Solve,
    SpecError,
)
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from specs import solve_spec
from synthetic import SMALL, assert_same, copy_state, make_spec, push, read_pin, unlike


def push_random(
    model: Backend, rng: np.random.Generator, events: int, users: int = 5, items: int = 40
) -> None:
    """Learns a record with repeats, baskets and, sometimes, empty columns."""
    values = rng.integers(0, 2, events) if model.spec.loss == Loss.IMPLICIT else rng.integers(1, 6, events)
    weights = rng.random(events) * 2 + 0.1 if rng.random() < 0.6 else None
    times = np.sort(rng.integers(0, 6, events)) if rng.random() < 0.7 else None
    push(model, rng.integers(0, users, events), rng.integers(0, items, events), values, weights, times)


@pytest.mark.parametrize("additions_max", [0, 1 << 16], ids=["the list is full in between", "all of them"])
def test_counts_are_made_beside_the_solves(monkeypatch, additions_max) -> None:
    monkeypatch.setattr(solve_cpu, "HELPER_ADDITIONS", 1)
    monkeypatch.setattr(history_cpu, "_ADDITIONS_MAX", additions_max)
    threads = set()
    count = history_cpu.Recorder.count

    def counting(recorder: history_cpu.Recorder, additions: int) -> None:
        threads.add(threading.current_thread().name.split("_")[0])
        count(recorder, additions)

    monkeypatch.setattr(history_cpu.Recorder, "count", counting)
    spec = solve_spec(micro_batch=64)
    fast, judge = CpuModel(spec), ReferenceModel(spec)
    for model in (fast, judge):
        rng = np.random.default_rng(11)
        for _ in range(6):
            push_random(model, rng, 150)
    assert threads == {"counts"}
    assert_same(fast, judge)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_pin_is_its_revision_whatever_is_learned_after_it(name) -> None:
    spec = solve_spec()
    model, rng = create_backend(name, spec), np.random.default_rng(5)
    for _ in range(3):
        push_random(model, rng, 30)
    expected = copy_state(model)
    rows = np.array([0, 3, NO_ROW, 1], np.uint32)
    names = ("seen_rows", "neighbor_counts", "factors")
    before = model.read(ITEMS, rows, names)
    with model.pin() as pin:
        for _ in range(4):
            push_random(model, rng, 30)
        got = read_pin(pin)
        assert unlike(got, expected) == []
        assert unlike(pin.read(ITEMS, rows, names), before) == []


@pytest.mark.parametrize("ridge_events", [0.0, 7.0])
def test_a_solved_row_is_the_minimum_of_the_objective(ridge_events: float) -> None:
    rng = np.random.default_rng(1)
    k, n, a0, l2 = 6, 9, 0.4, 0.05
    others = rng.normal(size=(30, k))
    y, weights = others[:n], rng.random(n) + 0.1
    spec = solve_spec(k=k, l2=l2, solve=Solve(a0, 3, 64, ridge_events=ridge_events))
    gram = others.T @ others
    floats = [array.astype(np.float32) for array in (np.zeros(k), y, weights, np.ones(n), a0 * gram)]
    x = solve_row(floats[0], System(*floats[1:], 30), SolveRates.of(spec), 64)
    ridge = l2 * (weights.sum() + ridge_events + a0 * 30)
    exact = np.linalg.solve(
        a0 * gram + (y * weights[:, None]).T @ y + ridge * np.eye(k), (weights[:, None] * y).sum(0)
    )
    assert np.allclose(x, exact, atol=1e-4)


def test_the_gram_matrices_are_those_of_the_rows_with_events() -> None:
    model, rng = CpuModel(solve_spec()), np.random.default_rng(6)
    for _ in range(6):
        push_random(model, rng, 40)
    gram = model.state()["gram"].reshape(2, model.spec.k + 1, model.spec.k + 1)
    for side in (USERS, ITEMS):
        sections = model.sections(side, model.published[side])
        rows = np.hstack([sections["factors"], np.ones((model.published[side], 1))]).astype(np.float64)
        assert np.allclose(gram[side], rows.T @ rows, atol=1e-9)


def test_visits_counts_and_rings_by_hand() -> None:
    spec = solve_spec(counts=Counts(16, 4, 1.0, 0.5, 0.0))
    for name in ("cpu", "reference"):
        model = create_backend(name, spec)
        # A basket of 10 and 11 at time 5; 12 at 6; 10 again without a time.
        push(model, [1, 1, 1, 1], [10, 11, 12, 10], weights=[1, 2, 4, 8], times=[5, 5, 6, 0])
        users, items = model.sections(USERS, 1), model.sections(ITEMS, 3)
        assert (int(users["visits"][0]), int(users["seen_count"][0]), int(users["last_time"][0])) == (3, 4, 0)
        assert users["seen_rows"][0, :4].tolist() == [0, 1, 2, 0]
        assert users["seen_visits"][0, :4].tolist() == [1, 1, 2, 3]
        assert items["seen_count"].tolist() == [2, 1, 1]
        counted = {
            (row, int(follower)): float(count)
            for row in range(3)
            for follower, count in zip(
                items["neighbor_rows"][row], items["neighbor_counts"][row], strict=True
            )
            if count > 0
        }
        assert counted == {
            # 11 is in the basket of 10, and 10 in that of 11.
            (0, 1): 2.0,
            (1, 0): 2.0 + 8 * 0.25,
            (0, 2): 4 * 0.5,
            (1, 2): 4 * 0.5,
            (2, 0): 8 * 0.5,
            (0, 0): 8 * 0.25,
        }


def test_a_frequent_newcomer_replaces_the_weakest_follower() -> None:
    spec = make_spec(Loss.BPR, negatives=1, history=History(16), counts=Counts(16, 1, 1e6, 0.5, 0.0))
    model = CpuModel(spec)
    # Item 0 gets 16 followers: the first one three times, the others twice.
    for item in range(1, 17):
        for n in range(3 if item == 1 else 2):
            push(model, [100 * item + n] * 2, [0, item])
    for n in range(3):
        push(model, [5000 + n] * 2, [0, 99])
    items = model.sections(ITEMS, model.published[ITEMS])
    followers = dict(
        zip(items["neighbor_rows"][0].tolist(), items["neighbor_counts"][0].tolist(), strict=True)
    )
    newcomer = int(model.items.find(np.array([99], np.uint64), model.published[ITEMS])[0])
    assert newcomer in followers
    assert 2 not in followers
    assert followers[1] == pytest.approx(3.0, rel=1e-5)


def test_decays_halve_after_a_half_life() -> None:
    assert (decays(0.0) == 1.0).all()
    for half_life in (0.5, 1.0, 8.0, 30.0):
        assert decays(half_life)[int(max(1, half_life))] == pytest.approx(
            0.5 ** (max(1, half_life) / half_life), rel=1e-5
        )


# ---------------------------------------------------------------- reads


def _learned(spec: ModelSpec) -> CpuModel:
    model, rng = CpuModel(spec), np.random.default_rng(9)
    for _ in range(6):
        push_random(model, rng, 40)
    return model


@pytest.mark.parametrize(
    "counts", [Counts(16, 6, 3.0, 5.0, 2.0), Counts(repeat=2.0), Counts(16, 6, 3.0, 5.0, 2.0, 2.0)]
)
def test_top_k_with_counts_is_exact(counts: Counts) -> None:
    model = _learned(solve_spec(counts=counts))
    users = np.array([0, 3, NO_ROW], np.uint32)
    count = model.published[ITEMS]
    with model.pin() as pin:
        persons = PersonReader(model.spec).read(pin, users, count)
        none = np.empty(0, np.uint32), np.zeros(4, np.int64)
        own, offsets = none if counts.repeat else persons.exclusions(*none)
        common = np.array([5], np.uint32)
        rows, scores, ends = persons.top_k(pin, model.items.keys, 7, common, own, offsets)
        factors, bias = pin.gather(ITEMS, np.arange(count, dtype=np.uint32))
        for user in range(3):
            each = score_candidates(
                pin.mean, persons.factors[user : user + 1], persons.bias[user : user + 1], factors, bias,
                np.array([0, count]),
            ) + persons.gains(user, np.arange(count, dtype=np.uint32))  # fmt: skip
            left = np.setdiff1d(np.arange(count), [5, *own[offsets[user] : offsets[user + 1]]])
            best = left[np.lexsort((model.items.keys[left], -each[left]))][:7]
            mine = slice(ends[user], ends[user + 1])
            assert rows[mine].tolist() == best.tolist()
            assert scores[mine].tobytes() == each[best].tobytes()
        assert persons.gains(0, np.arange(count, dtype=np.uint32)).max() > 0


def test_counts_alone() -> None:
    """A model without factors, as in docs/rules.md: biases learn popularity, and counts find
    followers.
    """
    optimizer = Optimizer(OptimizerKind.ADAGRAD, 0.0, 0.4, 0.1)
    spec = preset(
        "purchases",
        init_scale=0.0,
        optimizer=optimizer,
        counts=Counts(16, 6, 3.0, 5.0, 2.0, 1.5),
        limits=SMALL,
    )
    model = _learned(spec)
    users, rows = np.array([0, NO_ROW], np.uint32), np.arange(model.published[ITEMS], dtype=np.uint32)
    factors, bias = model.gather(ITEMS, rows)
    persons = PersonReader(spec).read(model, users, rows.size)
    assert not factors.any() and not persons.factors.any()
    frequent = np.argsort(-model.items.history["seen_count"][: rows.size].astype(int), kind="stable")
    assert bias[frequent[:5]].min() > bias[frequent[-5:]].max()
    assert persons.gains(0, rows).max() > 0 and not persons.gains(1, rows).any()


@pytest.mark.parametrize("rule", [Rule.SOLVE, Rule.SGD])
def test_items_of_a_user_gain_by_their_own_events(rule: Rule) -> None:
    counts = Counts(16, 6, 3.0, 0.5, 2.0)
    parts = {"history": History(16, 16 if rule == Rule.SOLVE else 0), "counts": counts}
    spec = solve_spec(**parts) if rule == Rule.SOLVE else make_spec(Loss.BPR, negatives=1, **parts)
    model, repeat = _learned(spec), replace(spec, counts=replace(counts, repeat=0.3))
    rows, users = np.arange(model.published[ITEMS], dtype=np.uint32), np.array([0, 3, NO_ROW], np.uint32)
    decay = decays(counts.half_life)
    with model.pin() as pin:
        without, with_repeat = (PersonReader(s).read(pin, users, rows.size) for s in (spec, repeat))
        kept = pin.read(
            USERS, users, ("seen_rows", "seen_values", "seen_weights", "seen_visits", "visits", "seen_count")
        )
    for user in range(2):
        own = np.zeros(rows.size, np.float32)
        # The oldest event comes first.
        for back in range(16, 0, -1):
            place = (int(kept["seen_count"][user]) - back) % 16
            age = int(kept["visits"][user]) - int(kept["seen_visits"][user, place])
            if kept["seen_values"][user, place] > 0:
                own[kept["seen_rows"][user, place]] += kept["seen_weights"][user, place] * decay[age]
        expected = without.gains(user, rows) + np.float32(0.3) * own
        assert own.any() and with_repeat.gains(user, rows).tobytes() == expected.tobytes()
    assert not with_repeat.gains(2, rows).any()
    assert with_repeat.factors.tobytes() == without.factors.tobytes()


def test_reads_of_reference_and_cpu_agree_and_change_nothing() -> None:
    spec = solve_spec(counts=Counts(16, 6, 3.0, 0.5, 2.0, 0.3))
    answers = []
    for name in ("cpu", "reference"):
        model, rng = create_backend(name, spec), np.random.default_rng(9)
        for _ in range(4):
            push_random(model, rng, 40)
        before = copy_state(model)
        with model.pin() as pin:
            answers.append(
                PersonReader(spec).read(pin, np.arange(5, dtype=np.uint32), model.published[ITEMS])
            )
        assert unlike(copy_state(model), before) == []
    one, other = answers
    assert one.factors.tobytes() == other.factors.tobytes()
    for (rows, gained), (other_rows, other_gained) in zip(one.followers, other.followers, strict=True):
        assert rows.tolist() == other_rows.tolist()
        assert gained.tobytes() == other_gained.tobytes()


def test_events_of_a_call_score_like_the_same_history() -> None:
    counts = Counts(16, 6, 3.0, 0.5, 2.0, 0.3)
    spec = solve_spec(history=History(16, 16, 2.0), solve=Solve(0.7, 1, 64), counts=counts)
    model = _learned(spec)
    push(model, [77] * 3, [1, 2, 3])
    rows = model.items.find(np.array([1, 2, 3], np.uint64), model.published[ITEMS])
    reader, row = PersonReader(spec), model.users.find(np.array([77], np.uint64), model.published[USERS])
    with model.pin() as pin:
        stored = reader.read(pin, row, model.published[ITEMS])
        given = reader.read(
            pin, np.array([NO_ROW], np.uint32), model.published[ITEMS], [reader.events_of(rows)]
        )
    assert np.allclose(stored.factors, given.factors, atol=1e-3)
    assert stored.items[0].tolist() == given.items[0].tolist()
    assert stored.followers[0][1].tobytes() == given.followers[0][1].tobytes()


# ---------------------------------------------------------------- specs


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("loss", {"loss": Loss.BPR, "negatives": 1}),
        ("rule", {"rule": Rule.SGD}),
        ("history.users", {"history": History(0, 16)}),
        ("history.users", {"history": History(20, 16)}),
        ("history.items", {"history": History(16, 0)}),
        ("l2", {"l2": 0.0}),
        ("counts.span", {"counts": Counts(16, 17)}),
        ("counts.repeat", {"counts": Counts(repeat=-0.1)}),
        ("counts.half_life", {"counts": Counts(half_life=0.0, repeat=0.1)}),
        (
            "history.users",
            {
                "rule": Rule.SGD,
                "loss": Loss.BPR,
                "negatives": 1,
                "history": History(),
                "counts": Counts(repeat=1.0),
            },
        ),
        ("solve.unobserved", {"loss": Loss.SQUARED}),
        ("solve.sweeps", {"solve": Solve(0.7, 3, 0)}),
        ("event_types", {"event_types": (EventType(1), EventType(1))}),
    ],
)
def test_a_spec_without_sense_is_refused_by_name(field, changes) -> None:
    with pytest.raises(SpecError, match=f"^{field}"):
        check(replace(solve_spec(), **changes))
