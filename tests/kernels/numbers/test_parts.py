"""Parts of kernels: they are code of their kernels only, and Python can call them, too."""

from __future__ import annotations

import numpy as np
from numba import njit

from livefactor_kernels.numbers.parts import inlined, part


@inlined
def doubled(x):
    return x + x


@part
def shared(x, y):
    return doubled(x) / y


# The code of a kernel that a cache gives does not name its parts.
@njit(error_model="numpy")
def kernel(x, y):
    return shared(x, y) + doubled(y)


@njit(error_model="numpy")
def other_kernel(x):
    return shared(x, x)


def test_two_kernels_contain_the_code_of_a_part_and_python_calls_it() -> None:
    two, three = np.float32(2), np.float32(3)
    assert kernel(three, two) == shared(three, two) + 4 == 7
    assert other_kernel(three) == 2
    assert kernel(np.float64(1), np.float64(0)) == np.inf
    assert shared.__module__ == __name__


def test_a_part_has_no_code_of_its_own() -> None:
    kernel(np.float32(1), np.float32(2))
    (library,) = [each.library for each in kernel.overloads.values() if each.signature.args[0].bitwidth == 32]
    assert library._linking_libraries
    for callee in library._linking_libraries:
        if "shared" in callee.name or "doubled" in callee.name:
            assert callee.get_pointer_to_function(next(callee.get_defined_functions()).name) == 0
            break
    else:
        raise AssertionError("the kernel has no part")
