"""The quick start of each role: every block runs as it stands, in less than five minutes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs" / "guides" / "start").glob("*.md"))
MINUTES_S = 300.0
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# The tests of a machine share its ports, so servers get others than the default ones.
PRELUDE = """
set -eu
livefactor() {
  if [ "$1" = serve ]; then command livefactor "$@" --port "$PORT" --metrics-port -1 --console-port 0
  elif [ "$1" = doctor ]; then command livefactor "$@" --port 0 --metrics-port -1
  else command livefactor "$@"; fi
}
"""


def script_of(page: Path) -> str:
    """The blocks of a page as one script for bash."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    return PRELUDE + "".join(
        code if kind == "sh" else f"python - <<'END_OF_BLOCK'\n{code}END_OF_BLOCK\n" for kind, code in blocks
    )


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_quick_start_takes_less_than_five_minutes(page: Path, tmp_path: Path) -> None:
    port = free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PORT": str(port), "LIVEFACTOR_TARGET": f"127.0.0.1:{port}"}
    began = time.monotonic()
    shell = subprocess.Popen(
        ["bash", "-c", script_of(page)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        # The server holds the other end of the pipe, so the shell's end counts and not the pipe's.
        (code, took) = (shell.wait(MINUTES_S), time.monotonic() - began)
    finally:
        # The server is a child of the shell and has its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    output = shell.communicate()[0]
    assert code == 0, output
    print(f"{page.stem}: {took:.1f} s")
    assert took < MINUTES_S


def test_each_role_has_a_quick_start() -> None:
    assert [page.stem for page in PAGES] == ["application", "auditor", "notebook", "operator"]
