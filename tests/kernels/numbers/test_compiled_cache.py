"""The cache of compiled kernels on disk: it has no old code, processes share it, and it always
finds a folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import livefactor_kernels
import synthetic
from livefactor_server.judging import choice
from numba_forks import Done, Forks, Script

KERNELS = Path(livefactor_kernels.__file__).parent
SERVER = Path(choice.__file__).parents[1]
HELPERS = Path(synthetic.__file__).parent

ROOMS = """
import json
import numpy as np
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.numbers.random import draw_batch
from livefactor_kernels.replay.cpu import Reservoir
from livefactor_kernels.scoring.cpu_kernels import select_kernel
from livefactor_kernels.softmax.proposal import Proposer
from livefactor_kernels.solve.cpu_records import livefactor_mean_kernel
from livefactor_kernels.spec.model import FactorDtype, Loss, Proposal, Replay, Rule, Softmax
from livefactor_kernels.tables import USERS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.update import Update
from livefactor_server.judging.choice import judged_records
from synthetic import make_spec, push

results = {}

model = CpuModel(make_spec(Loss.SQUARED, k=4))
push(model, [1, 2], [3, 4], [1.0, 2.0])
# Biases start at 0, so that nothing random is in them.
results["sgd"] = model.users.bias[:2].tolist()

mean = np.zeros(2, np.int64)
livefactor_mean_kernel(np.ones(3, np.float32), np.uint64(0), np.uint64(3), mean)
results["solve"] = mean.tolist()

rows = np.arange(20, dtype=np.uint32)
events = Update(1, rows, rows, None, None, 20, 20)
reservoir = Reservoir(make_spec(Loss.SQUARED, replay=Replay(4, 1.0)))
reservoir.keep(events)
results["replay"] = reservoir.columns["user_rows"].tolist()

softmax = Softmax(Proposal.UNIFORM)
spec = make_spec(Loss.SOFTMAX, rule=Rule.SOFTMAX, softmax=softmax, negatives=5, micro_batch=8)
results["softmax"] = Proposer(spec, 32).propose(events).rows.tolist()

best, best_rows = np.empty(2, np.float32), np.empty(2, np.uint32)
none, keys = np.empty(0, np.uint32), np.arange(4, dtype=np.uint64)
select_kernel(np.arange(4, dtype=np.float32), none, none, keys, best, best_rows)
results["scoring"] = best_rows.tolist()

table = Table(make_spec(Loss.SQUARED, factor_dtype=FactorDtype.FLOAT16), USERS)
table.allocate(np.arange(1, 4, dtype=np.uint64))
results["numbers"] = table.factors[:3].view(np.uint16).tolist()

results["judging"] = judged_records(7, 0.5, np.arange(1, 65, dtype=np.uint64)).tolist()
print(json.dumps(results))
"""
"""Results of small calls of kernels from several rooms, as JSON."""

EDITS = {
    "optimizers/sgd.py": [("    return clamp(x - rate * g, ", "    return clamp(x + rate * g, ")],
    "numbers/scalar.py": [("FIXED_ONE = np.float64(1 << 20)", "FIXED_ONE = np.float64(1 << 19)")],
    "numbers/random.py": [("    return c0, c1, c2, c3\n", "    return c1, c0, c3, c2\n")],
    "scoring/heap.py": [
        ("    return score < other_score or", "    return score > other_score or"),
    ],
}
"""Edits of functions and constants that kernels of other files inline, by file."""

VARIANTS = """
import sys
import variants
numbers = [int(number) for number in sys.argv[1:]]
print([variants.added(number)(1) for number in numbers] == [number + 1 for number in numbers])
"""

VARIANTS_MODULE = """
from livefactor_kernels.numbers.compiled import compiled

def added(number):
    @compiled
    def add(x):
        return x + number
    return add
"""


Run = Callable[..., str]


@pytest.fixture
def run(forks: Forks) -> Run:
    """Provide `run(script, *paths, arguments=, **variables)`, which gives a script's output.

    It runs in its own process, which finds modules in `paths` first.
    """

    def run(script: str, *paths: Path, arguments: tuple[str, ...] = (), **variables: str) -> str:
        return succeeded(forks.run(Script(script, arguments, environment(*paths, **variables)))[0]).stdout

    return run


def succeeded(done: Done) -> Done:
    assert done.returncode == 0, done.stderr
    return done


def environment(*paths: Path, **variables: str) -> dict[str, str]:
    """The variables of a process."""
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    return {**inherited, "PYTHONPATH": os.pathsep.join(map(str, paths)), **variables}


@pytest.mark.timeout(600)
def test_an_edit_of_an_inlined_function_is_in_the_next_process_s_results(tmp_path, run: Run) -> None:
    for folder in (KERNELS, SERVER):
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    # The unchanged copy finds the code that other tests compiled, where they share a folder. If the
    # edited copy found it, too, the results would be equal.
    shared = {name: os.environ[name] for name in ("NUMBA_CACHE_DIR",) if name in os.environ}
    before = json.loads(run(ROOMS, tmp_path, HELPERS, **shared))
    for name, edits in EDITS.items():
        path = tmp_path / KERNELS.name / name
        text = path.read_text()
        for old, new in edits:
            assert old in text, (name, old)
            text = text.replace(old, new)
        path.write_text(text)
    after = json.loads(run(ROOMS, tmp_path, HELPERS, **shared))
    assert [room for room in before if after[room] == before[room]] == []


def test_processes_that_compile_variants_at_once_find_their_own_later(
    tmp_path, forks: Forks, run: Run
) -> None:
    """The processes share one cache. The variants of a kernel differ only in a value of its
    closure.
    """
    (tmp_path / "variants.py").write_text(VARIANTS_MODULE)
    numbers = [str(number) for number in range(8)]
    writers = [
        Script(VARIANTS, [*numbers[writer:], *numbers[:writer]], environment(tmp_path, KERNELS.parent))
        for writer in (0, 2, 4)
    ]
    assert [done.stdout for done in forks.run(*writers)] == ["True\n"] * 3
    files = kept(tmp_path)
    assert len(files) == len(numbers)
    assert run(VARIANTS, tmp_path, KERNELS.parent, arguments=tuple(numbers)) == "True\n"
    assert kept(tmp_path) == files


def kept(folder: Path) -> Mapping[str, int]:
    """When each file of compiled code below a folder was written, in nanoseconds, by name."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.livefactor")}


def test_code_of_another_source_is_removed(tmp_path, run: Run) -> None:
    module = tmp_path / "variants.py"
    module.write_text(VARIANTS_MODULE)
    run(VARIANTS, tmp_path, KERNELS.parent, arguments=("1", "2"))
    first = kept(tmp_path)
    module.write_text(VARIANTS_MODULE + "\n# edited\n")
    run(VARIANTS, tmp_path, KERNELS.parent, arguments=("1", "2"))
    assert len(first) == len(kept(tmp_path)) == 2
    assert not first.keys() & kept(tmp_path).keys()


def test_copies_of_a_source_share_code_in_the_folder_of_the_variable(tmp_path, run: Run) -> None:
    """Code of another source stays there for a week, since another copy may use it."""
    shared = tmp_path / "shared"

    def added(copy: str, text: str) -> None:
        (tmp_path / copy).mkdir(exist_ok=True)
        (tmp_path / copy / "variants.py").write_text(text)
        run(VARIANTS, tmp_path / copy, KERNELS.parent, arguments=("1",), NUMBA_CACHE_DIR=str(shared))

    added("one", VARIANTS_MODULE)
    first = kept(shared)
    added("two", VARIANTS_MODULE)
    assert kept(shared) == first == kept(tmp_path)
    added("two", VARIANTS_MODULE + "\n# edited\n")
    assert len(kept(shared)) == 2
    assert first.keys() < kept(shared).keys()
    for path in shared.rglob("*.livefactor"):
        os.utime(path, (0, 0))
    added("two", VARIANTS_MODULE + "\n# edited again\n")
    assert len(kept(shared)) == 1
    assert not first.keys() & kept(shared).keys()


def test_without_a_folder_that_can_be_written_code_is_kept_among_temporary_files(
    tmp_path, forks: Forks
) -> None:
    (tmp_path / "variants.py").write_text(VARIANTS_MODULE)
    # A file where a folder belongs refuses writing to root, too.
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / "temporary").mkdir()
    folders = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "TMPDIR": str(tmp_path / "temporary")}
    script = Script(VARIANTS, ["1", "2"], environment(tmp_path, KERNELS.parent, **folders))
    results = [succeeded(forks.run(script)[0]) for _ in range(2)]
    assert [done.stdout for done in results] == ["True\n"] * 2
    for done in results:
        (line,) = done.stderr.splitlines()
        assert "RuntimeWarning: compiled kernels are kept in" in line
    assert len(kept(tmp_path / "temporary")) == 2


def test_without_any_folder_that_can_be_written_a_kernel_is_compiled_and_not_kept(
    tmp_path, forks: Forks
) -> None:
    (tmp_path / "variants.py").write_text(VARIANTS_MODULE)
    (tmp_path / "__pycache__").write_text("")
    folders = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}
    # `tempfile` finds no folder where every candidate is a file.
    nowhere = "import tempfile\ntempfile._candidate_tempdir_list = lambda: ['/dev/null']\n"
    script = Script(nowhere + VARIANTS, ["1", "2"], environment(tmp_path, KERNELS.parent, **folders))
    done = succeeded(forks.run(script)[0])
    assert done.stdout == "True\n"
    (line,) = done.stderr.splitlines()
    assert "RuntimeWarning: compiled kernels are not kept" in line
    assert kept(tmp_path) == {}


def test_a_temporary_folder_that_others_can_write_is_not_used(tmp_path, run: Run) -> None:
    (tmp_path / "variants.py").write_text(VARIANTS_MODULE)
    (tmp_path / "__pycache__").write_text("")
    planted = tmp_path / "temporary" / f"livefactor-kernels-{os.getuid()}"
    planted.mkdir(parents=True)
    planted.chmod(0o777)
    folders = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "TMPDIR": str(tmp_path / "temporary")}
    assert run(VARIANTS, tmp_path, KERNELS.parent, arguments=("1",), **folders) == "True\n"
    assert kept(planted) == {}
    assert len(kept(tmp_path / "temporary")) == 1
