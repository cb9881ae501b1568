"""Differential privacy of a served model: contributions, releases, the budget, restarts, proofs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import livefactor
from livefactor.errors import FailedPrecondition, InvalidArgument
from livefactor_server.changes import show
from livefactor_server.cli.app import app
from livefactor_server.snapshots.audit import ReplayError, replay_model

K = 8
BUDGET = {"epsilon": 8.0, "delta": 1e-6, "window_seconds": 0, "clip": 1.0, "noise": 1.0}
SPEC = {"k": K, "merge": {"learning_rate": 1.0, "norm_max": 1e20}, "privacy": BUDGET}
NAMES = ["mug", "lamp", "tent"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[livefactor.Local]:
    with livefactor.local("clicks_sgd", data=tmp_path / "data") as server:
        with server.models() as models:
            models.create("shop", "clicks_sgd", **SPEC)
        with server.producer("items", model="shop") as producer:
            producer.push_deltas("item", NAMES, np.zeros((3, K))).result()
        yield server


def item_rows(server: livefactor.Local, folder: Path) -> np.ndarray:
    """The factors and the bias of each item, in the order of `NAMES`."""
    with server.auditor(model="shop") as auditor:
        taken = auditor.snapshot()
        if not (folder / taken.snapshot_id).exists():
            auditor.fetch(folder / taken.snapshot_id, taken.snapshot_id)
    tensors = livefactor.load(folder / taken.snapshot_id).tensors
    rows = np.column_stack([tensors["items.factors"], tensors["items.bias"]])
    return rows[np.argsort(tensors["items.keys"])]


def test_a_release_is_a_noisy_sum_of_clipped_contributions(server: livefactor.Local, tmp_path: Path) -> None:
    before = item_rows(server, tmp_path)
    with server.models() as models:
        assert models.privacy("shop").next_release == 1
        one = np.zeros((1, K))
        one[0, 0] = 1000.0
        for user in range(400):
            assert models.contribute("shop", 1, user, [NAMES[0]], one)
        assert not models.contribute("shop", 1, 7, [NAMES[0]], one), "a user counts once"
        # A contribution is not in the log, and an unknown item is left out.
        assert models.contribute("shop", 1, "new", ["unknown", NAMES[0]], np.zeros((2, K)), np.ones(2))
        before_release = models.describe("shop").position.revision
        made = models.make_release("shop", 1)
        assert made.revision == before_release + 1
        assert models.make_release("shop", 1).revision == made.revision, "it is made once"
        budget = models.privacy("shop")
    assert (budget.releases, budget.all_releases, budget.next_release) == (1, 1, 2)
    assert budget.spent_epsilon == pytest.approx(4.886554, abs=1e-6)
    moved = item_rows(server, tmp_path) - before
    # Noise has a standard deviation of 1 on every number of every item.
    largest = np.unravel_index(moved.argmax(), moved.shape)
    assert moved[largest] == pytest.approx(400, abs=8) and largest[1] == 0
    rest = np.delete(moved.ravel(), moved.argmax())
    assert np.all(np.abs(rest) > 0) and np.all(np.abs(rest) < 8) and 0.5 < rest.std() < 1.6


def test_a_spent_budget_refuses_and_is_in_snapshots_and_the_log(
    server: livefactor.Local, tmp_path: Path
) -> None:
    with server.models() as models:
        most = models.privacy("shop").releases_max
        assert most == 2
        for number in range(1, most + 1):
            models.make_release("shop", number)
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="budget of window 0 is spent"):
                models.make_release("shop", most + 1)
        revision = models.describe("shop").position.revision
        with server.auditor(model="shop") as auditor:
            snapshot = auditor.snapshot()
        restored = models.restore("again", "shop")
        assert restored.position.revision >= revision
        # A restored model goes on with what was spent, and so does one with another spec.
        with pytest.raises(FailedPrecondition, match="is spent"):
            models.make_release("again", most + 1)
        with pytest.raises(FailedPrecondition, match="privacy cannot be changed"):
            models.promote("shop", privacy={"epsilon": 50.0})
        models.promote("shop", merge={"learning_rate": 0.5})
        models.roll_back("shop", to_revision=revision - 1)
        with pytest.raises(FailedPrecondition, match="is spent"):
            models.make_release("shop", most + 1)
        shown = CliRunner().invoke(app, ["models", "privacy", "shop", "--target", server.target])
        assert shown.exit_code == 0, shown.output
        assert "budget of a window" in shown.output and "without an end" in shown.output
    report = replay_model(tmp_path / "data" / "models" / "shop")
    assert report.good and report.snapshots[snapshot.snapshot_id]
    changes = [row["change"] for row in show.rows(tmp_path / "data" / "models" / "shop" / "log", 1)]
    assert "release 2 of window 0, dimension 8" in changes


def test_a_restart_keeps_what_was_spent_and_begins_the_release_anew(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with livefactor.local("clicks_sgd", data=folder) as server, server.models() as models:
        models.create("shop", "clicks_sgd", **SPEC)
        with server.producer("items", model="shop") as producer:
            producer.push_deltas("item", NAMES, np.zeros((3, K))).result()
        models.make_release("shop", 1)
        assert models.contribute("shop", 2, "ann", NAMES, np.ones((3, K)))
    with livefactor.local("clicks_sgd", data=folder) as server, server.models() as models:
        assert models.privacy("shop").all_releases == 1
        assert models.contribute("shop", 2, "ann", NAMES, np.ones((3, K))), "it is counted anew"
        models.make_release("shop", 2)
        with pytest.raises(FailedPrecondition, match="is spent"):
            models.make_release("shop", 3)


def test_what_would_break_the_promise_is_refused(server: livefactor.Local) -> None:
    good = np.ones((3, K))
    with server.models() as models:
        models.create("open", "clicks_sgd", k=K, merge=SPEC["merge"])
        with pytest.raises(FailedPrecondition, match="no privacy"):
            models.privacy("open")
        with pytest.raises(FailedPrecondition, match="no privacy"):
            models.contribute("open", 1, 5, NAMES, good)
        for number in (0, 2):
            with pytest.raises(FailedPrecondition, match="expected 1, which is the next one"):
                models.contribute("shop", number, 5, NAMES, good)
            with pytest.raises(FailedPrecondition, match="expected 1, which is the next one"):
                models.make_release("shop", number)
        with pytest.raises(InvalidArgument, match="expected dimension 8"):
            models.contribute("shop", 1, 5, NAMES, good[:, :3])
        with pytest.raises(FailedPrecondition, match="cannot forget items"):
            models.forget_cost("shop", items=["mug"])
        models.create("empty", "clicks_sgd", **SPEC)
        with pytest.raises(FailedPrecondition, match="expected 1 to"):
            models.make_release("empty", 1)
    with (
        server.producer("events", model="shop") as producer,
        pytest.raises(InvalidArgument, match="a model with privacy takes none"),
    ):
        producer.push(["ann"], ["mug"]).result()
    with (
        server.producer("deltas", model="shop") as producer,
        pytest.raises(InvalidArgument, match="takes zeros alone"),
    ):
        producer.push_deltas("item", NAMES, good).result()


def test_a_log_with_a_release_above_the_budget_fails_verification(
    server: livefactor.Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that forgets to check is found by whoever replays its log."""
    from livefactor_server.model.ledger import Ledger

    def unchecked(self: Ledger, window: int, number: int) -> None:
        return

    with server.models() as models, monkeypatch.context() as cheat:
        cheat.setattr(Ledger, "check", unchecked)
        for number in (1, 2, 3):
            models.make_release("shop", number)
    with pytest.raises(ReplayError, match="budget of window 0 is spent"):
        replay_model(tmp_path / "data" / "models" / "shop")
