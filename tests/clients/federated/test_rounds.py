"""Federated rounds: merging in plain functions, and a round of three participants with servers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import livefactor
from livefactor import federated
from livefactor.errors import ColumnError, MissingPackage
from livefactor.federated import Contribution, FixedPoint, Rows
from livefactor_server.snapshots.audit import replay_model

K = 8


def contribution(keys: list[int], value: float, events: float = 1.0) -> Contribution:
    return Contribution(np.array(keys, np.uint64), np.full((len(keys), 3), value), events)


def test_a_mean_weighs_by_events_and_an_absent_row_counts_as_unchanged() -> None:
    mean = federated.weighted_mean([contribution([1, 5], 1.0, 30.0), contribution([5, 9], 5.0, 10.0)])
    assert mean.keys.tolist() == [1, 5, 9] and mean.events == 40.0
    assert mean.numbers[:, 0].tolist() == [0.75, 2.0, 1.25]
    for given in ([], [contribution([1], 1.0, 0.0)]):
        with pytest.raises(ValueError, match=r"given|events"):
            federated.weighted_mean(given)


def test_a_trimmed_mean_bounds_what_a_minority_does() -> None:
    honest = [contribution([1, 2], value) for value in (1.0, 1.1, 0.9, 1.0)]
    for lie in (1e6, -1e6):
        merged = federated.trimmed_mean([*honest, contribution([1, 2], lie, 1e9)], 0.2)
        assert (np.abs(merged.numbers - 1.0) <= 0.1).all()
        assert np.abs(federated.weighted_mean([*honest, contribution([1, 2], lie)]).numbers).max() > 1e5
    for share in (0.5, -0.1, 0.45):
        with pytest.raises(ValueError, match="share"):
            federated.trimmed_mean(honest, share)


def test_a_difference_is_what_changed_with_a_limit_of_its_norm() -> None:
    before = Rows(np.array([1, 3], np.uint64), np.ones((2, 3), np.float32))
    after = Rows(np.array([1, 2, 3], np.uint64), np.array([[1, 1, 1], [9, 9, 9], [1, 4, 5]], np.float32))
    found = federated.difference(before, after, 7.0)
    assert found.keys.tolist() == [1, 3] and found.numbers.tolist() == [[0, 0, 0], [0, 3, 4]]
    assert (found.norm, found.events) == (5.0, 7.0)
    assert federated.difference(before, after, 7.0, norm_max=2.5).numbers[1].tolist() == [0, 1.5, 2]
    # A row that the participant lacks has not changed.
    alone = Rows(np.array([3], np.uint64), np.array([[2, 1, 1]], np.float32))
    assert federated.difference(before, alone, 1.0).numbers.tolist() == [[0, 0, 0], [1, 0, 0]]


def secure_mean(given: list[Contribution], code: FixedPoint, most: float, missing: int) -> Contribution:
    people = [federated.Participant(index, 3, b"round") for index in range(1, len(given) + 1)]
    adverts = [each.advert() for each in people]
    shares = [each.share(adverts) for each in people]
    there = people[: len(people) - missing]
    masked = [
        each.mask(
            federated.addressed_to(each.index, shares),
            federated.vector_of(given[each.index - 1], code, most),
        )
        for each in there
    ]
    revealed = [each.reveal([one.sender for one in masked]) for each in there]
    total, liars = federated.unmask(adverts, shares, masked, revealed, 3, b"round")
    assert liars == ()
    return federated.merged_from(total, given[0].keys, code, most)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_secure_mean_has_the_bits_of_the_plain_one_in_fixed_point(missing: int) -> None:
    rng = np.random.default_rng(missing)
    keys = np.arange(50, dtype=np.uint64)
    given = [Contribution(keys, rng.normal(size=(50, 9)), float(events)) for events in (10, 40, 25, 33)]
    code, most = FixedPoint(8.0, 4), 40.0
    secure = secure_mean(given, code, most, missing)
    there = given[: len(given) - missing]
    plain = np.sum([federated.vector_of(each, code, most) for each in there], axis=0, dtype=np.uint32)
    assert secure.numbers.tobytes() == federated.merged_from(plain, keys, code, most).numbers.tobytes()
    exact = federated.weighted_mean(there)
    np.testing.assert_allclose(secure.numbers, exact.numbers, atol=1e-6)
    assert secure.events == pytest.approx(exact.events, rel=1e-6)
    with pytest.raises(ValueError, match="events"):
        federated.vector_of(given[1], code, 30.0)
    with pytest.raises(ColumnError, match="within"):
        federated.vector_of(Contribution(keys, np.full((50, 9), 9.0), 40.0), code, most)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[livefactor.Local]:
    with livefactor.local("clicks_sgd", data=tmp_path / "data") as server:
        yield server


def snapshot(server: livefactor.Local, model: str, folder: Path) -> livefactor.LoadedSnapshot:
    with server.auditor(model=model) as auditor:
        taken = auditor.snapshot()
        path = folder / f"{model}-{taken.snapshot_id}"
        # A model that has not changed since then has the same snapshot.
        if not path.exists():
            auditor.fetch(path, taken.snapshot_id)
    return livefactor.load(path)


def test_participants_learn_one_model_and_keep_their_users(server: livefactor.Local, tmp_path: Path) -> None:
    """Even users like even items, odd ones odd ones. Each participant has users of both kinds."""
    rng, items = np.random.default_rng(6), np.arange(20, dtype=np.uint64)
    names = ("common", "a", "b", "c")
    with server.models() as models:
        for name in names:
            merge = {"learning_rate": 3.0, "norm_max": 50.0} if name == "common" else federated.LOCAL_MERGE
            models.create(name, "clicks_sgd", k=K, merge=merge)
    pushers = {name: server.producer("rows", model=name, labels=False) for name in names}
    for pusher in pushers.values():
        federated.give(pusher, Contribution(items, np.zeros((20, K + 1)), 0.0))
    rows = federated.rows_of(snapshot(server, "common", tmp_path))
    present = {name: federated.rows_of(snapshot(server, name, tmp_path)) for name in names[1:]}
    # The initial row of an item is a function of its id.
    assert all(each.numbers.tobytes() == rows.numbers.tobytes() for each in present.values())
    for _ in range(4):
        given = []
        for place, name in enumerate(names[1:]):
            federated.adopt(pushers[name], present[name], rows)
            users = rng.integers(0, 10, 300) + 100 * place
            liked = 2 * rng.integers(0, 10, 300) + users % 2
            pushers[name].push(users.astype(np.uint64), liked.astype(np.uint64)).result()
            present[name] = federated.rows_of(snapshot(server, name, tmp_path))
            given.append(federated.difference(rows, present[name], 300.0))
        position = federated.give(pushers["common"], federated.weighted_mean(given))
        rows = federated.rows_of(snapshot(server, "common", tmp_path))
    common = snapshot(server, "common", tmp_path)
    assert (common.revision, len(common.tensors["users.keys"])) == (position.revision, 0)
    for place, name in enumerate(names[1:]):
        federated.adopt(pushers[name], present[name], rows)
        adopted = federated.rows_of(snapshot(server, name, tmp_path))
        np.testing.assert_allclose(adopted.numbers, rows.numbers, atol=1e-5)
        with server.scorer(model=name) as scorer:
            for user in (100 * place, 100 * place + 1):
                best = scorer.recommend(user, k=8)[0].item_ids.tolist()
                assert sum(item % 2 == user % 2 for item in best) >= 7
    for pusher in pushers.values():
        pusher.close()
    with server.models() as models:
        root_hash = models.describe("common", with_root_hash=True).root_hash
    # The records of the rounds give the model, on the reference, too.
    assert replay_model(tmp_path / "data" / "models" / "common", "reference", None).root_hash == root_hash


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "livefactor.federated.masking")
    monkeypatch.delattr(federated, "masking", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for name in [name for name in sys.modules if name.startswith("cryptography.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingPackage, match=r"livefactor\[federated\]"):
        _ = federated.Participant
    with pytest.raises(AttributeError, match="nothing"):
        _ = federated.nothing  # type: ignore[attr-defined]
