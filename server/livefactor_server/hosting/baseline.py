"""Makes the kernels that come with a wheel or an image (`livefactor_kernels.numbers.shipped`)."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from livefactor_kernels.numbers import shipped
from livefactor_server.hosting.compiling import Helper, Work, processes
from livefactor_server.hosting.kernels import Plan, StepReport


class BaselineError(Exception):
    """A process that compiled kernels failed. Its output has the reason."""


def make(plan: Plan, report: StepReport | None = None) -> Path:
    """Compiles a plan for every processor of the level x86-64-v3, into the package.

    Returns the folder. It replaces what was there.

    Raises:
        BaselineError: a process failed.
        OSError: the folder cannot be written.
    """
    shutil.rmtree(shipped.FOLDER, ignore_errors=True)
    shipped.FOLDER.mkdir()
    with tempfile.TemporaryDirectory(prefix="livefactor-baseline-") as caches:
        _compile(plan, caches, report)
        for path in Path(caches).rglob("*.livefactor"):
            # A copy takes the folder's permissions. The name is that of the cache.
            (shipped.FOLDER / path.name).write_bytes(path.read_bytes())
    text = json.dumps(shipped.versions(), indent=1) + "\n"
    (shipped.FOLDER / shipped.MADE).write_text(text, encoding="utf-8")
    return shipped.FOLDER


def _compile(plan: Plan, caches: str, report: StepReport | None) -> None:
    variables = {
        "NUMBA_CACHE_DIR": caches,
        "NUMBA_CPU_NAME": shipped.CPU_NAME,
        "NUMBA_CPU_FEATURES": shipped.CPU_FEATURES,
    }
    steps, rest = plan.steps(), plan.rest()
    # The rest loads what the steps have compiled.
    parts = (
        (range(len(steps)), min(processes(), len(steps))),
        (range(len(steps), len(steps) + len(rest)), 1),
    )
    for numbers, count in parts:
        work = Work([*steps, *rest], numbers, report)
        helpers = [Helper(plan, work, variables=variables) for _ in range(count)]
        codes = [helper.wait() for helper in helpers]
        if any(codes):
            raise BaselineError("a process that compiled kernels failed")
