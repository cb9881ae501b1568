"""Commands that call a server need neither kernels nor a home, as in a container without rights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from livefactor_server.rpc.embedded import EmbeddedServer

WITHOUT_KERNELS = """
import sys
# The import of a module that is None fails.
for name in ("numba", "llvmlite", "livefactor_kernels.numbers.compiled"):
    sys.modules[name] = None
from livefactor_server.cli.app import app
sys.argv = ["livefactor", *sys.argv[1:]]
app()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    started = EmbeddedServer("clicks_sgd")
    yield started
    started.stop()


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command without kernels, without a home, and with no folder for a cache."""
    path = os.pathsep.join(each for each in sys.path if each)
    return subprocess.run(
        [sys.executable, "-B", "-c", WITHOUT_KERNELS, *command],
        cwd=folder, env={"PATH": os.defpath, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip


def test_a_client_command_runs_without_kernels(server: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id,value\n1,7,1\n2,8,0\n")
    session = (
        ("push", "events.csv", "--value", "value"),
        ("recommend", "1", "2"),
        ("snapshot", "--out", "taken"),
        ("snapshot", "--list"),
        ("verify", "taken"),
        ("models", "create", "shop", "--preset", "clicks_sgd", "--spec", '{"k": 4}'),
        ("models", "restore", "again", "default"),
        ("models", "describe", "again"),
        ("models", "list"),
        ("models", "delete", "shop", "--yes"),
    )
    for command in session:
        target = () if command[0] == "verify" else ("--target", server.target)
        done = run(tmp_path, *command, *target)
        assert done.returncode == 0 and not done.stderr, f"{command}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "command", [("push",), ("serve",), ("tune",), ("warmup",), ("log", "show"), ("demo",)]
)
def test_help_needs_no_kernels(command: tuple[str, ...], tmp_path: Path) -> None:
    done = run(tmp_path, *command, "--help")
    assert done.returncode == 0 and "--help" in done.stdout, done.stderr
