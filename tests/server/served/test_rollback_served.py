"""A rollback by RPC, by the Python client and by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import typer

from livefactor import FailedPrecondition, InvalidArgument, Models, NotFound, Producer, Scorer
from livefactor.in_process import local
from livefactor_server.cli.app import app
from livefactor_server.snapshots.audit import replay_model

SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}


def score(server: Any) -> list[float]:
    with Scorer(channel=server.channel, model="m") as scorer:
        return scorer.score([1, 2, 3], [4, 5, 6]).scores.tolist()


def test_a_model_is_rolled_back_and_restored_at_a_revision(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    runner, command = click.testing.CliRunner(), typer.main.get_command(app)
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:
        models.create("m", "clicks_sgd", **SPEC)
        positions, scores = [], []
        with Producer(producer_id="feed", channel=server.channel, model="m") as producer:
            for _ in range(6):
                ack = producer.push(rng.integers(1, 9, 50), rng.integers(1, 9, 50)).result(30)
                positions.append(ack.position.revision)
                scores.append(score(server))
            told: list[tuple[int, int]] = []
            found = models.roll_back("m", to_revision=positions[2], on_progress=lambda *at: told.append(at))
            assert score(server) == scores[2] != scores[5]
            assert found.skipped == ((positions[2] + 1, positions[5]),) and found.events == 150
            assert all(at <= last for at, last in told)
            # The next sequence follows.
            assert producer.push([1], [2]).result(30).position.revision == found.position.revision + 1
        taken = runner.invoke(
            command, ["models", "rollback", "m", "--without", "feed:1-2", "--target", server.target, "--json"]
        )
        assert taken.exit_code == 0, taken.output
        skipped = json.loads(taken.stdout)["skipped"]
        assert skipped == [[positions[0], positions[1]], [positions[2] + 1, positions[5]]]
        text = runner.invoke(command, ["models", "describe", "m", "--target", server.target])
        assert f"revisions {positions[0]} to {positions[1]} have no effect" in text.stdout
        before = models.describe("m", with_root_hash=True)
        for bad in ({}, {"to_revision": 1, "to_time_us": 1}, {"without": [("feed", 3, 2)]}):
            with pytest.raises(InvalidArgument):
                models.roll_back("m", **bad)
        for bad in ({"to_revision": 10**6}, {"to_time_us": 5}, {"without": [("feed", 99, 99)]}):
            with pytest.raises(FailedPrecondition):
                models.roll_back("m", **bad)
        with pytest.raises(NotFound):
            models.roll_back("nosuchmodel", to_revision=1)
        for arguments in ([], ["--to", "soon"], ["--without", "feed"], ["--to", "1", "--without", "feed:1"]):
            asked = runner.invoke(command, ["models", "rollback", "m", *arguments, "--target", server.target])
            assert asked.exit_code == 2, asked.output
        after = models.describe("m", with_root_hash=True)
        assert (after.root_hash, after.position) == (before.root_hash, before.position)
        # Another model begins with what this one was.
        models.restore("again", "m", revision=positions[4])
        with Scorer(channel=server.channel, model="again") as scorer:
            assert scorer.score([1, 2, 3], [4, 5, 6]).scores.tolist() == scores[4]
        with pytest.raises(FailedPrecondition):
            models.restore("third", "m", revision=10**6)
        with pytest.raises(InvalidArgument, match="at most one"):
            models.restore("third", "m", "0" * 20 + "-" + "0" * 8, revision=1)
        timed = runner.invoke(
            command,
            ["models", "restore", "now", "m", "--time", "2098-01-01T00:00:00", "--target", server.target],
        )
        assert timed.exit_code == 0, timed.output
    report = replay_model(tmp_path / "models" / "m")
    assert report.good and report.root_hash == after.root_hash
