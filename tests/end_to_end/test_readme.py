"""The example of the README runs without a change."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    done = subprocess.run([sys.executable, "-c", blocks[0]], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    ids, root = done.stdout.strip().splitlines()[0], done.stdout.strip().splitlines()[-1]
    assert ids.count("[") == 2 and re.fullmatch(r"[0-9a-f]{64}", root)
