"""Golden digests (`tests/kit/golden.py`): the CPU, the reference and code for older CPUs give the
same bits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import golden
import livefactor_kernels
from golden import GOLDEN, SPECS, digest


@pytest.mark.parametrize("name", SPECS)
def test_this_machine_gives_the_golden_digests(name: str) -> None:
    assert digest(name) == GOLDEN[name]


@pytest.mark.parametrize(
    "name",
    [
        "bpr_adagrad",
        "squared_float16",
        "logistic_adagrad_bfloat16",
        "squared_rowwise_adagrad",
        "logistic_adam_micro",
        "bpr_ftrl_bfloat16",
        "logistic_regularized",
    ],
)
def test_the_reference_gives_the_golden_digest(name: str) -> None:
    assert digest(name, "reference") == GOLDEN[name]


SOME = (
    "squared",
    "logistic_adagrad_bfloat16",
    "bpr_micro_float16",
    "bpr_ftrl_bfloat16",
    "solve_features_follow",
    "solve_mix_baskets",
    "softmax_uniform_adagrad",
)
"""Specs of each rule, and with the kernels that have most sums."""


# haswell has AVX2 and FMA (which must not be used), x86-64 only 128-bit vectors.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("cpu", "names"),
    [
        pytest.param("haswell", SOME, id="haswell-some"),
        pytest.param("haswell", tuple(SPECS), id="haswell", marks=pytest.mark.long),
        pytest.param("x86-64", tuple(SPECS), id="x86-64", marks=pytest.mark.long),
    ],
)
def test_code_for_another_cpu_gives_the_golden_digests(cpu: str, names: tuple[str, ...]) -> None:
    """One process takes all specs, since each process compiles the functions kernels inline."""
    paths = [
        str(Path(livefactor_kernels.__file__).parent.parent),
        str(Path(golden.__file__).parent),
    ]
    # With a name alone Numba would add the features of this machine.
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(
        [sys.executable, golden.__file__, *names],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert dict(line.split() for line in done.stdout.splitlines()) == {name: GOLDEN[name] for name in names}
