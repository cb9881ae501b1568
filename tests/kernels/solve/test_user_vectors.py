"""Vectors of users with rule SOLVE: the same bits on both backends, and what they say of users."""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_kernels.backend import Backend
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.solve.prior import rows
from livefactor_kernels.spec.model import Counts, Embeddings, Features, History, Loss, Mix, Solve, SpecError
from livefactor_kernels.tables import ITEMS, USERS
from specs import solve_spec
from synthetic import assert_same, push, restore

D = 3
SPECS = {
    "plain": solve_spec(embeddings=Embeddings(0, 4.0, D)),
    "mix": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), solve=Solve(0.0, 3, 2, 10.0), mix=Mix(0.05),
        embeddings=Embeddings(5, 4.0, D),
    ),
    "features": solve_spec(embeddings=Embeddings(0, 4.0, D), features=Features(64, 4, 4.0)),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", SPECS)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "REFRESH_MIN", 4)
    monkeypatch.setattr(rows, "SWEEP_ROWS", 5)


def embed(model: Backend, users: object, vectors: object) -> None:
    """Allocate the users and set their vectors as the next record."""
    found = model.users.allocate(np.asarray(users, np.uint64))
    table = np.asarray(vectors, np.float16)
    model.set_embeddings(USERS, found, table, model.revision + 1, model.users.allocated)


def two_kinds(model: Backend) -> None:
    """Even users like even items, and odd users odd ones. Users 20 and 21 have no events."""
    rng = np.random.default_rng(5)
    embed(model, range(22), [[1.0, user % 2, 1 - user % 2] for user in range(22)])
    for _ in range(16):
        users = rng.integers(0, 20, 30)
        push(model, users, 2 * rng.integers(0, 12, 30) + users % 2, None)


def odd_more(model: Backend, user: int) -> float:
    """By how much a user prefers odd items."""
    reader = PersonReader(model.spec)
    with model.pin() as pin:
        read = reader.read(pin, np.array([user], np.uint32), pin.counts[ITEMS])
        items, _ = pin.gather(ITEMS, model.items.find(np.arange(24, dtype=np.uint64), pin.counts[ITEMS]))
    scores = (read.factors @ items.T)[0]
    return float(scores[1::2].mean() - scores[::2].mean())


@EACH
def test_a_vector_ranks_for_a_user_before_and_after_her_first_events(name: str) -> None:
    models: list[Backend] = [CpuModel(SPECS[name]), ReferenceModel(SPECS[name])]
    found = []
    for model in models:
        two_kinds(model)
        found.append([odd_more(model, 20), odd_more(model, 21)])
        # User 20 has an event that says nothing of her kind, and then another vector.
        push(model, [20, 20], [0, 1], None)
        found[-1].append(odd_more(model, 20))
        embed(model, [20], [[1.0, 1.0, 0.0]])
        found[-1].append(odd_more(model, 20))
        embed(model, [20], [[0.0] * D])
        found[-1].append(odd_more(model, 20))
    even, odd, still_even, now_odd, without = found[0]
    # A mix ranks users without events by popularity, until it has seen that vectors foresee them.
    assert name == "mix" or (even < -0.1 and odd > 0.1)
    assert still_even < -0.1 and now_odd > 0.1
    assert still_even < without < now_odd
    assert found[0] == found[1]
    assert_same(*models)


@EACH
def test_a_restored_model_goes_on_to_the_same_bits(name: str) -> None:
    first = CpuModel(SPECS[name])
    two_kinds(first)
    restored = CpuModel(SPECS[name])
    restore(restored, first, 16 * 30)
    for model in (first, restored):
        embed(model, [3, 30], [[0.5, 1.0, 0.0], [1.0, 0.0, 1.0]])
        push(model, [3, 30, 4, 31], [1, 2, 3, 4], None)
    assert_same(first, restored)


@EACH
def test_a_pin_keeps_what_vectors_said(name: str) -> None:
    model = CpuModel(SPECS[name])
    two_kinds(model)
    with model.pin() as pin:
        count = model.published[USERS]
        before = {key: array.copy() for key, array in model.sections(USERS, count).items()}
        embed(model, range(22), [[1.0, 1 - user % 2, user % 2] for user in range(22)])
        push(model, range(22), [1] * 22, None)
        found = pin.read_rows(USERS, 0, count)
        for key, array in found.items():
            assert array.tobytes() == before[key].tobytes(), key


def test_bad_specs_are_refused_by_name() -> None:
    for changes, text in (
        ({"embeddings": Embeddings(0, 4.0, 1025)}, "embeddings.user_dimension"),
        ({"embeddings": Embeddings(0, 4.0, D), "features": Features(64, 4)}, "features.prior_events"),
        ({"embeddings": Embeddings(0, 4.0, D), "solve": Solve(0.3, start_events=2.0)}, "solve.start_events"),
        ({"features": Features(0, 4, 2.0)}, "features.prior_events: expected 0 without features.size"),
    ):
        with pytest.raises(SpecError, match=text):
            solve_spec(**changes)
    with pytest.raises(SpecError, match="loss: expected implicit"):
        solve_spec(Loss.SQUARED, embeddings=Embeddings(0, 4.0, D))
