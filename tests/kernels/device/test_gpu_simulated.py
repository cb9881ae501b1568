"""The GPU backend without a GPU: its tests run in Numba's simulator, in processes of their own.

Numba chooses the simulator when it is imported, so no process can have both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1]
GROUPS = (
    ("test_conformance.py", "sgd/test_gpu_adaptive.py"),
    ("device/test_gpu_model.py", "numbers/test_gpu_narrow.py", "device/test_gpu_room.py"),
    ("optimizers/test_gpu_optimizers.py", "solve/test_gpu_solve.py", "softmax/test_gpu_softmax.py"),
)
"""The files of each process. The workers of a test run share the processes."""
LONG = ("device/test_gpu_served.py", "device/test_gpu_figures.py")


def check_in_simulator(files: tuple[str, ...], marks: str) -> None:
    """Runs the tests of some files. All selected tests must pass, and none may be skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks]
    done = subprocess.run(
        [*command, *(str(KERNELS / file) for file in files)], cwd=KERNELS.parents[1], text=True, check=False,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("files", GROUPS, ids=[Path(files[0]).stem for files in GROUPS])
def test_the_backend_passes_its_tests_in_the_simulator(files) -> None:
    check_in_simulator(files, "not long")


def test_every_file_that_can_run_in_the_simulator_does() -> None:
    able = {
        path.relative_to(KERNELS).as_posix()
        for path in KERNELS.rglob("test_*.py")
        if "pytestmark = [] if SIMULATED else" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    assert {*sum(GROUPS, LONG)} == able | {"test_conformance.py"}


@pytest.mark.long
@pytest.mark.parametrize("file", LONG)
def test_what_is_served_and_what_is_measured_passes_its_tests_in_the_simulator(file) -> None:
    check_in_simulator((file,), "not long")


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "file",
    [
        "numbers/test_gpu_narrow.py",
        "test_conformance.py",
        "device/test_gpu_model.py",
        "optimizers/test_gpu_optimizers.py",
        "sgd/test_gpu_adaptive.py",
    ],
)
def test_every_kind_of_model_learns_in_the_simulator(file) -> None:
    check_in_simulator((file,), "long")
