"""Sums of the map of users that others computed: the regression, its limits, and the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from livefactor_kernels.backend import Backend
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.solve.prior import RIDGE
from livefactor_kernels.solve.prior.sums import MapSums
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import Embeddings, Features, Merge, Privacy, SpecError
from livefactor_kernels.tables import ITEMS, USERS
from specs import solve_spec
from synthetic import assert_same, push, restore

D, K = 3, 20
SPECS = {
    "plain": solve_spec(embeddings=Embeddings(0, 4.0, D), merge=Merge(1.0, 1e9)),
    "features": solve_spec(
        embeddings=Embeddings(0, 4.0, D), features=Features(64, 4, 4.0), merge=Merge(1.0, 1e9)
    ),
}
EACH = pytest.mark.parametrize("name", SPECS)


def sums_of(users: int, seed: int, **changes: object) -> MapSums:
    """The sums of random users."""
    rng = np.random.default_rng(seed)
    e = np.column_stack([rng.normal(size=(users, D)), np.ones(users)])
    gram = e.T @ e
    made = MapSums((gram + gram.T) / 2, e.T @ rng.normal(size=(users, K)), 1.0, 0)
    return made._replace(**changes)


def add(model: Backend, sums: MapSums) -> None:
    """Add sums as the next record."""
    model.add_map_sums(sums._replace(revision=model.revision + 1))


def described(model: Backend) -> None:
    """Items with events of two users, and ten users who have vectors alone."""
    rng = np.random.default_rng(3)
    push(model, rng.integers(0, 2, 40), rng.integers(0, 12, 40), None)
    rows = model.users.allocate(np.arange(2, 12, dtype=np.uint64))
    vectors = rng.normal(size=(10, D)).astype(np.float16)
    model.set_embeddings(USERS, rows, vectors, model.revision + 1, model.users.allocated)


def map_of(model: Backend) -> np.ndarray:
    return model.state()["user_prior.map"].reshape(D + 1, K).copy()


@EACH
def test_the_map_is_the_regression_over_all_users_and_gives_cold_users_their_rows(name: str) -> None:
    models: list[Backend] = [CpuModel(SPECS[name]), ReferenceModel(SPECS[name])]
    parts = [sums_of(30, 1), sums_of(50, 2)]
    gram, rows = sum(part.gram for part in parts), sum(part.rows for part in parts)
    ridge = RIDGE * np.trace(gram[:D, :D]) / gram[D, D] * np.diag([1.0] * D + [0.0])
    expected = np.linalg.solve(gram + ridge, rows)
    for model in models:
        described(model)
        before = {key: array.copy() for key, array in model.sections(USERS, 12).items()}
        with model.pin() as pin:
            for part in parts:
                add(model, part)
            assert pin.read_rows(USERS, 0, 12)["factors"].tobytes() == before["factors"].tobytes()
        np.testing.assert_allclose(map_of(model), expected, rtol=1e-9, atol=1e-12)
        assert model.state()["user_prior.progress"].tolist() == [0, 12, 0]
        found = model.sections(USERS, 12)
        e = np.column_stack([found["embedding"][2:].astype(np.float64), np.ones(10)])
        np.testing.assert_allclose(found["factors"][2:], e @ expected, rtol=1e-5, atol=1e-6)
        # Users with events and without a vector stay as they are.
        assert found["factors"][:2].tobytes() == before["factors"][:2].tobytes()
        assert model.published[ITEMS] == 12
        push(model, [2, 3], [0, 1], None)
    assert_same(*models)


@EACH
def test_a_restored_model_goes_on_to_the_same_bits(name: str) -> None:
    first = CpuModel(SPECS[name])
    described(first)
    add(first, sums_of(30, 1))
    restored = CpuModel(SPECS[name])
    restore(restored, first, 40)
    for model in (first, restored):
        add(model, sums_of(7, 4))
        push(model, [4, 5], [0, 1], None)
    assert_same(first, restored)


@pytest.mark.parametrize(
    ("norm", "weight", "scale"), [(1.0, 1.0, 1.0), (1.0, 2.0, 2.0), (8.0, 1.0, 0.5), (1e25, 2.0, 8e-25)]
)
def test_a_contribution_is_weighed_and_a_long_one_is_scaled_down(
    norm: float, weight: float, scale: float
) -> None:
    spec = check(replace(SPECS["plain"], merge=Merge(0.5, 4.0)))
    sums = sums_of(5, 9)
    length = np.linalg.norm(np.append(sums.gram[np.triu_indices(D + 1)], sums.rows))
    sums = sums._replace(gram=sums.gram * norm / length, rows=sums.rows * norm / length, weight=weight)
    models: list[Backend] = [CpuModel(spec), ReferenceModel(spec)]
    for model in models:
        add(model, sums)
        state = model.state()
        np.testing.assert_allclose(state["user_prior.gram"], 0.5 * scale * sums.gram.ravel(), rtol=1e-12)
        np.testing.assert_allclose(state["user_prior.rows"], 0.5 * scale * sums.rows.ravel(), rtol=1e-12)
    assert_same(*models)


def test_sums_without_a_regression_leave_the_map_as_it_was() -> None:
    models: list[Backend] = [CpuModel(SPECS["plain"]), ReferenceModel(SPECS["plain"])]
    for model in models:
        add(model, MapSums(np.zeros((D + 1, D + 1)), np.ones((D + 1, K)), 1.0, 0))
        assert not map_of(model).any()
        add(model, sums_of(30, 1))
        before = map_of(model)
        assert before.any()
        # No vectors have this sum. The server refuses it.
        add(model, MapSums(np.full((D + 1, D + 1), -1e6), np.ones((D + 1, K)), 1.0, 0))
        assert map_of(model).tobytes() == before.tobytes()
        described(model)
        assert np.isfinite(model.sections(USERS, 12)["factors"]).all()
    assert_same(*models)


def test_specs_that_cannot_take_sums_are_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"rule: expected .* or solve with embeddings.user_dimension"):
        check(replace(SPECS["plain"], embeddings=Embeddings(D, 4.0, 0)))
    with pytest.raises(SpecError, match=r"privacy.epsilon: expected 0 with rule solve"):
        check(replace(SPECS["plain"], privacy=Privacy(8.0, 1e-6, 60, 1.0, 2.0)))
    with pytest.raises(SpecError, match=r"expected 0 on backend cuda"):
        check_cuda(SPECS["plain"])
