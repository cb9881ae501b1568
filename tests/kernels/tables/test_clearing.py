"""Cleared rows are those of new keys, with the same bits on the CPU and in the reference."""

from __future__ import annotations

import numpy as np
import pytest

from conformance import SPECS, draw_stream, learn
from livefactor_kernels.backend import create_backend
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.content import Embeddings, Features
from livefactor_kernels.tables import ITEMS, USERS
from specs import solve_spec
from synthetic import copy_state, differences, read_pin, restore, unlike

EVENTS = 60
CLEARED = [
    "squared-0-adagrad-b7",
    "logistic-3-lazy_adam-b1",
    "bpr-3-ftrl-b7-bfloat16",
    "replay-squared-micro",
    "adaptive-micro",
    "history-bpr-counts",
    "solve-squared",
    "solve-density",
    "solve-mix-recent",
    "softmax-popularity",
    "softmax-in-batch-groups",
]
"""A spec for each part that has state of rows."""


@pytest.mark.parametrize("name", CLEARED)
def test_a_model_goes_on_after_a_clearing_with_the_bits_of_the_reference(name: str) -> None:
    spec = SPECS[name]
    model, judge = create_backend("cpu", spec), ReferenceModel(spec)
    stream = draw_stream(11, spec, [EVENTS, EVENTS, EVENTS, EVENTS // 2])
    for each in (model, judge):
        learn(each, stream[:2])
    before = copy_state(model)
    with model.pin() as pin:
        for each in (model, judge):
            each.clear(USERS, np.array([3, 0], np.uint32), 3)
            each.clear(ITEMS, np.array([1], np.uint32), 4)
        assert differences(model, judge) == []
        for each in (model, judge):
            learn(each, stream[2:3])
        assert differences(model, judge) == []
        pinned = read_pin(pin)
        assert unlike(pinned, {name: before[name] for name in pinned}) == []
    again = create_backend("cpu", spec)
    restore(again, judge, 3 * EVENTS)
    for each in (model, judge, again):
        learn(each, stream[3:])
    assert differences(model, judge) == [] == differences(again, judge)


def test_vectors_and_bags_leave_what_was_learned_from_them() -> None:
    """The sums of the map of vectors, and the counts of bags, lose the rows that are cleared."""
    spec = solve_spec(k=5, embeddings=Embeddings(4, 2.0), features=Features(16, 3))
    model, judge = create_backend("cpu", spec), ReferenceModel(spec)
    stream, rng = draw_stream(3, spec, [EVENTS, EVENTS, EVENTS]), np.random.default_rng(1)
    for each in (model, judge):
        learn(each, stream[:2])
    items = model.published[ITEMS]
    vectors = rng.normal(size=(items, 4)).astype(np.float16)
    rows = np.arange(items, dtype=np.uint32)
    bags = Bags(np.arange(1, items + 1), np.arange(items, dtype=np.uint64) % 5, np.ones(items, np.float32))
    for each in (model, judge):
        each.set_embeddings(ITEMS, rows, vectors, 3, items)
        each.set_features(ITEMS, rows, bags, 4, items)
        each.clear(ITEMS, np.array([0, 2], np.uint32), 5)
        each.clear(USERS, np.array([1], np.uint32), 6)
        assert each.items.described[[0, 2]].tolist() == [0, 0] if each is judge else True
    assert differences(model, judge) == []
    for each in (model, judge):
        learn(each, stream[2:])
    assert differences(model, judge) == []


@pytest.mark.parametrize("name", ["solve-mix-recent", "bpr-3-adagrad-b7", "history-logistic"])
def test_a_cleared_row_is_that_of_a_new_key(name: str) -> None:
    spec = SPECS[name]
    model, fresh = ReferenceModel(spec), ReferenceModel(spec)
    learn(model, draw_stream(2, spec, [EVENTS, EVENTS]))
    for side, table, other in ((USERS, model.users, fresh.users), (ITEMS, model.items, fresh.items)):
        rows = np.arange(table.allocated, dtype=np.uint32)
        other.allocate(table.keys[: table.allocated])
        model.clear(side, rows, model.revision + 1)
        for section in table.names:
            assert np.array_equal(getattr(table, section), getattr(other, section)), section


def test_no_bag_is_an_empty_bag() -> None:
    bags = Bags.empty(3)
    assert bags.ends.tolist() == [0, 0, 0] and not bags.keys.size and not bags.weights.size
