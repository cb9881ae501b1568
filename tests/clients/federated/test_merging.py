"""Means that a few wrong contributions do not move, and the proof that a record was applied."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import livefactor
from livefactor import federated
from livefactor.errors import MissingPackage, SnapshotInvalid
from livefactor.federated import Contribution

K = 8


def contribution(value: float, keys: tuple[int, ...] = (1, 2), events: float = 1.0) -> Contribution:
    return Contribution(np.array(keys, np.uint64), np.full((len(keys), 3), value), events)


def test_krum_chooses_among_those_that_agree() -> None:
    honest = [contribution(value) for value in (1.0, 1.1, 0.9, 1.05, 0.95)]
    for lies in ((1e6, -1e6), (3.0, 3.0), (float("1e300"), 0.0)):
        given = [*honest, *(contribution(lie, events=1e9) for lie in lies)]
        one, three = federated.krum(given, 2), federated.krum(given, 2, chosen=3)
        assert one.numbers.tobytes() in {each.numbers.tobytes() for each in honest}
        assert np.abs(three.numbers - 1.0).max() <= 0.1 and three.events == 3.0
        assert np.abs(federated.weighted_mean(given).numbers - 1.0).max() > 0.5
    # Others do not hide behind rows of their own: what they leave out counts as unchanged.
    aside = [contribution(1.0, (7, 8)), contribution(2.0, (8, 9))]
    assert (
        not np.isin([7, 8, 9], federated.krum([*honest, *aside], 2).keys).all()
        or (federated.krum([*honest, *aside], 2).numbers[2:] == 0).all()
    )


def test_krum_refuses_what_it_cannot_hold() -> None:
    given = [contribution(1.0)] * 6
    for wrong, chosen, text in ((2, 1, "7 contributions"), (-1, 1, "wrong"), (1, 4, "1..3"), (1, 0, "1..3")):
        with pytest.raises(ValueError, match=text):
            federated.krum(given, wrong, chosen)
    with pytest.raises(ValueError, match="expected a contribution"):
        federated.krum([], 0)


def test_a_mean_of_rows_that_few_have_is_that_of_whole_tables() -> None:
    rng = np.random.default_rng(5)
    given = []
    for events in (10.0, 1.0, 4.0):
        keys = np.sort(rng.choice(20, 6, replace=False)).astype(np.uint64)
        given.append(Contribution(keys, rng.normal(size=(6, 3)), events))
    whole = np.zeros((20, 3))
    for each in given:
        whole[each.keys.astype(int)] += each.numbers * each.events / 15.0
    mean = federated.weighted_mean(given)
    np.testing.assert_allclose(mean.numbers, whole[mean.keys.astype(int)], rtol=1e-12)
    assert not whole[np.setdiff1d(np.arange(20), mean.keys.astype(int))].any()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[livefactor.Local]:
    with livefactor.local("clicks_sgd", data=tmp_path / "data") as server:
        with server.models() as models:
            models.create("common", "clicks_sgd", k=K, merge={"learning_rate": 0.7, "norm_max": 2.0})
        with server.producer("items", model="common", labels=False) as producer:
            federated.register(producer, np.arange(30, dtype=np.uint64), K)
        yield server


def snapshot(server: livefactor.Local, folder: Path) -> livefactor.LoadedSnapshot:
    with server.auditor(model="common") as auditor:
        taken = auditor.snapshot()
        auditor.fetch(folder / taken.snapshot_id, taken.snapshot_id)
    return livefactor.load(folder / taken.snapshot_id)


@pytest.mark.parametrize("size", [0.01, 5.0])
def test_the_record_of_a_round_explains_the_rows_to_the_bit(
    server: livefactor.Local, tmp_path: Path, size: float
) -> None:
    """Below the limit of the norm, and above it."""
    rng = np.random.default_rng(3)
    numbers = rng.normal(size=(12, K + 1)) * size
    merged = Contribution(np.sort(rng.choice(30, 12, replace=False)).astype(np.uint64), numbers, 1.0)
    with server.producer("rounds", model="common", labels=False) as producer:
        before = snapshot(server, tmp_path)
        federated.give(producer, merged, weight=0.3)
        after = snapshot(server, tmp_path)
        assert federated.unexplained_rows(before, merged, after, weight=0.3).tolist() == []
        # Another weight, and one number more or less, do not explain them.
        assert len(federated.unexplained_rows(before, merged, after)) == 12
        other = Contribution(merged.keys, numbers.copy(), 1.0)
        other.numbers[4, 2] += size
        found = federated.unexplained_rows(before, other, after, weight=0.3)
        assert merged.keys[4] in found
        federated.give(producer, merged)
        later = snapshot(server, tmp_path)
    with pytest.raises(ValueError, match="expected revision"):
        federated.unexplained_rows(before, merged, later)
    with pytest.raises(ValueError, match="before the record"):
        federated.unexplained_rows(after, Contribution(np.array([99], np.uint64), numbers[:1], 1.0), later)


def test_a_participant_learns_at_home_and_gives_what_changed(
    server: livefactor.Local, tmp_path: Path
) -> None:
    def events(number: int) -> dict[str, np.ndarray]:
        return {
            "user_ids": np.full(5 * number, 77, np.uint64),
            "item_ids": np.arange(5 * number, dtype=np.uint64),
        }

    common = server.auditor(model="common")
    rows = federated.rows_of(snapshot(server, tmp_path))
    taken = common.list()[-1]
    home = federated.Home(server, common, events, "clicks_sgd", {"k": K}, norm_max=0.1)
    given = home.learn(1, taken.snapshot_id, taken.root_hash)
    assert given.events == 5.0 and given.norm == pytest.approx(0.1)
    assert given.numbers.any(axis=1).all() and 5 <= len(given.keys) < 30
    # The rows are those of the common model again before the next round, which another object does.
    again = federated.Home(server, common, lambda _: events(0), "clicks_sgd", {"k": K}, padding=-1)
    nothing = again.learn(2, taken.snapshot_id, taken.root_hash)
    assert nothing.events == 0.0 and nothing.keys.tolist() == rows.keys.tolist()
    assert not nothing.numbers.any()
    np.testing.assert_allclose(again.rows().numbers, rows.numbers, atol=1e-6)
    with server.models() as models:
        assert (models.describe("home").users, models.describe("common").users) == (1, 0)
    with pytest.raises(SnapshotInvalid, match="root hash"):
        home.learn(3, taken.snapshot_id, bytes(32))
    with pytest.raises(livefactor.NotFound):
        home.learn(3, f"{9:020}-{'0' * 8}", taken.root_hash)


def test_without_flower_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "livefactor.federated.flower", raising=False)
    monkeypatch.delattr(federated, "flower", raising=False)
    for name in ("flwr", "flwr.app"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage, match=r"OneRecord needs flwr.*livefactor\[federated\]"):
        _ = federated.OneRecord
