"""Embeddings with rule SOLVE: the CPU kernels against the reference, bit by bit, and the reference
against algebra.
"""

from __future__ import annotations

import numpy as np
import pytest

from livefactor_kernels.backend import Backend, create_backend
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reading import SQUARES, SUM
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.solve.prior import RIDGE, rows
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import (
    Counts,
    Embeddings,
    History,
    Loss,
    Mix,
    ModelSpec,
    Replay,
    Solve,
    SpecError,
)
from livefactor_kernels.tables import ITEMS
from specs import solve_spec
from synthetic import SIDES, assert_same, copy_state, differences, push, read_pin, restore, unlike

D, ITEM_KEYS = 6, 24
SPECS = {
    "plain": solve_spec(embeddings=Embeddings(D, 2.0)),
    "B1": solve_spec(micro_batch=1, counts=Counts(), embeddings=Embeddings(D, 2.5)),
    "mix": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), solve=Solve(0.0, 3, 2, 10.0), mix=Mix(0.05),
        embeddings=Embeddings(D, 3.0),
    ),
    "recent": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), solve=Solve(0.0, 3, 2, 10.0), mix=Mix(0.05, 1.0),
        embeddings=Embeddings(D, 3.0),
    ),
    "replay": solve_spec(micro_batch=8, replay=Replay(24, 0.75), embeddings=Embeddings(D, 2.0)),
}  # fmt: skip
EACH = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "REFRESH_MIN", 4)
    monkeypatch.setattr(rows, "SWEEP_ROWS", 5)


def embed(model: Backend, items: object, vectors: object) -> None:
    """Allocate the keys and set the vectors as the next record."""
    rows = model.items.allocate(np.asarray(items, np.uint64))
    table = np.asarray(vectors, np.float16)
    model.set_embeddings(ITEMS, rows, table, model.revision + 1, model.items.allocated)


def step(model: Backend, rng: np.random.Generator, turn: int) -> None:
    """Learn one record. In every third turn it has vectors: new, repeated and removed ones."""
    if turn % 3 == 0:
        items = rng.integers(0, ITEM_KEYS, 7)
        vectors = rng.normal(size=(7, D)) * (rng.random((7, 1)) < 0.8)
        embed(model, items, vectors)
        return
    events = int(rng.integers(1, 40))
    items = np.where(rng.random(events) < 0.3, 3, rng.integers(0, 6 + turn, events))
    push(model, rng.integers(0, 9, events), items, rng.integers(0, 2, events), rng.random(events) + 0.1)


def learn(model: Backend, turns: range, seed: int = 4) -> None:
    for turn in turns:
        step(model, np.random.default_rng((seed, turn)), turn)


def events_until(turns: range, spec: ModelSpec) -> int:
    counter = ReferenceModel(spec)
    learn(counter, turns)
    return int(counter.users.seen_count.sum())


@EACH
@pytest.mark.parametrize("seed", [1, 2])
def test_the_kernels_have_the_bits_of_the_reference(spec, seed) -> None:
    fast, judge = CpuModel(spec), ReferenceModel(spec)
    for turn in range(15):
        learn(fast, range(turn, turn + 1), seed)
        learn(judge, range(turn, turn + 1), seed)
        assert_same(fast, judge)
    state = fast.state()
    # The stream computes a map, and items with it are in the sums.
    assert state["prior.map"].any() and state["prior.progress"][2] > 2
    described = fast.items.sections(fast.published[ITEMS])["described"]
    assert set(described.tolist()) == {0, 1, 2}


@EACH
def test_a_restored_model_goes_on_to_the_same_bits(spec) -> None:
    first, second, third = ReferenceModel(spec), CpuModel(spec), ReferenceModel(spec)
    learn(first, range(9))
    restore(second, first, events_until(range(9), spec))
    learn(first, range(9, 13))
    learn(second, range(9, 13))
    assert differences(second, first) == []
    restore(third, second, events_until(range(13), spec))
    learn(first, range(13, 18))
    learn(third, range(13, 18))
    assert differences(third, first) == []


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_pin_keeps_its_revision(backend) -> None:
    spec = SPECS["mix"]
    model = create_backend(backend, spec)
    learn(model, range(8))
    before = copy_state(model)
    with model.pin() as pin:
        learn(model, range(8, 16))
        got = read_pin(pin)
        assert unlike(got, {name: before[name] for name in got}) == []
        for side, name in SIDES:
            count = pin.counts[side]
            names = [each.split(".")[1] for each in before if each.startswith(name) and "keys" not in each]
            read = pin.read(side, np.arange(count, dtype=np.uint32), names)
            assert all(read[each].tobytes() == before[f"{name}.{each}"].tobytes() for each in names)
    assert unlike(copy_state(model), before) != []


def trained(seed: int = 0, cold: int = 4) -> tuple[ReferenceModel, np.ndarray]:
    """Return a model whose items come in two kinds that their vectors tell apart, and the vectors.

    The last `cold` items have no events.
    """
    rng = np.random.default_rng(seed)
    spec = solve_spec(
        k=4, init_scale=1.0, solve=Solve(0.3, 2, 4), counts=Counts(), embeddings=Embeddings(D, 3.0)
    )
    kinds = np.arange(ITEM_KEYS) % 2
    vectors = (rng.normal(size=(ITEM_KEYS, D)) * 0.3 + np.where(kinds, 1.0, -1.0)[:, None]).astype(np.float16)
    model = ReferenceModel(spec)
    embed(model, np.arange(ITEM_KEYS), vectors)
    for _ in range(14):
        users = rng.integers(0, 30, 60)
        items = 2 * rng.integers(0, (ITEM_KEYS - cold) // 2, 60) + users % 2
        push(model, users, items)
    return model, vectors


def test_the_map_is_a_ridge_regression_of_the_rows() -> None:
    model, vectors = trained()
    described = model.items.described == 2
    assert described.sum() > 10
    sums = model.state()["prior.rows"].reshape(D + 1, 4)
    wide = np.c_[vectors.astype(float), np.ones(len(vectors))][described]
    y = model.items.factors[described, :4].astype(float)
    np.testing.assert_allclose(sums, wide.T @ y, atol=1e-6)
    # Many changes make the map due, and a further vector of the same item changes nothing else.
    before = sums.copy()
    for _ in range(ITEM_KEYS):
        embed(model, [0], vectors[:1])
    np.testing.assert_allclose(sums, before, atol=1e-9)
    gram = model.state()["prior.gram"].reshape(D + 1, D + 1)
    np.testing.assert_allclose(gram, wide.T @ wide, atol=1e-9)
    ridge = np.diag([RIDGE * np.square(wide[:, :-1]).sum() / len(wide)] * D + [0.0])
    map_ = model.state()["prior.map"].reshape(D + 1, 4)
    np.testing.assert_allclose(map_, np.linalg.solve(wide.T @ wide + ridge, wide.T @ y), atol=1e-6)


def test_an_item_without_events_is_ranked_by_its_vector() -> None:
    model, vectors = trained()
    cold = np.arange(ITEM_KEYS - 4, ITEM_KEYS)
    map_ = model.state()["prior.map"].reshape(D + 1, 4)
    expected = np.c_[vectors[cold].astype(float), np.ones(4)] @ map_
    np.testing.assert_allclose(model.items.factors[cold, :4], expected, atol=1e-5)
    persons = PersonReader(model.spec)
    read = persons.read(model.pin(), model.users.find(np.array([0, 1], np.uint64), 99), ITEM_KEYS)
    scores = read.factors[:, :4] @ model.items.factors[cold, :4].T
    # Users of an even number have had items of even numbers.
    assert (scores[0, ::2] > scores[0, 1::2] + 0.1).all() and (scores[1, 1::2] > scores[1, ::2] + 0.1).all()


def test_a_row_without_events_and_vector_is_zero() -> None:
    model, _ = trained()
    embed(model, [ITEM_KEYS - 1, 777], np.zeros((2, D)))
    rows = model.items.find(np.array([ITEM_KEYS - 1, 777], np.uint64), model.published[ITEMS])
    assert not model.items.factors[rows].any() and not model.items.described[rows].any()


def test_a_new_item_starts_at_its_prior_and_moves_with_its_events() -> None:
    """Its first event changes the row less than without the vector; many events make it forget."""
    with_vector, _ = trained()
    without, _ = trained()
    key = ITEM_KEYS - 2
    embed(without, [key], np.zeros((1, D)))
    row = int(with_vector.items.find(np.array([key], np.uint64), 99)[0])
    prior = with_vector.items.factors[row, :4].copy()
    gaps = []
    for model in (with_vector, without):
        push(model, [2], [key])
    gaps.append([np.linalg.norm(m.items.factors[row, :4] - prior) for m in (with_vector, without)])
    assert gaps[0][0] < 0.7 * gaps[0][1]
    for _ in range(12):
        for model in (with_vector, without):
            push(model, np.arange(1, 30, 2), [key] * 15)
    rows = [model.items.factors[row, :4] for model in (with_vector, without)]
    assert np.linalg.norm(rows[0] - rows[1]) < 0.1 * np.linalg.norm(rows[1])


@pytest.mark.parametrize("name", ["mix", "recent"])
def test_a_newcomer_begins_with_the_mean_popularity(name: str, monkeypatch) -> None:
    """Its counts decay with all others, and the sums are those of the items with events."""
    monkeypatch.setattr(rows, "REFRESH_MIN", 256)
    model, rng = CpuModel(SPECS[name]), np.random.default_rng(3)

    def sums() -> tuple[np.ndarray, float, float]:
        mix, popularity = model.state()["mix"], model.items.bias[: model.published[ITEMS]].astype(float)
        seen = model.items.history["seen_count"][: len(popularity)] > 0
        assert mix[SUM] == pytest.approx(popularity[seen].sum(), rel=1e-12)
        assert mix[SQUARES] == pytest.approx((popularity[seen] ** 2).sum(), rel=1e-12)
        return popularity, float(mix[SUM] / seen.sum()), float(popularity[-1])

    push(model, rng.integers(0, 9, 300), rng.integers(0, 20, 300), None)
    _, mean, _ = sums()
    embed(model, [100, 101, 3], np.ones((3, D)))
    popularity, _, newest = sums()
    assert popularity[-2] == newest == pytest.approx(mean, rel=1e-6)
    embed(model, [100, 101], np.full((2, D), 2.0))
    assert sums()[2] == newest
    embed(model, [101], np.zeros((1, D)))
    assert sums()[2] == 0
    embed(model, [101], np.ones((1, D)))
    push(model, [1] * 30, rng.integers(0, 20, 30), None)
    push(model, [2], [5], None)
    decayed = sums()[2]
    assert 0 < decayed < newest
    push(model, [2], [101], None)
    assert sums()[2] > decayed


def test_specs_without_a_place_for_vectors_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"embeddings\.dimension: expected 0\.\.1024, got 1025"):
        solve_spec(embeddings=Embeddings(1025))
    with pytest.raises(SpecError, match="loss: expected implicit"):
        solve_spec(Loss.SQUARED, embeddings=Embeddings(8))
    with pytest.raises(SpecError, match=r"embeddings\.dimension.*backend cuda"):
        check_cuda(check(SPECS["plain"]))
