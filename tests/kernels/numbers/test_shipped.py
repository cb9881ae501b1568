"""Compiled kernels that come with the package are loaded where they fit, and nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import livefactor_kernels
from livefactor_kernels.numbers import shipped
from numba_forks import Forks, Script

KERNELS = Path(livefactor_kernels.__file__).parents[1]
BASELINE = {"NUMBA_CPU_NAME": shipped.CPU_NAME, "NUMBA_CPU_FEATURES": shipped.CPU_FEATURES}

MODULE = """
import numpy as np
from livefactor_kernels.numbers.compiled import compiled

@compiled
def total(x):
    sum = np.float32(0.0)
    for i in range(x.size):
        sum += x[i] * x[i]
    return sum
"""

CALL = """
import json, sys
from pathlib import Path
import numpy as np
from livefactor_kernels.numbers import cache, shipped
shipped.FOLDER = Path(sys.argv[1])
if "ignore" in sys.argv:
    shipped.ignore()
import module
numbers = np.arange(9, dtype=np.float32)
try:
    with cache.only_loading():
        module.total(numbers)
    loaded = True
except cache.NotCompiled:
    loaded = False
assert module.total(numbers) == 204
print(json.dumps({"loaded": loaded, "used": shipped.is_used(), "misfit": shipped.misfit()}))
"""


Call = Callable[..., dict[str, object]]


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """The variables of a process that finds the module beside `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    return kept | {"PYTHONPATH": os.pathsep.join((str(folder.parent), str(KERNELS)))} | variables


@pytest.fixture
def call(forks: Forks) -> Call:
    """Provide `call(folder, *arguments)`.

    It gives what a process says of its kernel that was or was not shipped in `folder`.
    """

    def call(folder: Path, *arguments: str) -> dict[str, object]:
        (done,) = forks.run(Script(CALL, [str(folder), *arguments], environment(folder)))
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return call


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the module for the baseline."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "module.py").write_text(MODULE)
    # Numba reads the name of the processor when it is imported, so a fork has that of this machine.
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(folder / "shipped")],
        env=environment(folder / "shipped", NUMBA_CACHE_DIR=str(folder / "cache"), **BASELINE),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"loaded": False, "used": False, "misfit": ""}
    (path,) = (folder / "cache").rglob("*.livefactor")
    return path


@pytest.fixture
def made(compiled: Path, tmp_path: Path) -> Path:
    """A folder with this code, beside the module. There is no other code."""
    (tmp_path / "module.py").write_text(MODULE)
    folder = tmp_path / "shipped"
    folder.mkdir()
    shutil.copy(compiled, folder)
    (folder / shipped.MADE).write_text(json.dumps(shipped.versions()))
    return folder


def kept(folder: Path) -> int:
    """Number of kernels that processes have compiled for themselves."""
    return len(list((folder.parent / "__pycache__").glob("*.livefactor")))


@pytest.mark.skipif(bool(shipped._FEATURES - shipped._features()), reason="the processor is below x86-64-v3")
def test_code_of_the_same_sources_is_loaded(made: Path, call: Call) -> None:
    assert call(made) == {"loaded": True, "used": True, "misfit": None}
    assert kept(made) == 0
    # What a process compiles for its own processor is found first from then on.
    assert call(made, "ignore") == {"loaded": False, "used": False, "misfit": None}
    assert kept(made) == 1
    assert call(made) == {"loaded": True, "used": False, "misfit": None}


def test_code_of_other_sources_is_not_loaded(made: Path, call: Call) -> None:
    (made.parent / "module.py").write_text(MODULE + "\n# edited\n")
    found = call(made)
    assert (found["loaded"], found["used"]) == (False, False)
    assert kept(made) == 1


def test_code_for_another_numba_is_not_loaded(made: Path, call: Call) -> None:
    (made / shipped.MADE).write_text(json.dumps(shipped.versions() | {"numba": "0.1"}))
    found = call(made)
    assert (found["loaded"], found["used"]) == (False, False)
    assert "they are for numba 0.1" in str(found["misfit"])


def test_code_that_a_processor_cannot_run_is_not_loaded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "FOLDER", made)
    monkeypatch.setattr(shipped, "_features", lambda: shipped._FEATURES - {"avx2"})
    monkeypatch.setattr(shipped, "misfit", shipped.misfit.__wrapped__)
    assert shipped.misfit() == "this processor lacks avx2 of the level x86-64-v3"
    assert shipped.key_of(("signature", ("triple", "cpu", "+feature"), "code")) is None
