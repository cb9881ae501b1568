"""Places in lists: among all items, or among those that are new to the user if the item is."""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS
from livefactor_server.judging.places import places
from synthetic import push

TOP, USERS, ITEM_COUNT = 20, 30, 60


@pytest.fixture(params=["auto", "purchases", "clicks_sgd"])
def model(request: pytest.FixtureRequest) -> Backend:
    made = create_backend("cpu", preset(request.param, k=8))
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, USERS, 600), (rng.pareto(1.0, 600) * 8).astype(int) % ITEM_COUNT
    for start in range(0, 600, 100):
        part = slice(start, start + 100)
        push(made, users[part].astype(np.uint64), items[part].astype(np.uint64), None, None)
    return made


def expected(model: Backend, user: int, item: int, new_apart: bool) -> int:
    """The place by the scores of all items."""
    with model.pin() as pin:
        count = pin.counts[ITEMS]
        persons = PersonReader(model.spec).read(pin, np.array([user], np.uint32), count)
        rows = np.arange(count, dtype=np.uint32)
        factors, bias = pin.gather(ITEMS, rows)
        scores = persons.factors[0] @ factors.T + bias + persons.gains(0, rows)
    had = persons.items[0] if persons.items else np.empty(0, np.uint32)
    if new_apart and item not in had:
        scores[had] = -np.inf
    return min(TOP, int((scores > scores[item]).sum()))


@pytest.mark.parametrize("new_apart", [False, True])
def test_a_place_is_that_of_the_scores(model: Backend, new_apart: bool) -> None:
    rng = np.random.default_rng(4)
    users = rng.integers(0, model.users.allocated, 200).astype(np.uint32)
    items = rng.integers(0, model.items.allocated, 200).astype(np.uint32)
    found = places(model, users, items, TOP, new_apart=new_apart)
    wanted = [expected(model, user, item, new_apart) for user, item in zip(users, items, strict=True)]
    # Scores that differ only in the last digit may change places.
    assert np.abs(found - wanted).max() <= 1
    assert len(set(found.tolist())) > 10
