"""Challengers of a served model: the process, the calls, the client and the commands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import psutil
import pytest
import typer

from contests import events
from livefactor import (
    AlreadyExists,
    BatchSettings,
    FailedPrecondition,
    InvalidArgument,
    Models,
    NotFound,
    Producer,
)
from livefactor.in_process import local
from livefactor.results.contest import contest_of
from livefactor_server.challenging import challengers
from livefactor_server.challenging.challengers import Listing
from livefactor_server.challenging.messages import Figures, Report
from livefactor_server.cli.app import app
from livefactor_server.cli.models import challengers as cli_challengers
from livefactor_server.rpc import challenging
from livefactor_server.snapshots.audit import replay_model
from server_process import wait_until

SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}
NOTHING = {"learning_rate": 1e-6, "bias_learning_rate": 1e-6}
MUCH = {"learning_rate": 0.3, "bias_learning_rate": 0.3}
WAIT_S = 200.0
SMALL = BatchSettings(events_max=450)


def workers() -> list[psutil.Process]:
    there = psutil.Process().children()
    return [each for each in there if "livefactor_server.challenging.worker" in _arguments(each)]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def typed(server: Any, *arguments: str) -> str:
    result = click.testing.CliRunner().invoke(
        typer.main.get_command(app), arguments, env={"LIVEFACTOR_TARGET": server.target}
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def push(producer: Producer, users: np.ndarray, items: np.ndarray) -> None:
    for part in range(0, users.size, 450):
        producer.push(users[part : part + 450], items[part : part + 450])
    producer.flush()


def test_a_contest_beside_a_served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is killed once, and updates go on all the time."""
    monkeypatch.setattr(challengers, "RESTART_S", 0.1)
    with local("", tmp_path) as server, Models(channel=server.channel) as models:
        models.create("m", "clicks_sgd", optimizer=NOTHING, **SPEC)
        with Producer(producer_id="p", channel=server.channel, model="m", batch=SMALL) as producer:
            push(producer, *events(8_900))
            added = models.challenge("m", challenger="good", optimizer=MUCH)
            assert (added.automatic, added.waiting, added.contestants) == (False, ("good",), ())
            with pytest.raises(AlreadyExists):
                models.challenge("m", challenger="good", optimizer={"learning_rate": 0.1})
            assert not workers(), "the first round is not there yet"
            push(producer, *events(600, seed=1))
            wait_until(lambda: bool(workers()), "the process", WAIT_S)
            killed = workers()[0]
            killed.kill()
            killed.wait(30)
            began, numbers = time.monotonic(), iter(range(2, 1_000_000))
            while not (found := models.challengers("m")).winner:
                push(producer, *events(100, seed=next(numbers)))
                assert time.monotonic() - began < WAIT_S, (found, workers())
                time.sleep(0.05)
        champion, good = found.contestants
        assert (found.winner, good.name, good.standing, found.contests) == ("good", "good", "won", 1)
        assert good.difference > 3 * good.error and good.events == champion.events > 1_000
        wait_until(lambda: not workers(), "the end of the process", WAIT_S)
        assert models.describe("m").spec["optimizer"]["learning_rate"] == pytest.approx(1e-6)
        text = typed(server, "models", "challengers", "m")
        assert "good won" in text and "keeps its spec until you promote one" in text
        assert json.loads(typed(server, "models", "challengers", "m", "--json"))["winner"] == "good"
        typed(server, "models", "settle", "m", "good")
        described = models.describe("m", with_root_hash=True)
        assert described.spec["optimizer"]["learning_rate"] == pytest.approx(0.3)
        assert models.challengers("m").waiting == ()
    report = replay_model(tmp_path / "models" / "m")
    assert report.good and report.root_hash == described.root_hash


def test_the_process_ends_with_its_server(tmp_path: Path) -> None:
    with local("", tmp_path) as server, Models(channel=server.channel) as models:
        models.create("m", "clicks_sgd", optimizer=NOTHING, **SPEC)
        with Producer(producer_id="p", channel=server.channel, model="m") as producer:
            push(producer, *events(9_500))
        models.challenge("m", challenger="same", optimizer={"learning_rate": 2e-6})
        wait_until(lambda: bool(workers()), "the process", WAIT_S)
        there = workers()
        wait_until(lambda: there[0].nice() == 19, "the lowest priority", WAIT_S)
    assert not psutil.wait_procs(there, 30)[1]


def test_a_contest_that_has_paused_is_no_contest_that_ended(capsys: pytest.CaptureFixture[str]) -> None:
    figures = Figures("champion", "champion", 0.25), Figures("good", "running", 0.5, 0.25, None, 7, 3)
    found = Listing(
        automatic=True, is_running=False, report=Report(round_end=17_000, figures=figures), waiting=(),
        contests=0, resumes_at=17_000, behind=0, spent_s=1.5, sharing=None,
    )  # fmt: skip
    contest = contest_of(challenging._contest(found))
    assert contest.resumes_at == 17_000 and "has paused" in repr(contest)
    cli_challengers._show("m", contest, as_json=False)
    text = capsys.readouterr().out
    assert "a contest has paused until event 17000" in text and "+0.2500" in text and "unknown" in text


def test_refusals_name_their_reason(tmp_path: Path) -> None:
    refused: list[tuple[type[Exception], str, Callable[[], Any]]] = []
    with local("", tmp_path) as server, Models(channel=server.channel) as models:
        models.create("m", "clicks_sgd", **SPEC)
        refused = [
            (FailedPrecondition, "it is the model's own", lambda: models.challenge("m")),
            (FailedPrecondition, "could reject", lambda: models.challenge("m", "ratings")),
            (InvalidArgument, "k: expected", lambda: models.challenge("m", k=5000)),
            (InvalidArgument, "name: it has", lambda: models.challenge("m", challenger="A b", k=16)),
            (NotFound, "does not exist", lambda: models.challenge("other", k=16)),
            (NotFound, "challenger: 'x' does not exist", lambda: models.settle("m", "x")),
            (InvalidArgument, "k: expected", lambda: models.settle("m", k=5000)),
            (InvalidArgument, "got both", lambda: models.settle("m", "x", preset="clicks")),
        ]
        for kind, why, call in refused:
            with pytest.raises(kind, match=why):
                call()
        text = typed(server, "models", "challenge", "m", "--preset", "clicks", "--spec", '{"k": 16}')
        assert "no contest of m has been held yet" in text and "for the next contest: clicks" in text
        text = typed(server, "models", "settle", "m", "--spec", '{"k": 16}')
        assert "keeps its spec from now on: rule sgd, k 16" in text
        assert models.describe("m").spec["k"] == 16 and models.challengers("m").waiting == ()
