"""Quarantine over RPC: the producer's outcome, the commands, the metrics, and followers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import typer
from prometheus_client import REGISTRY

import livefactor
from following_nodes import Node
from livefactor.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from livefactor_server.cli.app import app
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.judging.observer import ObserverSettings
from livefactor_server.judging.screening import BATCHES_MIN, ScreenSettings
from livefactor_server.snapshots.audit import replay_model
from server_process import wait_until

MODEL = "m"
SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 9000, "items_max": 9000}}
ENGINE = EngineSettings(observer=ObserverSettings(quarantine=ScreenSettings(8.0)))


def run(node: Node, *arguments: str) -> Any:
    made = click.testing.CliRunner().invoke(
        typer.main.get_command(app), ["quarantine", *arguments, "-m", MODEL, "--target", node.target]
    )
    assert made.exit_code == 0, made.output
    return made.stdout


def described(node: Node) -> livefactor.ModelDescription:
    with livefactor.Models(node.target) as models:
        return models.describe(MODEL, with_root_hash=True)


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"livefactor_quarantine_{name}", {"model": MODEL})


def bad(number: int) -> np.ndarray:
    return np.arange(50) + 1000 * number


def test_batches_wait_and_are_decided_also_after_a_failover(node: Callable[[str], Node]) -> None:
    leader, follower = node("leader").start(engine=ENGINE), node("follower")
    with livefactor.Models(leader.target) as models:
        models.create(MODEL, "clicks_sgd", **SPEC)
        with livefactor.Producer(producer_id="feed", target=leader.target, model=MODEL) as producer:
            usual = np.arange(200)
            for _ in range(BATCHES_MIN + 2):
                assert producer.push(usual, usual % 100).result(30).held == 0
            acks = [producer.push(bad(number), bad(number)).result(30) for number in (1, 2, 3)]
        assert [each.held for each in acks] == [50] * 3 and "50 of them held" in repr(acks[0])
        first, second, third = (each.position.revision for each in acks)
        found = models.quarantine(MODEL)
        assert [each.revision for each in found] == [first, second, third]
        assert (found[0].producer, found[0].figure, found[0].rows) == ("feed", "new_keys", 50)
        assert (gauge("batches"), gauge("bytes")) == (3, sum(each.bytes for each in found))
        assert models.describe(MODEL).users == 200
        for revisions, error in (
            ([], InvalidArgument), ([first, first], FailedPrecondition), ([first, 1], FailedPrecondition),
        ):  # fmt: skip
            with pytest.raises(error):
                models.decide(revisions, True, MODEL)
        with pytest.raises(NotFound):
            models.quarantine("nosuchmodel")
    assert "new_keys" in run(leader, "list")
    assert "50 rows learned" in run(leader, "accept", str(first))
    (dropped,) = json.loads(run(leader, "drop", str(second), "--json"))
    assert dropped["revision"] == second
    # The follower has what waits, and takes no decision before it leads.
    follower.start(leader.target, engine=ENGINE)
    wait_until(lambda: MODEL in follower.hosting.names(), "the follower has the model")
    assert described(follower).root_hash == described(leader).root_hash
    with livefactor.Models(follower.target) as models:
        assert [each.revision for each in models.quarantine(MODEL)] == [third]
        with pytest.raises(Unavailable, match="takes no updates"):
            models.decide([third], True, MODEL)
        leader.vanish()
        models.take_lead(address=follower.target, force=True)
        (made,) = models.decide([third], True, MODEL)
        assert (made.accepted, made.rejected) == (50, 0)
        assert models.describe(MODEL).users == 300 and not models.quarantine(MODEL)
    root = described(follower).root_hash
    follower.stop()
    report = replay_model(follower.data / "models" / MODEL)
    assert report.good and report.root_hash == root


def test_push_says_what_waits(node: Callable[[str], Node], tmp_path: Path) -> None:
    leader, file = node("leader").start(engine=ENGINE), tmp_path / "events.csv"
    file.write_text("user_id,item_id\n" + "".join(f"{each},{each}\n" for each in bad(1)))
    with livefactor.Models(leader.target) as models:
        models.create(MODEL, "clicks_sgd", **SPEC)
    with livefactor.Producer(producer_id="feed", target=leader.target, model=MODEL) as producer:
        for _ in range(BATCHES_MIN + 2):
            producer.push(np.arange(200), np.arange(200) % 100).result(30)
    command, runner = typer.main.get_command(app), click.testing.CliRunner()
    made = runner.invoke(command, ["push", str(file), "-m", MODEL, "--target", leader.target])
    assert made.exit_code == 0, made.output
    said = " ".join(made.stdout.split())
    assert "50 events accepted" in said and "50 of the accepted events wait in quarantine" in said
    assert "livefactor quarantine list" in said
    file.write_text("user_id,item_id\n" + "".join(f"{each},{each}\n" for each in bad(2)))
    made = runner.invoke(command, ["push", str(file), "-m", MODEL, "--target", leader.target, "--json"])
    assert made.exit_code == 0 and json.loads(made.stdout)["held"] == 50, made.output
