"""The scalar mathematics: accurate, bounded, and with equal bits in Python and in compiled code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import LANES, VECTOR_BYTES, address_of, load16, store16
from livefactor_kernels.simd.memory import reserve

F = np.float32
anything = st.floats(-(2.0**100), 2.0**100, width=32).map(F)


@njit(error_model="numpy")
def compiled(x, v, w):
    s = scalar
    limit = F(50.0)
    return (
        s.exp(x),
        s.sigmoid(x),
        s.squared_error(x, v, w, limit),
        s.logistic_error(x, v, w, limit),
        s.bpr_error(x, v, w, limit),
        s.pull(x, v, w, x),
        s.norm_scale(w + v * v, F(2.0)),
    )


@given(
    x=st.floats(-200, 200, width=32).map(F),
    v=st.floats(-5, 5, width=32).map(F),
    w=st.floats(0.0625, 10, width=32).map(F),
)
def test_plain_python_and_compiled_code_give_the_same_bits(x, v, w) -> None:
    plain = compiled.py_func(x, v, w)
    assert all(type(value) is np.float32 for value in plain)
    assert np.array(plain).tobytes() == np.array(compiled(x, v, w), np.float32).tobytes()


@njit(error_model="numpy")
def compiled16(x, v, w, out):
    s, limit = scalar, F(50.0)
    xs, vs, ws = load16(x), load16(v), load16(w)
    store16(out, s.logistic_error(xs, vs, ws, limit))
    store16(out, s.bpr_error(xs, vs, ws, limit), VECTOR_BYTES)


def test_sixteen_lanes_and_plain_python_give_the_same_bits() -> None:
    memory, rng = reserve((5, LANES), np.float32), np.random.default_rng(0)
    for x in np.linspace(-100, 100, 251).astype(np.float32).reshape(-1, 1) + np.arange(LANES, dtype=F) / 19:
        memory[:3] = x, rng.normal(size=LANES), rng.random(LANES)
        compiled16(*(address_of(memory[row]) for row in range(4)))
        for row, error in ((3, scalar.logistic_error), (4, scalar.bpr_error)):
            plain = [error(*lane, F(50.0)) for lane in memory[:3].T]
            assert memory[row].tobytes() == np.array(plain, np.float32).tobytes()


def test_exp_is_within_two_units_of_the_last_place() -> None:
    xs = np.linspace(-87, 87, 20_001).astype(np.float32)
    got = np.array([scalar.exp(x) for x in xs], np.float64)
    assert np.max(np.abs(got / np.exp(xs.astype(np.float64)) - 1)) < 2 * 2**-24


@given(x=anything)
def test_sigmoid_is_a_probability_and_symmetric(x) -> None:
    p, q = scalar.sigmoid(x), scalar.sigmoid(-x)
    assert np.finfo(np.float32).tiny < p <= 1.0
    assert abs(float(p) + float(q) - 1.0) < 2e-7
    expected = 1 / (1 + math.exp(-max(-87.0, min(87.0, float(x)))))
    assert p == pytest.approx(expected, rel=4e-7)


@given(x=anything, v=anything, w=st.floats(0, 1e3, width=32).map(F))
def test_errors_never_leave_their_limit(x, v, w) -> None:
    for error in (scalar.squared_error, scalar.logistic_error):
        assert abs(error(x, v / F(1e4), w, F(2.5))) <= 2.5
    assert -2.5 <= scalar.bpr_error(x, v, w, F(2.5)) <= 0.0


@pytest.mark.parametrize("x", [-3.0, -0.4, 0.0, 0.7, 5.0])
def test_errors_are_the_derivatives_of_the_losses(x: float) -> None:
    h, big = 1e-4, F(1e6)

    def slope(loss) -> float:
        return (loss(x + h) - loss(x - h)) / (2 * h)

    assert scalar.squared_error(F(x), F(1.5), F(2), big) == pytest.approx(
        slope(lambda s: (s - 1.5) ** 2), abs=1e-3
    )
    for label in (0.0, 1.0):
        loss = slope(lambda s, v=label: 2 * (math.log1p(math.exp(-s)) + (1 - v) * s))
        assert scalar.logistic_error(F(x), F(label), F(2), big) == pytest.approx(loss, abs=1e-3)
    bpr = slope(lambda s: 2 * math.log1p(math.exp(0.3 - s)))
    assert scalar.bpr_error(F(x), F(0.3), F(2), big) == pytest.approx(bpr, abs=1e-3)


@given(x=st.floats(-1e6, 1e6, width=32).map(F))
def test_fixed_point_rounds_half_to_even(x) -> None:
    # Python also rounds half to even.
    assert int(scalar.fixed_point(x)) == round(float(x) * 2**20)


def test_fixed_point_ties() -> None:
    assert [int(scalar.fixed_point(F(n * 2.0**-21))) for n in (1, 3, 5, -1, -3)] == [0, 2, 2, 0, -2]


def test_mean_and_hot_scale() -> None:
    assert scalar.mean_of(0, 0) == 0.0
    assert scalar.mean_of(3 << 20, 2) == 1.5
    assert scalar.hot_scale(F(4), 4) == 1.0
    assert scalar.hot_scale(F(4), 16) == 0.25
    assert scalar.hot_scale(F(4), 3) == 1.0
