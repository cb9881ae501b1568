"""Commands that call a server need neither kernels nor a home, as in a container without rights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from livefactor_server.rpc.embedded import EmbeddedServer

WITHOUT_KERNELS = """
import json, sys
# The import of a module that is None fails.
for name in ("numba", "llvmlite", "livefactor_kernels.numbers.compiled"):
    sys.modules[name] = None
from typer.testing import CliRunner
from livefactor_server.cli.app import app
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (command, result.output, result.exception)
    assert "Warning" not in result.stderr, result.stderr
    assert result.stdout or "delete" in command, command
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    started = EmbeddedServer("clicks_sgd")
    yield started
    started.stop()


def run(folder: Path, commands: list[list[str]]) -> None:
    """Run commands without kernels, without a home, and with no folder for a cache."""
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-B", "-c", WITHOUT_KERNELS, json.dumps(commands)],
        cwd=folder, env={"PATH": os.defpath, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_client_commands_run_without_kernels(server: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id,value\n1,7,1\n2,8,0\n")
    session = [
        ["push", "events.csv", "--value", "value"],
        ["recommend", "1", "2"],
        ["snapshot", "--out", "taken"],
        ["snapshot", "--list"],
        ["models", "create", "shop", "--preset", "clicks_sgd", "--spec", '{"k": 4}'],
        ["models", "restore", "again", "default"],
        ["models", "describe", "again"],
        ["models", "list"],
        ["models", "delete", "shop", "--yes"],
    ]
    run(tmp_path, [[*command, "--target", server.target] for command in session] + [["verify", "taken"]])


def test_help_needs_no_kernels(tmp_path: Path) -> None:
    commands = (["push"], ["serve"], ["tune"], ["warmup"], ["log", "show"], ["demo"])
    run(tmp_path, [[*command, "--help"] for command in commands])
