"""The GPU backend without a GPU: its tests, in Numba's simulator, in processes of their own (the choice is made at import)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1]
GROUPS = (
    ("device/test_gpu_model.py",),
    ("numbers/test_gpu_narrow.py", "device/test_gpu_room.py"),
    ("solve/test_gpu_solve.py", "softmax/test_gpu_softmax.py"),
)
"""Files that run side by side: most of the simulator's time is one thread's."""


def start(files: tuple[str, ...], marks: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    return subprocess.Popen(
        [*command, *(str(KERNELS / file) for file in files)], env=environment, cwd=KERNELS.parents[1], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def passed(marks: str, least: tuple[int, ...], groups: tuple[tuple[str, ...], ...]) -> None:
    running = [start(files, marks) for files in groups]
    outputs = [process.communicate()[0] for process in running]
    for process, output, number in zip(running, outputs, least, strict=True):
        assert process.returncode == 0, output[-4000:]
        counts = re.search(r"(\d+) passed", output)
        assert counts is not None and int(counts[1]) >= number
        assert "skipped" not in output


def test_the_backend_passes_its_tests_in_the_simulator() -> None:
    passed("not long", (60, 47, 38), GROUPS)


def test_optimisers_and_regularization_pass_their_tests_in_the_simulator() -> None:
    passed("not long", (78,), (("optimizers/test_gpu_optimizers.py",),))


def test_adaptive_rates_pass_their_tests_in_the_simulator() -> None:
    passed("not long", (17,), (("sgd/test_gpu_adaptive.py",),))


@pytest.mark.long
def test_what_is_served_and_what_is_measured_passes_its_tests_in_the_simulator() -> None:
    passed("not long", (3, 7), (("device/test_gpu_served.py",), ("device/test_gpu_figures.py",)))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_kind_of_narrow_model_learns_in_the_simulator() -> None:
    passed("long", (60,), (("numbers/test_gpu_narrow.py",),))
