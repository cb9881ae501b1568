"""Promotion of a spec by RPC, by the Python client and by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import typer

import livefactor
from livefactor import FailedPrecondition, InvalidArgument, Models, NotFound, Producer, Scorer
from livefactor.in_process import local
from livefactor_server.cli.app import app
from livefactor_server.snapshots.audit import replay_model

SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}


def push(server: Any, start: int, stop: int) -> Any:
    numbers = np.arange(start, stop)
    with Producer(producer_id=f"p{start}", channel=server.channel, model="m") as producer:
        acks = [producer.push(part * 7919 % 50, part * 104729 % 97) for part in np.array_split(numbers, 8)]
        return acks[-1].result(30)


def score(server: Any, **options: Any) -> Any:
    with Scorer(channel=server.channel, model="m") as scorer:
        return scorer.recommend([1, 2], 5, **options)


def test_a_model_gets_another_spec_and_keeps_it(tmp_path: Path) -> None:
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:
        created = models.create("m", "purchases_sgd", **SPEC)
        assert (created.spec_revision, created.earlier_specs) == (0, ())
        push(server, 0, 800)
        assert score(server).spec_ids.tolist() == [int(created.spec_id, 16)] * 2
        assert score(server)[0].spec_id == created.spec_id
        told: list[tuple[int, int]] = []
        found = models.promote("m", "clicks", on_progress=lambda *at: told.append(at), **SPEC)
        assert found.spec["loss"] == "implicit" and found.spec_revision == found.position.revision > 1
        (earlier,) = found.earlier_specs
        assert (earlier.revision, earlier.spec_id, earlier.spec) == (0, created.spec_id, created.spec)
        assert all(at <= last for at, last in told)
        # A read that waits for a batch after the switch is answered by the new spec.
        ack = push(server, 800, 900)
        answer = score(server, min_position=ack.position)
        assert answer[1].spec_id == found.spec_id != created.spec_id
        # Without a preset the fields change the spec in force.
        wider = models.promote("m", k=16)
        assert (wider.spec["k"], wider.spec["loss"]) == (16, "implicit") and len(wider.earlier_specs) == 2
        before = models.describe("m", with_root_hash=True)
        assert before.spec_id == wider.spec_id and before.earlier_specs == wider.earlier_specs
        with livefactor.Auditor(channel=server.channel, model="m") as auditor:
            auditor.snapshot()
            auditor.fetch(tmp_path / "copy")
        restored = models.restore("again", "m")
        assert restored.spec == wider.spec and restored.spec_id == wider.spec_id
        with pytest.raises(FailedPrecondition, match="it began with a snapshot"):
            models.promote("again", "purchases_sgd", **SPEC)
    offline = livefactor.load(tmp_path / "copy").score(1, np.arange(97))
    report = replay_model(tmp_path / "models" / "m")
    assert report.good and report.root_hash == before.root_hash
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:
        after = models.describe("m", with_root_hash=True)
        assert (after.root_hash, after.spec_id, after.earlier_specs) == (
            before.root_hash,
            before.spec_id,
            before.earlier_specs,
        )
        with Scorer(channel=server.channel, model="m") as scorer:
            assert scorer.score(1, np.arange(97)).scores.tolist() == offline.tolist()


def test_refusals_name_their_reason(tmp_path: Path) -> None:
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:
        models.create("m", "clicks", **SPEC)
        push(server, 0, 100)
        with pytest.raises(FailedPrecondition, match="it is the one in force"):
            models.promote("m")
        with pytest.raises(FailedPrecondition, match="events without values"):
            models.promote("m", "ratings")
        with pytest.raises(InvalidArgument, match="k: expected"):
            models.promote("m", k=5000)
        with pytest.raises(InvalidArgument, match="preset: expected one of"):
            models.promote("m", "nothing")
        with pytest.raises(NotFound):
            models.promote("other")


def test_the_command(tmp_path: Path) -> None:
    runner = click.testing.CliRunner()
    with local(None, tmp_path) as server, Models(channel=server.channel) as models:

        def typed(*arguments: str) -> str:
            environment = {"LIVEFACTOR_TARGET": server.target}
            result = runner.invoke(typer.main.get_command(app), arguments, env=environment)
            assert result.exit_code == 0, result.output
            return result.stdout

        created = models.create("m", "purchases_sgd", **SPEC)
        push(server, 0, 100)
        file = tmp_path / "spec.toml"
        file.write_text('preset = "clicks"\nk = 8\n[limits]\nusers_max = 1000\nitems_max = 1000\n')
        shown = json.loads(typed("models", "promote", "m", "--spec", str(file), "--json"))
        assert shown["spec"]["rule"] == "solve" and shown["spec_revision"] == shown["revision"]
        text = typed("models", "describe", "m")
        assert f"earlier: spec {created.spec_id} since revision 0, rule sgd, loss bpr, k 8" in text
        listed = typed("log", "show", str(tmp_path / "models" / "m" / "log"))
        assert "SWITCH" in listed and f"switch to spec {shown['spec_id']}: rule SOLVE" in listed
