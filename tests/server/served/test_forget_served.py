"""Forgetting by RPC, by the Python client and by the command, with every kind of record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import typer

import livefactor
from livefactor import FailedPrecondition, InvalidArgument, NotFound
from livefactor_server.cli.app import app
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.erasures import learned_root
from livefactor_server.snapshots.replay import snapshot_store

USERS, ITEMS, DIMENSION = 40, 30, 4
SPEC: dict[str, Any] = {
    "k": 8,
    "features": {"size": 40, "per_id": 3},
    "embeddings": {"dimension": DIMENSION, "prior_events": 2.0},
    "history": {"users": 32, "items": 32},
    "counts": {"neighbors": 16, "span": 8},
    "limits": {"items_max": 40},
}
GONE = {"user-7", "user-8"}, {"item-3"}


def fill(server: livefactor.Local, users: set[str], items: set[str]) -> None:
    """Pushes every kind of record, without the rows of some users and items. All keep some rows."""
    rng = np.random.default_rng(2)

    def kept(names: list[str], gone: set[str]) -> list[int]:
        return [at for at, name in enumerate(names) if name not in gone]

    every = [f"user-{number}" for number in range(USERS)], [f"item-{number}" for number in range(ITEMS)]
    with server.producer("p", model="m") as producer:
        for turn in range(12):
            events = rng.choice(every[0], 60), rng.choice(every[1], 60)
            keep = ~(np.isin(events[0], list(users)) | np.isin(events[1], list(items)))
            producer.push(*(column[keep] for column in events)).result(60)
            if turn == 5:
                rows = kept(every[1], items)
                vectors = rng.normal(size=(ITEMS, DIMENSION)).astype(np.float32)
                names = [every[1][at] for at in rows]
                bags = [{f"genre:{at % 3}": 1.0, "length": 0.5} for at in rows]
                producer.push_embeddings(names, vectors[rows]).result(60)
                producer.push_features("item", names, bags)
                producer.push_labels("item", names, [f"label of {name}" for name in names])
                producer.set_available(names, False)
                producer.flush()
                names = [every[0][at] for at in kept(every[0], users)]
                producer.push_features("user", names, [[f"club:{name[-1]}", "all"] for name in names])
                producer.push_labels("user", names, [f"label of {name}" for name in names])
                producer.set_available(every[1][4:9], True)
                producer.flush()


def learned(folder: Path) -> tuple[int, str]:
    newest = snapshot_store(folder).list()[-1]
    return newest.revision, learned_root(newest.revision, newest.tensors).hex()


def test_a_person_and_an_item_are_forgotten(tmp_path: Path) -> None:
    runner, command = click.testing.CliRunner(), typer.main.get_command(app)
    with livefactor.local("", data=tmp_path / "other") as other:
        with other.models() as models:
            models.create("m", "auto", **SPEC)
        fill(other, *GONE)
        # Producers that send nothing take the places of the records ERASE and ERASED.
        for _ in range(2):
            other.producer("nobody", model="m").close()
        with other.auditor(model="m") as auditor:
            auditor.snapshot()
        expected = learned(tmp_path / "other" / "models" / "m")
    with livefactor.local("", data=tmp_path / "data") as server, server.models() as models:
        models.create("m", "auto", **SPEC)
        fill(server, set(), set())
        users, items = map(sorted, GONE)
        cost = models.forget_cost("m", users=users, items=items)
        assert cost.records > 12 and cost.rows > cost.events > 30 and cost.snapshots == 0
        before = models.describe("m")
        named = [
            "--user",
            "user-7",
            "--user",
            "user-8",
            "--item",
            "item-3",
            "-m",
            "m",
            "--target",
            server.target,
        ]
        dry = runner.invoke(command, ["forget", *named, "--dry-run"])
        assert dry.exit_code == 0 and f"{cost.rows} rows, {cost.events} of them events" in dry.stdout, (
            dry.output
        )
        assert models.describe("m").position == before.position
        told: list[str] = []
        found = models.forget("m", users=users, items=items, on_progress=lambda *at: told.append(at[0]))
        assert (found.rows, found.records) == (cost.rows, cost.records)
        assert (found.revision, found.learned_root_hash.hex()) == expected
        assert found.fields["learned_root_hash"] == expected[1]
        with livefactor.Scorer(channel=server.channel, model="m") as scorer:
            assert not scorer.score(["user-7"], ["item-1"]).user_known[0]
        # Nothing names them any more, so forgetting them again finds nothing.
        again = runner.invoke(command, ["forget", *named, "--json"])
        assert again.exit_code == 0 and json.loads(again.stdout)["rows"] == 0, again.output
        for bad in ({}, {"users": range(1001)}):
            with pytest.raises(InvalidArgument):
                models.forget("m", **bad)
        with pytest.raises(NotFound):
            models.forget("nosuchmodel", users=[1])
        assert runner.invoke(command, ["forget", "--target", server.target]).exit_code == 2
    verified = runner.invoke(command, ["verify", "--replay", str(tmp_path / "data" / "models" / "m")])
    assert verified.exit_code == 0, verified.output
    assert f"report of the erasure at revision {found.erase}: is good" in verified.stdout
    assert len(replay_model(tmp_path / "data" / "models" / "m", "reference").erasures) == 2


def test_a_model_that_began_with_a_snapshot_forgets_whom_the_snapshot_never_knew(tmp_path: Path) -> None:
    runner, command = click.testing.CliRunner(), typer.main.get_command(app)
    with livefactor.local("clicks_sgd", data=tmp_path / "data") as server, server.models() as models:
        with server.producer("p") as producer:
            producer.push(["user-9", "user-8"], ["item-1", "item-2"]).result(60)
        with server.auditor() as auditor:
            auditor.snapshot()
        models.restore("copy", "default")
        with pytest.raises(
            FailedPrecondition, match=r"began with a snapshot.* names them|knows 1 of 1 users"
        ):
            models.forget("copy", users=["user-9"])
        with server.producer("q", model="copy") as producer:
            producer.push(["guest", "user-8"], ["item-1", "item-2"]).result(60)
        guest = ["forget", "--user", "guest", "-m", "copy", "--target", server.target]
        dry = runner.invoke(command, [*guest, "--dry-run"])
        assert "would be replayed, from the snapshot at revision" in dry.stdout, dry.output
        done = runner.invoke(command, guest)
        assert done.exit_code == 0 and "2 rows of 2 records are gone" in done.stdout, done.output
        assert "which never knew them" in " ".join(done.stdout.split())
    verified = runner.invoke(command, ["verify", "--replay", str(tmp_path / "data" / "models" / "copy")])
    assert verified.exit_code == 0 and "is good" in verified.stdout, verified.output
