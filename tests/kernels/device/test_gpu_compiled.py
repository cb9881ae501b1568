"""Every GPU kernel compiles for every supported GPU, without a GPU, a driver or nvcc.

No operation is contracted, and no subnormal is flushed. No kernel takes more registers than
`benchmarks/registers.json` allows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("cuda.core")

from gpu_compiler import TARGETS, Built, Machine, built, cases, machine_code_of, ptx_of
from livefactor_kernels.cuda import _kind_of
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.spec.presets import PRESET_NAMES, preset

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")

RATCHET = Path(__file__).resolve().parents[3] / "benchmarks" / "registers.json"
CASES = {} if SIMULATED else {case.name: case for case in cases()}


def name_of(target: tuple[int, int]) -> str:
    return "sm_{}{}".format(*target)


SHORT = (9, 0)
"""The target that the default suite compiles for; `make test-long` compiles for each of them."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(each, marks=() if each == SHORT else pytest.mark.long, id=name_of(each))
        for each in TARGETS
    ],
)
def target(request) -> tuple[int, int]:
    return request.param


ALIKE = {
    *("dropped_logistic_users", "dropped_logistic_items", "dropped_logistic_walk"),
    *("softmax_adam_users", "softmax_adam_lanes", "adam_lanes", "ftrl_lanes", "solve_64", "solve_128"),
    # Other short kernels of the same method have their formulas.
    *("rowwise_lanes", "dropped_bpr_walk", "bpr_walk"),
    *("rival_hogwild", "rival_float16_hogwild", "rival_errors", "rival_row_block", "rival_row_step"),
}
"""Kernels with the formulas of another kernel, and kernels of benchmarks alone."""


def is_short(name: str) -> bool:
    """Whether the default suite compiles a kernel; `make test-long` compiles all of them."""
    if name in ALIKE:
        return False
    kind = name.split("_")[0]
    # bfloat16 differs from float16 in two formulas: where rows are read and stepped.
    if kind == "bfloat16":
        return name.endswith(("_users", "_step"))
    return not name.endswith("_together") or kind == "squared"


@pytest.fixture(scope="module")
def code(target) -> dict[str, Built]:
    return {name: built(case, target) for name, case in CASES.items() if is_short(name)}


@pytest.fixture
def compiled(code) -> dict[str, str]:
    return {name: each.ptx for name, each in code.items()}


def assert_within_registers(found: dict[str, Machine], target: tuple[int, int]) -> None:
    allowed = json.loads(RATCHET.read_text(encoding="utf-8"))[name_of(target)]
    assert allowed.keys() == CASES.keys()
    worse = {
        name: (list(numbers), allowed[name])
        for name, numbers in found.items()
        if any(number > limit for number, limit in zip(numbers, allowed[name], strict=True))
    }
    assert worse == {}


def test_every_kernel_compiles_within_its_registers(code, target) -> None:
    """If a kernel needs fewer registers, write the file again: `python
    tests/kernels/device/test_gpu_compiled.py`.
    """
    assert_within_registers({name: each.machine for name, each in code.items()}, target)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_every_loss_compiles_for_every_target_within_its_registers(target) -> None:
    assert_within_registers(
        {
            name: machine_code_of(ptx_of(case, target), target)
            for name, case in CASES.items()
            if not is_short(name)
        },
        target,
    )


def test_ptx_is_no_newer_than_cuda_13_0(compiled, target) -> None:
    """Drivers of CUDA 13.0 refuse a later version."""
    for name, ptx in compiled.items():
        version = re.search(r"^\.version (\d+)\.(\d+)", ptx, re.M)
        assert version is not None and (int(version[1]), int(version[2])) <= (9, 0), name
        assert f".target {name_of(target)}" in ptx, name


def test_every_operation_is_rounded_once(compiled) -> None:
    """An operation without `.rn` may be contracted later, and `.ftz` flushes subnormals."""
    for name, ptx in compiled.items():
        floats = set(
            re.findall(r"\b(?:fma|mad|add|sub|mul|div|rcp|sqrt|rsqrt|ex2|lg2)\.\S*f(?:32|64)\b", ptx)
        )
        allowed = {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32", "rcp.rn.f32", "sqrt.rn.f32"}
        # These have Gram matrices or sums of squared errors.
        if name.startswith(("solve", "gram")) or "evidence" in name:
            allowed |= {"add.rn.f64", "mul.rn.f64"}
        assert floats <= allowed, name
        assert ".f64" not in ptx or allowed & floats & {"add.rn.f64", "mul.rn.f64"}, name
        assert ".ftz" not in ptx and ".approx" not in ptx, name
        if name.startswith("rival"):
            continue
        if name.endswith(("_users", "_items", "_walk", "_together", "_step", "_lanes")):
            assert {"add.rn.f32", "mul.rn.f32"} <= floats, name
        if name.endswith(("_walk", "_together", "_step", "_lanes")):
            # AdaGrad takes a square root.
            assert "sqrt.rn.f32" in floats, name


def test_narrow_factors_are_half_as_many_bytes(compiled) -> None:
    """Narrow factors are loaded and stored as 16 bits. One exact instruction widens float16."""
    for name, ptx in compiled.items():
        kind = "float16" if name.startswith("rival_float16") else name.split("_")[0]
        loads, stores = (bool(re.search(rf"\b{verb}(?:\.global)?\.[bsu]16\b", ptx)) for verb in ("ld", "st"))
        narrow = kind in ("float16", "bfloat16")
        if name.endswith("_record") or re.match("named|softmax_(?!negatives)", name):
            # These load 16 bits of keys, which are an event's number.
            continue
        assert loads == (narrow and not name.endswith("init")), name
        stepped = name.endswith(("init", "step", "walk", "together", "gather", "save", "hogwild"))
        assert stores == (narrow and stepped), name
        widened = kind == "float16" and not name.endswith(("init", "gather", "save"))
        assert ("cvt.f32.f16" in ptx) == widened, name


def test_half_warps_meet_by_shuffles(compiled) -> None:
    sums = (
        "users", "walk", "together", "lanes", "hogwild", "errors", "evidence", "scan", "rescore", "norms"
    )  # fmt: skip
    for name, ptx in compiled.items():
        if name == "probe_begin":
            assert "shfl.sync.idx.b32" in ptx and "bfly" not in ptx
            continue
        meets = name.split("_")[-1] in sums
        assert (ptx.count("shfl.sync.bfly.b32") >= 4) == ("shfl" in ptx) == meets, name


def test_kernels_use_no_float_atomics_and_call_nothing(compiled) -> None:
    for name, ptx in compiled.items():
        atomics = re.findall(r"\b(?:atom|red)\.\S+", ptx)
        assert all(re.search(r"\.(?:cas\.b32|add\.[us]32)$", atomic) for atomic in atomics), name
        assert bool(atomics) == name.endswith("save"), name
        called = set(re.findall(r"\.func .*?(\w+)\n", ptx))
        # The barrier of the grid is in CUDA's device runtime.
        barrier = {"cudaCGGetIntrinsicHandle", "cudaCGSynchronize"}
        assert called == (barrier if name.endswith("_together") else set()), name


def test_kernels_carry_the_projects_name(compiled) -> None:
    for name, ptx in compiled.items():
        entries = re.findall(r"\.entry (\S+)\(", ptx)
        assert len(entries) == 1 and "livefactor_" in entries[0], name


def test_a_plain_product_and_sum_would_be_contracted() -> None:
    """The test of rounding can fail: without the lowering of this project, NVVM fuses."""
    from numba import types

    from livefactor_kernels.device.warp import cuda

    def doubles(a, out) -> None:
        out[0] = a[0] * a[1] + a[2]

    array = types.Array(types.float64, 1, "C")
    ptx, _ = cuda.compile(
        doubles, types.void(array, array), device=False, abi="numba", cc=(9, 0), output="ptx"
    )
    assert "fma.rn.f64" in ptx


def written() -> dict[str, dict[str, list[int]]]:
    """[registers, bytes of stack, bytes spilled] of every kernel and target."""
    return {
        name_of(target): {
            name: list(machine_code_of(ptx_of(case, target), target)) for name, case in CASES.items()
        }
        for target in TARGETS
    }


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_every_preset_has_a_small_model_to_compile_its_kernels_by(name: str) -> None:
    spec = preset(name)
    small = _kind_of(spec)
    assert (small.rule, small.loss, small.k) == (spec.rule, spec.loss, spec.k)
    assert small.softmax.proposal == spec.softmax.proposal


if __name__ == "__main__":
    lines = json.dumps(written(), indent=1)
    RATCHET.write_text(
        re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2, \3]", lines) + "\n", encoding="utf-8"
    )
