"""The compiled code of kernels has vectors, prefetches and no contraction. The cache works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llvmlite import binding
from numba.core.caching import NullCache

import synthetic
from kept import kept
from livefactor_kernels import cpu
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.optimizers import Method
from livefactor_kernels.sgd.cpu_micro_batch import micro_batch_kernel
from livefactor_kernels.sgd.cpu_sequential import positive_kernel, sampled_kernel
from livefactor_kernels.spec.model import (
    LANES,
    FactorDtype,
    History,
    Loss,
    ModelSpec,
    OptimizerKind,
    Regularization,
)
from synthetic import make_spec

LOGISTIC, BPR = int(Loss.LOGISTIC), int(Loss.BPR)
REGULARIZED = Regularization(0.5, 0.5, 0.5, 0.5)


def _micro(spec: ModelSpec) -> tuple[Any, tuple[Any, ...], ModelSpec]:
    return micro_batch_kernel, (int(spec.loss), Method.of(spec)), spec


KERNELS = {
    "positive": (positive_kernel, (int(Loss.SQUARED), 0), make_spec(Loss.SQUARED, k=64)),
    "sampled": (sampled_kernel, (LOGISTIC, 0, 2), make_spec(Loss.LOGISTIC, negatives=2)),
    "micro": _micro(make_spec(Loss.BPR, negatives=2, micro_batch=8)),
}
"""For each kind of kernel: factory, arguments after the number of vectors, spec."""
KERNELS |= {
    f"{name} {dtype.name.lower()}": (factory, baked, replace(spec, factor_dtype=dtype))
    for (name, (factory, baked, spec)), dtype in zip(
        KERNELS.items(), (FactorDtype.FLOAT16, FactorDtype.BFLOAT16, FactorDtype.FLOAT16), strict=True
    )
}
KERNELS |= {
    "labels": (sampled_kernel, (LOGISTIC, 0, 0), make_spec(Loss.LOGISTIC)),
    "micro adam": _micro(make_spec(Loss.SQUARED, OptimizerKind.LAZY_ADAM, k=64, micro_batch=8)),
    "micro ftrl dropout": _micro(
        make_spec(
            Loss.LOGISTIC,
            OptimizerKind.FTRL,
            k=20,
            negatives=2,
            regularization=REGULARIZED,
            history=History(16),
        )
    ),
    "one drawn": (sampled_kernel, (BPR, 0, 1), make_spec(Loss.BPR, negatives=1)),
}


def code_of(factory: Any, baked: tuple[Any, ...], spec: ModelSpec) -> Callable[[], tuple[str, str]]:
    """A function that compiles a kernel and returns its LLVM code and its assembly.

    Numba does not show code from its cache.
    """

    def compile_kernel() -> tuple[str, str]:
        kernel = factory.__wrapped__(spec.k_padded // LANES, *baked)
        kernel._cache = NullCache()
        factory.cache_clear()
        CpuModel(spec)
        (signature,) = factory(spec.k_padded // LANES, *baked).signatures
        kernel.compile(signature)
        return kernel.inspect_llvm(signature), kernel.inspect_asm(signature)

    return compile_kernel


class Compiled:
    """The LLVM code and the assembly of a kernel."""

    def __init__(self, name: str) -> None:
        processor = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
        self.llvm, assembly = kept(f"{name} for {processor}", code_of(*KERNELS[name]))
        self.main = _function(r"^(?!cfunc|_ZN7cpython)\S*livefactor_\w+_kernel\S*:.*?^\.Lfunc_end", assembly)
        self.loop = _function(r"^define [^\n]*@_ZN18livefactor_kernels[^\n]*_kernel.*?^}", self.llvm)


def _function(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.M | re.S)
    assert found is not None
    return found[0]


@pytest.fixture(scope="module", params=KERNELS)
def compiled(request) -> Compiled:
    return Compiled(request.param)


def test_the_arithmetic_is_in_full_vectors(compiled) -> None:
    vector = "[yz]mm" if binding.get_host_cpu_features().get("avx") else "xmm"
    for operation in ("mulps", "addps", "subps", "minps", "maxps"):
        assert re.search(rf"v?{operation}\s.*%{vector}", compiled.main), operation


def test_rows_are_prefetched(compiled) -> None:
    # At least a line of factors and one of the bias, for the user and the item.
    assert len(re.findall(r"\bprefetch\w*\s", compiled.main)) >= 4


def test_nothing_is_contracted(compiled) -> None:
    assert not re.search(r"\bv?fn?m(add|sub)", compiled.main)
    assert not re.search(r"\bf(add|mul|sub|div) (fast|reassoc|contract|nnan)", compiled.llvm)


def test_no_row_is_stored_from_nowhere(compiled) -> None:
    """If LLVM takes an address for null, it stores `poison` (see `lanes.pointer_to`)."""
    assert re.search(r"store <16 x (float|i16)>", compiled.llvm)
    assert not re.search(r"store <\d+ x \w+> poison", compiled.llvm)


def test_factors_are_stored_as_they_are_kept(compiled, request) -> None:
    narrow = "float16" in request.node.callspec.id
    assert ("store <16 x i16>" in compiled.loop) == narrow
    drawn = (
        narrow or "dropout" in request.node.callspec.id
        # Only rounding and dropout draw random words.
    )
    assert ("mul <16 x i32>" in compiled.loop) == drawn


def test_the_loop_calls_nothing(compiled) -> None:
    """Scalar mathematics and row steps are inlined, because a vector that crosses a call goes
    through memory.
    """
    assert re.search(r"store <16 x (float|i16)>", compiled.loop)
    assert not re.findall(r"call [^\n]*@_ZN18livefactor_kernels\S*", compiled.loop)


SCRIPT = """
import contextlib
import sys
from synthetic import make_spec
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.numbers import cache
from livefactor_kernels.spec.model import Loss
found = []
load = cache._Files.load

def noted(files, key):
    found.append(files._name)
    return load(files, key)

cache._Files.load = noted
with cache.only_loading() if sys.argv[1] == "load" else contextlib.nullcontext():
    for fields in ({}, {"micro_batch": 4}):
        CpuModel(make_spec(Loss.SQUARED, k=4, **fields))
print(*found)
"""
"""Makes two models, whose kernels it loads or compiles, and prints the names of all kernels. If it
may only load, a kernel that is not on disk is an error.
"""


def test_another_process_finds_the_kernels_in_the_cache(tmp_path) -> None:
    paths = [str(Path(cpu.__file__).parent.parent), str(Path(synthetic.__file__).parent)]
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("NUMBA_CPU_NAME", None)

    def run(what: str) -> str:
        command = [sys.executable, "-c", SCRIPT, what]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = run("compile")
    assert ".livefactor_positive_kernel" in names and ".livefactor_micro_batch_kernel" in names
    assert run("load") == names
