"""A model that goes on learning does not get worse."""

from __future__ import annotations

import numpy as np

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS
from synthetic import SMALL, push

USERS, TASTES, OF_TASTE, EVENTS, RECORD = 120, 12, 25, 7200, 240


def stream() -> tuple[np.ndarray, np.ndarray]:
    """Users with three lasting tastes take items of any of them, one at a time, each once."""
    rng = np.random.default_rng(5)
    tastes = np.array([rng.choice(TASTES, 3, replace=False) for _ in range(USERS)])
    users, items = rng.integers(0, USERS, EVENTS), np.empty(EVENTS, np.int64)
    had: list[set[int]] = [set() for _ in range(USERS)]
    # Low numbers are popular.
    likely = 1.0 / np.arange(2, OF_TASTE + 2)
    likely /= likely.sum()
    for event, user in enumerate(users.tolist()):
        for _ in range(50):
            item = int(rng.choice(tastes[user])) * OF_TASTE + int(rng.choice(OF_TASTE, p=likely))
            if item not in had[user]:
                break
        had[user].add(item)
        items[event] = item
    return users, items


def ndcg(model: CpuModel, users: np.ndarray, items: np.ndarray, learned: int, stop: int) -> float:
    """NDCG@10 of all users for what they take in events [learned, stop), without what they had."""
    rows = np.arange(model.published[ITEMS], dtype=np.uint32)
    keys = model.items.keys[rows].astype(np.int64)
    asked = np.arange(USERS, dtype=np.uint64)
    with model.pin() as pin:
        persons = PersonReader(model.spec).read(pin, model.users.find(asked, pin.counts[0]), rows.size)
        factors, bias = pin.gather(ITEMS, rows)
    discounts, found = 1.0 / np.log2(np.arange(2, 12)), []
    for user in range(USERS):
        before = items[:learned][users[:learned] == user]
        after = np.setdiff1d(items[learned:stop][users[learned:stop] == user], before)
        if not after.size:
            continue
        scores = factors @ persons.factors[user] + bias + persons.gains(user, rows)
        scores[np.isin(keys, before)] = -np.inf
        hits = np.isin(keys[np.argsort(-scores, kind="stable")[:10]], after)
        found.append(float(hits @ discounts) / float(discounts[: min(10, after.size)].sum()))
    return float(np.mean(found))


def test_a_stream_that_goes_on_makes_lists_no_worse() -> None:
    users, items = stream()
    model = CpuModel(preset("auto", limits=SMALL))
    half, most, part = EVENTS // 2, EVENTS * 9 // 10, EVENTS // 10
    found = {}
    for start in range(0, most, RECORD):
        events = slice(start, start + RECORD)
        push(model, users[events], items[events], times=np.arange(start, start + RECORD) + 10**15)
        if start + RECORD in (half, most):
            found[start + RECORD] = ndcg(model, users, items, start + RECORD, start + RECORD + part)
    assert found[half] > 0.15
    assert found[most] >= found[half]
