"""What the compiler made of the kernels: vectors, prefetches, no contraction, and code found again in its cache."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core.caching import NullCache

from livefactor_kernels import cpu
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.spec import Loss, ModelSpec, OptimizerKind
from synthetic import make_spec, push

KERNELS = {
    "positive": {"loss": Loss.SQUARED, "k": 64},
    "sampled": {"loss": Loss.LOGISTIC, "k": 16, "negatives": 2},
    "micro": {"loss": Loss.BPR, "k": 16, "negatives": 2, "micro_batch": 8},
}


class Compiled:
    """LLVM code and assembly of a kernel that was compiled here and now (code from the cache cannot be looked at)."""

    def __init__(self, spec: ModelSpec) -> None:
        stamp, cpu.SOURCE_STAMP = cpu.SOURCE_STAMP, -1
        enable, cpu_dispatcher = None, None
        del enable, cpu_dispatcher
        try:
            kernel = CpuModel(spec)._kernel
        finally:
            cpu.SOURCE_STAMP = stamp
        kernel._cache = NullCache()
        signature = kernel.signatures[0]
        kernel.overloads.clear()
        kernel.compile(signature)
        self.llvm, self.assembly = kernel.inspect_llvm(signature), kernel.inspect_asm(signature)
        main = re.search(r"^(\S*livefactor_\w+_kernel\S*):.*?^\.Lfunc_end", self.assembly, re.M | re.S)
        assert main is not None
        self.main = main[0]


@pytest.fixture(scope="module", params=KERNELS)
def compiled(request) -> Compiled:
    fields = dict(KERNELS[request.param])
    return Compiled(make_spec(fields.pop("loss"), OptimizerKind.SGD, **fields))


def full_width(assembly: str) -> str:
    """Name of the widest vector register this machine's code is written for."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    wide = [("zmm", features.get("avx512f")), ("ymm", features.get("avx"))]
    used = [name for name, there in wide if there and name in assembly]
    return used[0] if used else "xmm"


def test_the_arithmetic_is_in_full_vectors(compiled) -> None:
    register = full_width(compiled.main)
    if os.environ.get("NUMBA_CPU_NAME") is None and "avx" in os.popen("cat /proc/cpuinfo").read():
        assert register in ("ymm", "zmm")
    for operation in ("mulps", "addps", "subps", "minps", "maxps"):
        assert re.search(rf"v?{operation}\s.*%{register}", compiled.main), operation


def test_rows_are_prefetched(compiled) -> None:
    # Four lines of factors and one of the bias, for the user and the item; shorter rows have one line of factors.
    assert len(re.findall(r"\bprefetch\w*\s", compiled.main)) >= 4


def test_nothing_is_contracted(compiled) -> None:
    assert not re.search(r"\bv?fn?m(add|sub)", compiled.assembly)
    assert not re.search(r"\bf(add|mul|sub|div) (fast|reassoc|contract|nnan)", compiled.llvm)


def test_no_row_is_stored_from_nowhere(compiled) -> None:
    """An optimiser that takes an address for null replaces what is stored by `poison`: see `lanes.pointer_to`."""
    assert "store <16 x float>" in compiled.llvm
    assert not re.search(r"store <\d+ x float> poison", compiled.llvm)


def test_the_loop_calls_nothing(compiled) -> None:
    """Scalar mathematics and row steps are inlined: a vector that crosses a call goes through memory."""
    llvm = re.search(r"^define [^\n]*livefactor_\w+_kernel.*?^}", compiled.llvm, re.M | re.S)
    assert llvm is not None
    assert not re.findall(r"call [^\n]*@_ZN18livefactor_kernels(?!\S*cfunc)\S*", llvm[0])


SCRIPT = """
from synthetic import make_spec, push
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.spec import Loss
total = [0, 0]
for fields in ({}, {"micro_batch": 4}):
    model = CpuModel(make_spec(Loss.SQUARED, k=4, **fields))
    push(model, [1, 2], [3, 4], [1.0, 2.0])
    stats = model._kernel.stats
    total[0] += sum(stats.cache_hits.values())
    total[1] += sum(stats.cache_misses.values())
print(*total)
"""


def test_another_process_finds_the_kernels_in_the_cache(tmp_path) -> None:
    paths = [str(Path(cpu.__file__).parent.parent), str(Path(__file__).parent)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("NUMBA_CPU_NAME", None)

    def run() -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        return [int(number) for number in done.stdout.split()]

    assert run() == [0, 2]
    assert run() == [2, 0]


def test_the_stamp_covers_every_file_that_is_inlined() -> None:
    """Numba's cache looks at the kernel's own file only; the others must be in `cpu.SOURCE_STAMP`."""
    folder = Path(cpu.__file__).parent
    seen, todo = set(), ["cpu_sequential.py", "cpu_micro_batch.py"]
    while todo:
        name = todo.pop()
        if name in seen or name in ("tables.py", "reference.py", "keymap.py"):
            continue  # of these the kernels take no function
        seen.add(name)
        text = (folder / name).read_text()
        todo += [f"{module}.py" for module in re.findall(r"^from \.(\w+) import", text, re.M)]
        todo += [f"{module}.py" for module in re.findall(r"^from \. import (\w+)", text, re.M)]
    assert seen <= set(cpu._INLINED)


def test_a_cached_kernel_learns_like_a_fresh_one() -> None:
    spec = make_spec(Loss.SQUARED, k=16)
    models = [CpuModel(spec), CpuModel(spec)]
    for model in models:
        push(model, [1, 2, 1], [1, 1, 2], [1.0, 2.0, 3.0])
    assert models[0]._kernel is models[1]._kernel
    assert np.array_equal(models[0].users.factors[:2], models[1].users.factors[:2])
