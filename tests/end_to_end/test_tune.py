"""The command `livefactor tune`: it finds a spec that beats the preset, writes it, and resumes
after a kill.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import typer

from livefactor.models import Models
from livefactor_server.cli.app import app
from livefactor_server.files.specs import read_spec
from livefactor_server.tuning import search
from server_process import Server

pytest.importorskip("optuna")
pytest.importorskip("matplotlib")


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """Ratings from three factors and much noise. The presets overfit them."""
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, 200, 8000), rng.integers(0, 100, 8000)
    taste = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 100))
    stars = np.clip(np.rint(3 + taste[users, items] + rng.normal(0.0, 2.0, 8000)), 1, 5)
    lines = [
        f"u{u},{i},{s:.0f},{1_500_000_000 + at}"
        for at, (u, i, s) in enumerate(zip(users, items, stars, strict=True))
    ]
    file = tmp_path / "stars.csv"
    file.write_text("\n".join(["user,item,rating,time", *lines]) + "\n")
    return file


def type_in(*arguments: str) -> tuple[int, str, str]:
    result = click.testing.CliRunner().invoke(typer.main.get_command(app), arguments, catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def options(folder: Path, trials: int) -> list[str]:
    return [
        "--trials", str(trials), "--batch", "128", "--rule", "squared-sgd", "--seed", "3",
        "--out", str(folder / "tuned.toml"),
    ]  # fmt: skip


def test_the_winner_beats_the_preset_and_is_served(
    ratings: Path, tmp_path: Path, serve: Callable[..., Server]
) -> None:
    code, out, err = type_in("tune", str(ratings), *options(tmp_path, 12), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["task"], found["metric"], found["trials"]) == ("ratings", "RMSE", 12)
    for part in ("search", "rest"):
        assert found["winner"][part] < 0.99 * found["preset"][part]
        assert found["winner"][part] < 0.99 * found["naive"][part]
    file = tmp_path / "tuned.toml"
    notes = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(f"{found['winner']['rest']:.4f}" in line for line in notes)
    picture = (tmp_path / "tuned.svg").read_text()
    assert picture.startswith("<?xml") and "</svg>" in picture

    # A second run makes no further trial and prints a table.
    code, out, err = type_in("tune", str(ratings), *options(tmp_path, 12))
    assert code == 0 and "0 of them in this run" in err
    assert f"{found['preset']['rest']:.4f}" in out and "mean of the item's earlier values" in out

    server = serve("--preset", "clicks_sgd", "--spec", str(file))
    spec = read_spec(file, "clicks_sgd")
    with Models(server.target) as models:
        described = models.describe()
    assert type_in("models", "create", "other", "--spec", str(file), "--target", server.target)[0] == 0
    with Models(server.target) as models:
        assert described.spec == models.describe("other").spec
    assert described.spec["k"] == spec.k == found["winner"]["spec"]["k"]
    assert np.float32(described.spec["optimizer"]["learning_rate"]) == spec.optimizer.learning_rate
    assert type_in("push", str(ratings), "--user", "user", "--item", "item", "--value", "rating",
                   "--target", server.target)[0] == 0  # fmt: skip


def finished(journal: Path) -> int:
    """The number of finished trials in the journal."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return sum('"state":1' in line or '"state":2' in line for line in lines)


def test_a_killed_search_resumes_and_writes_the_same_file(ratings: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert type_in("tune", str(ratings), *options(whole, 8))[0] == 0
    command = [sys.executable, "-m", "livefactor", "tune", str(ratings), *options(killed, 8)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = killed / "tuned.study" / search.JOURNAL
    deadline = time.monotonic() + 120
    while finished(journal) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= finished(journal) < 8 and not (killed / "tuned.toml").exists()
    code, _, err = type_in("tune", str(ratings), *options(killed, 8))
    assert code == 0 and "goes on after" in err
    assert (killed / "tuned.toml").read_bytes() == (whole / "tuned.toml").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--value", "stars"], "there is no column 'stars'"),
        (["--item", "rating", "--value", "user"], "line 2, column user: expected a number, got 'u"),
        (["--task", "clicks"], "column rating: preset clicks rejects the value"),
        (["--task", "films"], "--task: expected one of ratings, clicks, purchases, news, got 'films'"),
        (
            ["--rule", "bpr-sgd"],
            "rule: expected one of squared-sgd, squared-adagrad, squared-solve for ratings",
        ),
        (["--metric", "auc"], "--metric: expected recall or ndcg, got 'auc'"),
        (["--secret", "s" * 65], "secret"),
    ],
)
def test_faults_are_one_line(ratings: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    code, _, err = type_in("tune", str(ratings), "--out", str(tmp_path / "t.toml"), *arguments)
    line = err.strip().splitlines()[-1]
    assert code == 2 and line.startswith("livefactor: ") and said in line
    assert not (tmp_path / "t.toml").exists()


def test_without_the_extra_it_says_what_to_install(ratings: Path, monkeypatch: Any) -> None:
    real = search.find_spec
    monkeypatch.setattr(search, "find_spec", lambda name: None if name == "optuna" else real(name))
    code, _, err = type_in("tune", str(ratings))
    assert code == 2 and 'tuning needs optuna: pip install "livefactor[tune]"' in err


def test_no_module_needs_the_extra_before_it_is_used() -> None:
    code = (
        "import sys; sys.modules['optuna'] = sys.modules['matplotlib'] = None;"
        "from livefactor_server.cli.tune import run"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_spec_file_that_is_refused_stops_the_server_from_starting(tmp_path: Path) -> None:
    file = tmp_path / "spec.toml"
    file.write_text("factors = 8\n")
    code, _, err = type_in("serve", "--data", str(tmp_path / "data"), "--port", "0", "--spec", str(file))
    assert code == 1 and "spec.factors: no such field" in err
    code, _, err = type_in("models", "create", "bad", "--spec", str(file))
    assert code == 2 and "spec.factors: no such field" in err
