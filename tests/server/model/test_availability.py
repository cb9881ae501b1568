"""The marks of unavailable items: what they hold, what a change costs, and the memory they tell."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS
from livefactor_server.model.availability import UNKNOWN_MARK_BYTES, Marks, rows_of

IDS = st.lists(st.integers(0, 40), max_size=12)


def backend(name: str = "cpu", items_max: int = 64) -> Backend:
    spec = preset("clicks_sgd", k=1)
    return create_backend(name, replace(spec, limits=replace(spec.limits, users_max=1, items_max=items_max)))


def learn(model: Backend, marks: Marks, ids: np.ndarray) -> None:
    model.items.allocate(ids)
    model.advance(model.revision + 1, 0, model.items.allocated)
    marks.publish()


def keys(ids: list[int]) -> np.ndarray:
    return np.array(ids, np.uint64)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["mark", "unmark", "learn"]), IDS), max_size=12), st.integers(0, 11)
)
def test_marks_are_a_set_whatever_the_model_knows(name: str, steps: list, cut: int) -> None:
    model = backend(name)
    marks, expected = Marks(model), set()
    frozen, frozen_expected = marks.freeze(), set()
    for number, (what, ids) in enumerate(steps):
        if what == "learn":
            learn(model, marks, keys(ids))
        else:
            marks.put(keys(ids), available=what == "unmark")
            expected = expected - set(ids) if what == "unmark" else expected | set(ids)
        known = model.items.keys[: model.items.allocated]
        assert known[rows_of(marks.bits())].tolist() == [key for key in known.tolist() if key in expected]
        assert marks.unknown == len(expected - set(known.tolist()))
        assert marks.are_marked_unknown(keys([*range(41)])).sum() == marks.unknown
        if number == cut:
            frozen, frozen_expected = marks.freeze(), set(expected)
    assert marks.freeze().keys().tolist() == sorted(expected)
    assert frozen.keys().tolist() == sorted(frozen_expected)
    again = Marks(model)
    again.load(marks.freeze().keys())
    assert again.freeze().keys().tolist() == sorted(expected)


def test_a_change_costs_its_own_size_and_memory_is_told() -> None:
    model = backend(items_max=1 << 21)
    marks = Marks(model)
    ids = np.random.default_rng(1).permutation(np.arange(1, 1_000_001, dtype=np.uint64))
    learn(model, marks, ids[::2].copy())

    def quickest(times: int = 20) -> float:
        took = []
        for turn in range(times):
            new = np.array([2 * turn + 1, 2 * turn + 2, 1 << 50 | turn], np.uint64)
            begin = time.perf_counter()
            marks.put(new, available=False)
            marks.put(new, available=True)
            took.append(time.perf_counter() - begin)
        return min(took)

    few = quickest()
    tracemalloc.start()
    marks.put(ids, available=False)
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert marks.unknown == 500_000
    # The bits of known items stand in memory that tracemalloc does not see.
    assert 0.8 * traced < marks.nbytes < 1.5 * traced + 200_000
    assert marks.nbytes < 500_000 * UNKNOWN_MARK_BYTES
    # A change that copied or sorted all marks took a thousand times as long.
    assert quickest() < 20 * few + 0.001


def test_places_of_removed_marks_are_dropped() -> None:
    model = backend()
    marks = Marks(model)
    most = 0
    for start in range(0, 200_000, 5000):
        ids = np.arange(start, start + 5000, dtype=np.uint64)
        marks.put(ids, available=False)
        marks.put(ids[:-1], available=True)
        most = max(most, marks.nbytes)
    assert marks.unknown == 40 and most < 20_000 * UNKNOWN_MARK_BYTES
    assert model.published[ITEMS] == 0
