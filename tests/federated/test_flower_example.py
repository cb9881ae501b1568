"""A SuperLink and three SuperNodes on loopback: the example runs as its README says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="make test-federated has it")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "federated" / "flower"


@pytest.mark.timeout(900)
def test_shops_learn_with_a_superlink_and_supernodes(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLE, tmp_path / "flower")
    command = [sys.executable, str(folder / "run.py"), "--rounds", "2", "--folder", str(tmp_path / "rounds")]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=840, check=False)
    logs = "".join(path.read_text() for path in (tmp_path / "rounds").glob("*.log"))
    assert result.returncode == 0, result.stderr + logs
    rounds = re.findall(
        r"^round (\d): 3 shops, (\d+) purchases, record (\d+), proven: yes$", result.stdout, re.MULTILINE
    )
    assert [int(number) for number, _, _ in rounds] == [1, 2], result.stdout
    assert sum(int(purchases) for _, purchases, _ in rounds) == 6000
    assert int(rounds[1][2]) == int(rounds[0][2]) + 1
    assert re.search(r"^the common model has \d{3,} items and 0 customers$", result.stdout, re.MULTILINE)
    assert "its root hash is that of the last round: yes" in result.stdout
