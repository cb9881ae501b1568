"""Rule SOFTMAX: the CPU kernel against the reference, bit by bit, and the reference against its
objective.
"""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import SPECS
from livefactor_kernels.backend import Update
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.softmax import cpu as softmax_cpu
from livefactor_kernels.softmax.cpu import processors
from livefactor_kernels.softmax.proposal import Proposer, Tree, _ticket
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    FactorDtype,
    History,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Proposal,
    Rule,
    Softmax,
    SpecError,
)
from specs import ADAGRAD, IN_BATCH, UNIFORM, grouped, push_lists, softmax_spec
from synthetic import assert_same, copy_state, differences, push, unlike


def always_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two threads share every record."""
    monkeypatch.setattr(softmax_cpu, "SHARED_EVENTS", 1)
    monkeypatch.setattr(softmax_cpu, "SHARED_BATCH", 1)
    monkeypatch.setattr(softmax_cpu, "UNDISTURBED", 0.0)


@pytest.mark.skipif(processors() < 2, reason="one processor: no second thread")
@pytest.mark.parametrize("spec", [spec for spec in SPECS.values() if spec.rule == Rule.SOFTMAX])
def test_two_threads_learn_what_one_learns(spec, monkeypatch) -> None:
    always_share(monkeypatch)
    two, judge = CpuModel(spec), CpuModel(spec)
    rngs = [np.random.default_rng(5) for _ in range(2)]
    for turn in range(20):
        push_lists(two, rngs[0], 1 + 37 * turn)
    monkeypatch.setattr(softmax_cpu, "SHARED_EVENTS", 1 << 40)
    for turn in range(20):
        push_lists(judge, rngs[1], 1 + 37 * turn)
    assert differences(two, judge) == []


def test_one_thread_learns_while_other_work_interrupts_two(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"thread_time": 0.0, "perf_counter": 0.0}
    for name in seconds:
        monkeypatch.setattr(softmax_cpu.time, name, lambda name=name: seconds[name])

    def learn(sharing: softmax_cpu.Sharing, records: int, worked: float) -> list[bool]:
        """Whether two threads share each record. They work for a part of the time."""
        shared = []
        for _ in range(records):
            shared.append(sharing.is_wise())
            if shared[-1]:
                with sharing.observed():
                    seconds["thread_time"] += worked
                    seconds["perf_counter"] += 1.0
        return shared

    sharing = softmax_cpu.Sharing()
    assert all(learn(sharing, 5, 1.0))
    busy = learn(sharing, 10_000, 0.5)
    # It tries again after 16, 32, 64 ... 4,096 records.
    assert np.diff(np.flatnonzero(busy)).tolist() == [17, 33, 65, 129, 257, 513, 1025, 2049, 4097]
    learn(sharing, 4096, 1.0)
    assert all(learn(sharing, 5, 1.0)), "the processors are free"


@pytest.mark.parametrize("role", [softmax_cpu.FIRST, softmax_cpu.SECOND])
def test_a_thread_that_fails_does_not_leave_the_other_one_waiting(role, monkeypatch) -> None:
    always_share(monkeypatch)
    monkeypatch.setattr(softmax_cpu, "processors", lambda: 2)
    model = CpuModel(softmax_spec(UNIFORM, micro_batch=8))
    push(model, range(8), range(8))
    kernel, errors = model._rule._kernel, []

    def fail(thread, *arguments) -> None:
        if thread == role:
            raise MemoryError("no memory")
        kernel(thread, *arguments)

    def learn() -> None:
        try:
            push(model, range(8), range(8))
        except MemoryError as error:
            errors.append(str(error))

    monkeypatch.setattr(model._rule, "_kernel", fail)
    # A kernel that waits holds no lock of Python, and no signal ends it: only a thread of its own
    # can be left behind.
    learning = threading.Thread(target=learn, daemon=True)
    learning.start()
    learning.join(20)
    assert not learning.is_alive() and errors == ["no memory"]


def test_groups_have_the_negatives_of_micro_batches_of_their_size() -> None:
    """The negatives are the same. Items step less often."""
    whole, parts = (
        CpuModel(softmax_spec(UNIFORM, micro_batch=4)),
        CpuModel(grouped(UNIFORM, 4, micro_batch=8)),
    )
    for model in (whole, parts):
        push(model, range(8), range(8))
    zeros = np.zeros(11, np.uint32)
    update = Update(2, zeros, zeros, None, None, 8, 8)
    drawn = [Proposer(model.spec, 8).propose(update).rows for model in (whole, parts)]
    assert drawn[0].shape == (3, 5) and np.array_equal(*drawn)
    assert differences(whole, parts) != []


@pytest.mark.parametrize("events", [31, 32, 33, 64, 65, 97])
def test_chunk_boundaries(events) -> None:
    """One item has this number of events in a micro-batch, and negatives have as many."""
    spec = softmax_spec(UNIFORM, micro_batch=200, hot_row_events=1e6)
    fast, judge = CpuModel(spec), ReferenceModel(spec)
    for model in (fast, judge):
        push(model, range(40), range(40))
        push(model, range(events), [7] * events)
    assert_same(fast, judge)


# ---------------------------------------------------------------- the objective


def objective(
    x: np.ndarray, y: np.ndarray, bias: np.ndarray, own: np.ndarray, negatives: np.ndarray, weights: np.ndarray,
    log_q: np.ndarray, spec: ModelSpec,
) -> float:  # fmt: skip
    """The documented loss in float64.

    The events have the users x float64[n, k] and the items own int[n] of y float64[items, k].
    """
    total = 0.0
    for t, item in enumerate(own):
        others = negatives[negatives != item]
        s = bias + y @ x[t] - log_q
        total += weights[t] * np.log1p(np.exp(s[others] - s[item]).sum())
        total += spec.l2 / 2 * (x[t] @ x[t] + y[item] @ y[item]) + spec.bias_l2 / 2 * bias[item] ** 2
    return total


@pytest.mark.parametrize("proposal", Proposal)
def test_a_step_is_the_gradient_of_the_objective(proposal) -> None:
    k, users, items = 6, 7, 9
    spec = softmax_spec(
        proposal, k=k, micro_batch=users, negatives=0 if proposal == IN_BATCH else 12, hot_row_events=1e6,
        optimizer=Optimizer(OptimizerKind.SGD, 1.0, 1.0), init_scale=2.0,
    )  # fmt: skip
    model = ReferenceModel(spec)
    push(model, [*range(users)] * 2, [n * n % items for n in range(2 * users)])
    # All items now have rows, and biases that are not 0.
    push(model, [0] * items, range(items))
    before = copy_state(model)
    own, weights = np.array([1, 1, 4, 0, 8, 2, 1]), np.linspace(0.5, 2.0, users)
    own_rows = model.items.find(own.astype(np.uint64), items).astype(int)
    proposer = Proposer(spec, items)
    if proposer.counts:
        proposer.reload(before["items.seen_count"])
    update = Update(
        3,
        np.arange(users, dtype=np.uint32),
        own_rows.astype(np.uint32),
        None,
        weights.astype(np.float32),
        users,
        items,
    )
    negatives = proposer.propose(update).rows[0].astype(int)
    counts = before["items.seen_count"].astype(float) if proposal != UNIFORM else np.zeros(items)
    model.apply(update)
    after = copy_state(model)
    state = [before[name].astype(np.float64) for name in ("users.factors", "items.factors", "items.bias")]
    taken = [
        before[name].astype(np.float64) - after[name]
        for name in ("users.factors", "items.factors", "items.bias")
    ]
    assert not after["users.bias"].any()
    for part, moved in enumerate(taken):
        for place in np.ndindex(moved.shape):
            ends = []
            for h in (1e-5, -1e-5):
                shifted = [array.copy() for array in state]
                shifted[part][place] += h
                ends.append(objective(*shifted, own_rows, negatives, weights, np.log(1 + counts), spec))
            assert moved[place] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-5)


def test_a_user_steps_at_each_of_its_events_while_items_stay_as_they_were() -> None:
    spec = softmax_spec(UNIFORM, micro_batch=2)
    both, first, second = (CpuModel(spec) for _ in range(3))
    for model in (both, first, second):
        push(model, range(5), range(5))
    push(both, [0, 0], [1, 2])
    push(first, [0], [1])
    second.users.factors[0] = first.users.factors[0]
    push(second, [0], [2])
    assert both.users.factors[0].tobytes() == second.users.factors[0].tobytes()
    assert first.items.factors[1].tobytes() != second.items.factors[1].tobytes()


def test_events_without_a_value_above_0_are_remembered_and_change_nothing_else() -> None:
    spec = softmax_spec(negatives=3)
    models = [CpuModel(spec), ReferenceModel(spec)]
    for model in models:
        push(model, range(4), range(4))
    before = copy_state(models[0])
    for model in models:
        push(model, [0, 1], [2, 2], [0.0, 0.0])
    assert_same(*models)
    after = copy_state(models[0])
    assert unlike(after, before) and all("seen" in n or "visits" in n for n in unlike(after, before))
    assert after["items.seen_count"][2] == before["items.seen_count"][2] + 2


def test_one_item_alone_is_compared_with_nothing() -> None:
    for proposal in Proposal:
        spec = softmax_spec(proposal, l2=0.0, bias_l2=0.0)
        models = [CpuModel(spec), ReferenceModel(spec)]
        for model in models:
            push(model, range(5), [3] * 5)
        assert_same(*models)
        assert not models[0].items.bias[0]


# ---------------------------------------------------------------- proposals


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=200),
    capacity=st.sampled_from([200, 4096, 70_000]),
)
def test_tickets_are_events_counted_item_by_item(counts, capacity) -> None:
    tree = Tree.of(capacity)
    tree.fill(np.array(counts, np.uint32))
    events = sum(counts)
    assert tree.sums[-1] == events
    found = [int(_ticket(tree, np.uint64(ticket))) for ticket in range(events)]
    assert found == np.repeat(np.arange(len(counts)), counts).tolist()


def test_popular_items_are_drawn_as_often_as_they_came() -> None:
    spec = softmax_spec(negatives=1000, micro_batch=4)
    proposer = Proposer(spec, 4)
    rows = np.array([0] * 59 + [1] * 29 + [2, 3], np.uint32)
    proposer.propose(Update(1, np.zeros_like(rows), rows, None, None, 1, 4))
    shared = proposer.propose(Update(2, *np.zeros((2, 1), np.uint32), None, None, 1, 4))
    shares = np.bincount(shared.rows[0], minlength=4) / 1000
    assert shares == pytest.approx(np.array([60, 30, 2, 2]) / 94, abs=0.06)


# ---------------------------------------------------------------- what is refused, what is compiled


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("rule", {"rule": Rule.SGD}),
        ("loss", {"loss": Loss.BPR}),
        ("negatives", {"negatives": 0}),
        ("negatives", {"softmax": Softmax(IN_BATCH)}),
        ("micro_batch", {"softmax": Softmax(IN_BATCH), "negatives": 0, "micro_batch": 1}),
        ("micro_batch", {"softmax": Softmax(IN_BATCH), "negatives": 0, "micro_batch": 1025}),
        ("history.users", {"history": History()}),
        ("factor_dtype", {"factor_dtype": FactorDtype.FLOAT16}),
        ("softmax.proposal", {"softmax": Softmax(9)}),  # type: ignore[arg-type]
        ("softmax.group_events", {"softmax": Softmax(group_events=3)}),
        ("softmax.group_events", {"softmax": Softmax(group_events=16)}),
        ("softmax.group_events", {"softmax": Softmax(group_events=-1)}),
        ("softmax.group_events", {"softmax": Softmax(IN_BATCH, 1), "negatives": 0}),
        ("softmax.group_events", {"softmax": Softmax(group_events=1), "negatives": 1024, "micro_batch": 256}),
        (
            "limits",
            {
                "optimizer": Optimizer(ADAGRAD),
                "micro_batch": 65_536,
                "negatives": 1024,
                "limits": Limits(error_max=1e9),
            },
        ),
    ],
)
def test_specs_are_refused(field, changes) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(field)}"):
        check(replace(softmax_spec(), **changes))
