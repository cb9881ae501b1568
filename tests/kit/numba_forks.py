"""Python scripts in processes that have the compiler of Numba already.

A new interpreter needs two seconds of a processor until it has imported Numba and compiled its
first function. `Forks` forks each script from a process that has done both. The process has not
imported the project.

`python numba_forks.py` reads one JSON order a line, which is a list of scripts:

    {"script": text, "arguments": [...], "environment": {...}, "folder": path}

They run side by side. The answer is the list of their exit codes; a folder has the files `stdout`
and `stderr`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple


class Script(NamedTuple):
    """A script as `python -c` takes it, and the variables of its process."""

    text: str
    arguments: Sequence[str]
    environment: Mapping[str, str]


class Done(NamedTuple):
    """How a script ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Forks:
    """Runs scripts as forks of one process."""

    def __init__(self) -> None:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )

    def run(self, *scripts: Script) -> list[Done]:
        """Run the scripts at once and wait for all of them."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with TemporaryDirectory() as folder:
            orders = []
            for number, script in enumerate(scripts):
                place = Path(folder, str(number))
                place.mkdir()
                orders.append(
                    {
                        "script": script.text, "arguments": list(script.arguments),
                        "environment": dict(script.environment), "folder": str(place),
                    }
                )  # fmt: skip
            self._process.stdin.write(json.dumps(orders) + "\n")
            self._process.stdin.flush()
            codes = json.loads(self._process.stdout.readline())
            texts = [
                [Path(order["folder"], name).read_text() for name in ("stdout", "stderr")] for order in orders
            ]
        return [Done(code, *text) for code, text in zip(codes, texts, strict=True)]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def _become(order: dict[str, Any]) -> None:
    """Run a script in the child, which ends with it."""
    from numba.core import config

    for number, name in ((1, "stdout"), (2, "stderr")):
        opened = os.open(Path(order["folder"], name), os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, number)
    os.environ.clear()
    os.environ.update(order["environment"])
    # Numba and tempfile read the variables once.
    config.reload_config()
    sys.modules.pop("tempfile", None)
    sys.path[:1] = order["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["-c", *order["arguments"]]
    code = 0
    try:
        exec(compile(order["script"], "<string>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _take_orders() -> None:
    from numba import njit

    # The first compilation loads the compiler.
    njit(lambda x: x + 1)(1)
    for line in sys.stdin:
        children = []
        for order in json.loads(line):
            child = os.fork()
            if not child:
                _become(order)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    _take_orders()
