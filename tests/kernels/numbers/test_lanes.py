"""Vec16: operators, loads, stores, the order of the tree, and the same code for one float32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from livefactor_kernels.numbers import sums
from livefactor_kernels.numbers.lanes import (
    address_of,
    broadcast,
    clamp,
    load1,
    load16,
    load_u32,
    prefetch,
    root,
    store1,
    store16,
    store_u32,
    tree_sum,
)
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.simd.memory import reserve

F = np.float32
finite = st.floats(-1e6, 1e6, width=32)
rows = st.lists(finite, min_size=16, max_size=16).map(lambda values: np.array(values, np.float32))


@inlined
def formula(x, y, s):
    """All operators, with a float32 on either side."""
    t = (x + y) * s - (s - x) / (root(y * y) + F(0.5))
    return clamp(t - s * y + x / F(3.0), F(1000.0))


@njit(error_model="numpy")
def vector_formula(x, y, out, s):
    store16(out, formula(load16(x), load16(y), s))
    prefetch(x)
    return tree_sum(load16(x) * load16(y))


@njit(error_model="numpy")
def scalar_formula(x, y, s):
    return formula(x, y, s)


@pytest.fixture(scope="module")
def memory() -> np.ndarray:
    return reserve((4, 16), np.float32)


@given(x=rows, y=rows, s=finite)
def test_vector_scalar_and_numpy_give_the_same_bits(memory, x, y, s) -> None:
    memory[0], memory[1], s = x, y, F(s)
    dot = vector_formula(*(address_of(row) for row in memory[:3]), s)
    # The formula in Python, on arrays.
    expected = formula(x, y, s)
    assert expected.dtype == np.float32
    assert memory[2].tobytes() == expected.tobytes()
    one_by_one = np.array([scalar_formula(a, b, s) for a, b in zip(x, y, strict=True)], np.float32)
    assert one_by_one.tobytes() == expected.tobytes()
    assert F(dot).tobytes() == sums.dot(x, y).tobytes()


def test_the_tree_adds_lane_8_4_2_1() -> None:
    # In any other order the large numbers swallow the small ones.
    x = np.ones(16, np.float32)
    x[0], x[8], x[4], x[12] = 1e8, -1e8, 3e7, -3e7
    assert sums.dot(x, np.ones(16, np.float32)) == 12.0
    memory = reserve((3, 16), np.float32)
    memory[0], memory[1] = x, 1.0
    assert vector_formula(*(address_of(row) for row in memory), F(1.0)) == 12.0


@njit(error_model="numpy")
def _move(source, target):
    store16(target, load16(source, np.uint64(64)), np.uint64(128))
    store1(target, load1(source, np.uint64(8)))
    store_u32(target, load_u32(source, np.uint64(4)) + np.uint64(1), np.uint64(12))
    store16(target, broadcast(F(7.0)), np.uint64(64))


def test_offsets_are_bytes_past_the_address() -> None:
    source, target = reserve((2, 16), np.float32), reserve((3, 16), np.float32)
    source[:] = np.arange(32).reshape(2, 16)
    source.view(np.uint32)[0, 1] = 0xFFFF_FFFE
    _move(address_of(source), address_of(target))
    assert target[2].tolist() == source[1].tolist()
    assert target[0, 0] == 2.0
    assert target.view(np.uint32)[0, 3] == 0xFFFF_FFFF
    assert target[1].tolist() == [7.0] * 16


def test_subnormals_are_kept() -> None:
    memory = reserve((3, 16), np.float32)
    memory[0] = memory[1] = F(1e-22)
    assert 0.0 < vector_formula(*(address_of(row) for row in memory), F(0.0)) < np.finfo(np.float32).tiny
