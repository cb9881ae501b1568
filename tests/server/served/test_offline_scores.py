"""A loaded snapshot gives the scores of the live server, for every preset and part, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import livefactor
from livefactor.in_process import Local, local
from livefactor.snapshots import mixing, neighbors
from livefactor.snapshots import scores as offline
from livefactor.v1 import models_pb2
from livefactor_kernels import history, reading, solve
from livefactor_kernels.spec import model as spec_model
from livefactor_kernels.spec.names import PRESET_NAMES

SMALL = {"users_max": 1000, "items_max": 1000}
COUNTS = {"neighbors": 16, "span": 8, "half_life": 8.0, "weight": 0.5, "shrinkage": 10.0, "repeat": 0.25}
FOLLOWS = {"size": 64, "prior_events": 4.0}
RING = {"users": 16, "items": 16, "half_life": 1.5}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fold-in with a bias, counts and repeats": ("ratings", {"counts": COUNTS, "history": RING}),
    "fold-in, counts and repeats": ("clicks", {"counts": COUNTS, "history": RING}),
    "fold-in without a half-life": ("clicks", {"history": {"half_life": 0.0}}),
    "fold-in with further events in the ridge": ("ratings", {"solve": {"ridge_events": 20.0}}),
    "counts without fold-in": ("news", {"counts": COUNTS}),
    "repeats without a half-life": ("purchases", {"counts": {"repeat": 0.5, "half_life": 1e6}}),
    "histories that no score reads": ("clicks_sgd", {"history": {"users": 16}}),
    # The golden digests compile the same kernels.
    "float16": ("ratings_sgd", {"k": 64, "factor_dtype": "float16"}),
    "bfloat16": ("ratings_sgd", {"k": 40, "micro_batch": 100, "factor_dtype": "bfloat16"}),
    "k that is no multiple of 16": ("ratings", {"k": 20}),
    "k of one vector": ("news", {"k": 5}),
    "features of users and items": ("clicks", {"features": FOLLOWS}),
    "a mix with features": ("auto", {"features": FOLLOWS}),
}
CASES = {name: (name, {}) for name in PRESET_NAMES} | PARTS
EVENTS, USERS, ITEMS = 1500, 40, 60
YEAR_2000 = 946_684_800


@pytest.fixture(scope="module")
def server():
    with local("") as running:
        yield running


def fill(server: Local, model: str, preset: str, spec: dict[str, Any]) -> None:
    """Push events in visits of three, some of them repeats, and most of them weighted."""
    with server.models() as models:
        models.create(model, preset, **{**spec, "limits": SMALL})
    rng = np.random.default_rng(4)
    users = rng.integers(0, USERS, EVENTS).astype(np.uint64)
    items = (users % 6 * 10 + rng.integers(0, 10, EVENTS)).astype(np.uint64)
    values = rng.integers(1, 6, EVENTS) if preset.startswith("ratings") else np.ones(EVENTS)
    with server.producer(f"p-{model}", model=model) as producer:
        for part in np.array_split(np.arange(EVENTS), 6):
            weights = rng.random(part.size) + 0.5
            producer.push(users[part], items[part], values[part], weights, times=YEAR_2000 + part // 3)
            if "features" in spec:
                bags = [[f"kind:{key % 6}", f"part:{key % 4}"] for key in range(0, USERS, 2)]
                producer.push_features("user", [*range(0, USERS, 2)], bags)
                producer.push_features("item", [*range(len(bags))], bags)


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_snapshot_scores_as_the_server_does(server: Local, tmp_path: Path, case: str) -> None:
    model = f"m{list(CASES).index(case)}"
    fill(server, model, *CASES[case])
    with server.auditor(model=model) as auditor:
        auditor.snapshot()
        auditor.fetch(tmp_path / "copy")
    loaded = livefactor.load(tmp_path / "copy")
    # The last item and the last user are unknown.
    items = np.arange(ITEMS + 1, dtype=np.uint64)
    users = [*range(0, USERS, 3), 10**9]
    with server.scorer(model=model) as scorer:
        live = scorer.score(users, items)
        assert live.position.revision == loaded.revision
        for user, answer in zip(users, live, strict=True):
            assert loaded.score(user, items).tobytes() == answer.scores.tobytes(), (case, user)
        given = [3, 10**9, 14, 3]
        if loaded.spec.history.users:
            for user, answer in zip(users, scorer.score(users, items, events=given), strict=True):
                assert loaded.score(user, items, events=given).tobytes() == answer.scores.tobytes()
            # An empty list replaces nothing, whether it is one user's or everybody's.
            for empty in ([], [[]] * len(users)):
                same = scorer.score(users, items, events=empty)
                assert same.scores.tobytes() == live.scores.tobytes()
            assert loaded.score(users[0], items, events=[]).tobytes() == live[0].scores.tobytes()
        else:
            with pytest.raises(livefactor.InvalidArgument, match="history"):
                loaded.score(users[0], items, events=given)


def test_both_sides_have_the_same_constants() -> None:
    assert offline.KERNEL_SEMANTICS == spec_model.KERNEL_SEMANTICS
    assert offline.FOLD_SWEEPS == solve.FOLD_SWEEPS
    for module in (mixing, neighbors):
        mine = {name: each for name, each in vars(module).items() if name.isupper()}
        assert mine == {name: getattr(reading, name) for name in mine}
    assert offline.DECAY_STEPS == history.DECAY_STEPS
    assert offline.RIDGE_MIN == solve.RIDGE_MIN
    for half_life in (0.0, 1.5, 8.0):
        assert offline.decays(half_life).tobytes() == history.decays(half_life).tobytes()


def known() -> models_pb2.ModelSpec:
    return models_pb2.ModelSpec(
        k=4, kernel_semantics=1, rule=1, loss=1, history={"users": 16}, event_types=[{"type": 1}]
    )


@pytest.mark.parametrize(
    ("newer", "name"),
    [
        (models_pb2.ModelSpec(kernel_semantics=2).SerializeToString(), "spec.kernel_semantics"),
        (bytes([14 << 3, 77]), "spec.rule"),
        (bytes([0xA0, 0x06, 1]), "spec: .* field 100"),
        (bytes([0x7A, 3, 0xA0, 0x06, 1]), "spec.history: .* field 100"),
        (bytes([0x92, 0x01, 3, 0xA0, 0x06, 1]), "spec.event_types: .* field 100"),
    ],
)
def test_a_spec_with_an_unknown_part_is_refused_by_name(newer: bytes, name: str) -> None:
    spec = known()
    offline.check_known(spec)
    spec.MergeFromString(newer)
    with pytest.raises(livefactor.UnknownSpec, match=name):
        offline.check_known(spec)
