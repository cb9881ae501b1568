"""Flower's simulation with Ray: the example runs as its README says, with fewer shops."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="make test-federated has it")
pytest.importorskip("ray", reason="make test-federated has it")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "federated" / "flower" / "ray_simulation.py"


@pytest.mark.timeout(900)
def test_shops_of_a_simulation_learn_one_model() -> None:
    options = ["--shops", "6", "--fraction", "0.5", "--purchases", "3000"]
    result = subprocess.run(
        [sys.executable, str(EXAMPLE), *options],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rounds = re.findall(
        r"^round (\d): 3 shops, (\d+) purchases, record (\d+), proven: yes$", result.stdout, re.MULTILINE
    )
    assert [int(number) for number, _, _ in rounds] == [1, 2], result.stdout + result.stderr
    assert all(0 < int(purchases) < 3000 for _, purchases, _ in rounds)
    assert int(rounds[1][2]) == int(rounds[0][2]) + 1
