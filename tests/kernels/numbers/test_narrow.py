"""Factors of 16 bits: exact widening, stochastic rounding, equal bits for arrays, scalars and
lanes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from livefactor_kernels.numbers import narrow
from livefactor_kernels.numbers.lanes import HAS_HALVES, load_shorts, store16
from livefactor_kernels.numbers.random import column_word, philox, rounding_word
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import FactorDtype, Limits, ModelSpec, SpecError

F, U = np.float32, np.uint64
NARROW = [FactorDtype.FLOAT16, FactorDtype.BFLOAT16]
MOST = {FactorDtype.FLOAT16: 65504.0, FactorDtype.BFLOAT16: 1e6}
WORDS = st.integers(0, 2**32 - 1)


@cache
def representable(dtype: FactorDtype) -> np.ndarray:
    """All finite values of a factor in a narrow type, as stored.

    For bfloat16 it includes the step after the maximum.
    """
    bits = np.arange(1 << 16, dtype=np.uint16).view(narrow.array_dtype(dtype))
    values = narrow.widened(bits)
    with np.errstate(invalid="ignore"):
        return bits[np.abs(values) <= 1.005 * MOST[dtype]]


def rounded(dtype: FactorDtype, values, noise) -> np.ndarray:
    """The values after rounding and widening, float64."""
    values = np.asarray(values, F)
    noise = np.broadcast_to(np.asarray(noise, U), values.shape)
    return narrow.widened(narrow.rounded(dtype, values, noise)).astype(np.float64)


def factors(dtype: FactorDtype):
    """float32 values of every magnitude, also 0."""
    signs, most = st.sampled_from([-1.0, 1.0]), np.log2(MOST[dtype])
    sizes = st.floats(-60.0, float(most)).map(lambda power: 2.0**power)
    return st.tuples(signs, sizes).map(lambda pair: F(pair[0] * pair[1])) | st.just(F(0.0))


# ---------------------------------------------------------------- widening


def test_float16_is_widened_as_numpy_widens_it() -> None:
    bits = representable(FactorDtype.FLOAT16)
    expected = bits.astype(F)
    assert len(bits) == 2 * 0x7C00
    assert narrow.widened(bits).tobytes() == expected.tobytes()
    assert narrow.widen_float16(bits.view(np.uint16).astype(U)).tobytes() == expected.tobytes()


def test_bfloat16_is_the_upper_half_of_a_float32() -> None:
    bits = representable(FactorDtype.BFLOAT16)
    values = narrow.widened(bits)
    assert (values.view(np.uint32) >> 16 == bits).all() and not (values.view(np.uint32) & 0xFFFF).any()
    assert narrow.widen_bfloat16(bits.astype(U)).tobytes() == values.tobytes()


def test_float32_is_neither_widened_nor_rounded() -> None:
    values = np.array([1.0, 1.0 + 2.0**-23], F)
    assert narrow.widened(values) is values
    assert narrow.rounded(FactorDtype.FLOAT32, values, np.zeros(2, U)) is values


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_representable_stays_with_any_noise(dtype) -> None:
    bits = representable(dtype)
    for noise in (0, 1, 0x8000_0000, 0xFFFF_FFFF):
        again = narrow.rounded(dtype, narrow.widened(bits), np.full(bits.shape, noise, U))
        assert again.tobytes() == bits.tobytes()


@pytest.mark.parametrize("dtype", NARROW)
@given(data=st.data(), noise=WORDS)
def test_the_result_is_one_of_the_two_neighbours(dtype, data, noise) -> None:
    x = data.draw(factors(dtype))
    numbers = np.unique(narrow.widened(representable(dtype)).astype(np.float64))
    (result,) = rounded(dtype, [x], noise)
    place = np.searchsorted(numbers, float(x))
    assert result in (numbers[place], numbers[max(place - 1, 0)])
    if numbers[place] == x:
        assert result == x
    assert np.isfinite(result)


@pytest.mark.parametrize("dtype", NARROW)
@given(data=st.data(), noise=WORDS)
def test_rounding_is_monotone_and_symmetric(dtype, data, noise) -> None:
    values = np.sort([data.draw(factors(dtype)) for _ in range(8)])
    results = rounded(dtype, values, noise)
    assert (np.diff(results) >= 0).all()
    assert (rounded(dtype, -values, noise) == -results).all()


@pytest.mark.parametrize("dtype", NARROW)
@given(data=st.data())
def test_the_mean_over_all_noise_is_the_number_itself(dtype, data) -> None:
    """Rounding is unbiased for values without bits below the noise. For float16 these are values
    from 2**-21 on.
    """
    power = data.draw(st.integers(-20 if dtype == FactorDtype.FLOAT16 else -60, 14))
    x = np.ldexp(F(data.draw(st.integers(1 << 23, (1 << 24) - 1))), power - 24)
    assert x.dtype == F
    bits = 16 if dtype == FactorDtype.BFLOAT16 else 13 if x >= 2.0**-14 else 20
    noise = np.arange(1 << bits, dtype=U) << U(32 - bits)
    results = rounded(dtype, np.full(noise.shape, x), noise)
    low, up = results.min(), results != results.min()
    step = (results.max() - low) or 1.0
    assert low + step * up.sum() / len(noise) == float(x)


@pytest.mark.parametrize("power", [-22, -24, -30, -40])
def test_float16_loses_less_than_2_to_the_minus_44_of_what_is_tiny(power) -> None:
    rng = np.random.default_rng(1)
    values = (2.0**power * (1.0 + rng.random(2))).astype(F)
    noise = np.arange(1 << 20, dtype=U) << U(12)
    for x in values:
        mean = rounded(FactorDtype.FLOAT16, np.full(noise.shape, x), noise).mean()
        assert 0.0 <= float(x) - mean < 2.0**-44


@pytest.mark.parametrize("dtype", NARROW)
def test_draws_of_rows_and_columns_are_unbiased_and_do_not_repeat(dtype) -> None:
    """Words as a model draws them: 4,000 steps with one word each, and 64 columns."""
    words = np.array([rounding_word(U(5), U(n // 7), U(n % 7), U(n % 2), U(n % 13)) for n in range(4000)], U)
    assert np.unique(words).size > 3990
    noise = column_word(words[:, None], np.arange(64, dtype=U)[None, :])
    x = F(0.7371)
    results = rounded(dtype, np.full(noise.shape, x), noise)
    step = results.max() - results.min()
    # The share of values that are rounded up.
    share = (float(x) - results.min()) / step
    deviation = np.sqrt(share * (1.0 - share))
    assert results.mean() == pytest.approx(float(x), abs=5 * step * deviation / np.sqrt(noise.size))
    assert np.abs((results - x).mean(axis=0)).max() < 5 * step * deviation / np.sqrt(4000)
    assert np.abs((results - x).mean(axis=1)).max() < 6 * step * deviation / np.sqrt(64)
    up = (results > x).astype(np.float64) - share
    for shifted in (np.roll(up, 1, axis=0), np.roll(up, 1, axis=1)):
        assert abs((up * shifted).mean()) < 5 * deviation**2 / np.sqrt(noise.size)


@given(key=st.integers(0, 2**64 - 1), revision=st.integers(0, 2**64 - 1), step=st.integers(0, 2**31 - 1))
def test_a_rows_word_is_philox_of_where_and_when(key, revision, step) -> None:
    for side, row in ((0, 0), (1, 2**32 - 2)):
        counter = revision & 0xFFFF_FFFF, revision >> 32, 2 * step + side, row
        word = rounding_word(U(key), U(revision), U(step), U(side), U(row))
        assert word == philox(*map(U, counter), U(key))[0]


@given(word=WORDS, column=st.integers(0, 1023))
def test_a_columns_bits_are_the_murmur3_finaliser(word, column) -> None:
    h = (word + column * 0x9E3779B1) % 2**32
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    assert column_word(U(word), U(column)) == h ^ h >> 16


# ---------------------------------------------------------------- compiled


@njit(error_model="numpy")
def _round_one_by_one(values, noise, float16, halves, brains, widened):
    for i in range(values.size):
        halves[i] = narrow.round_float16(values[i], noise[i])
        brains[i] = narrow.round_bfloat16(values[i], noise[i])
        word = U(halves[i]) if float16 else U(brains[i])
        widened[i] = narrow.widen_float16(word) if float16 else narrow.widen_bfloat16(word)


@njit(error_model="numpy")
def _round_in_lanes(source, target, column, word, widened):
    """Stores the second sixteen factors of `source` (float32) in `target`, and widens them from
    there.
    """
    narrow.prefetch_factors(target, U(64), U(1))
    narrow.store_factors(target, U(64), narrow.load_factors(source, U(64)), column, word)
    store16(widened.address, narrow.load_factors(target, U(64)), U(64))


@njit
def _widen_in_lanes(source, target):
    store16(target.address, narrow.widen_float16(load_shorts(source.address, U(32))), U(64))


def test_every_float16_is_widened_alike_in_lanes() -> None:
    """Widening by the instruction of the CPU, if it has one, and by arithmetic."""
    bits, wide = reserve((2, 16), np.float16), reserve((2, 16), F)
    source, target = narrow.factors_of(bits), narrow.factors_of(wide)
    other = reserve((2, 16), np.float16)
    for start in range(0, 1 << 16, 16):
        row = np.arange(start, start + 16, dtype=np.uint16).view(np.float16)
        if not np.isfinite(row).all():
            continue
        bits[1] = row
        _widen_in_lanes(source, target)
        assert wide[1].tobytes() == row.astype(F).tobytes()
        wide[1] = 0.0
        _round_in_lanes(target, narrow.factors_of(other), U(16), U(1), target)
        assert not wide[1].any()
    assert isinstance(HAS_HALVES, bool)


@pytest.mark.parametrize("dtype", NARROW)
@given(data=st.data(), word=WORDS, column=st.sampled_from([0, 16, 1008]))
def test_arrays_scalars_and_lanes_give_the_same_bits(dtype, data, word, column) -> None:
    values = np.array([data.draw(factors(dtype)) for _ in range(16)], F)
    values[0] = 65504.0
    noise = column_word(U(word), np.arange(column, column + 16, dtype=U))
    expected = narrow.rounded(dtype, values, noise)

    halves, brains, widened = np.empty(16, np.uint16), np.empty(16, np.uint16), np.empty(16, F)
    float16 = dtype == FactorDtype.FLOAT16
    _round_one_by_one(
        values.clip(-65504, 65504) if float16 else values, noise, float16, halves, brains, widened
    )
    assert (halves if float16 else brains).tobytes() == expected.tobytes()
    assert widened.tobytes() == narrow.widened(expected).tobytes()

    source, target, wide = reserve((2, 16), F), reserve((2, 16), expected.dtype), reserve((2, 16), F)
    source[1] = values
    arrays = (narrow.factors_of(array) for array in (source, target, wide))
    first, second, third = arrays
    _round_in_lanes(first, second, U(column), U(word), third)
    assert target[1].tobytes() == expected.tobytes()
    assert wide[1].tobytes() == narrow.widened(expected).tobytes()
    assert not target[0].any() and not wide[0].any()


def test_factors_know_how_they_are_stored() -> None:
    for dtype in FactorDtype:
        array = np.zeros((1, 16), narrow.array_dtype(dtype))
        assert narrow.dtype_of(narrow.factors_of(array)) == dtype


# ---------------------------------------------------------------- the spec


def test_float16_must_hold_the_largest_factor() -> None:
    small, large = Limits(factor_max=65504.0), Limits(factor_max=65505.0)
    for dtype in FactorDtype:
        check(ModelSpec(factor_dtype=dtype, limits=small))
    check(ModelSpec(factor_dtype=FactorDtype.BFLOAT16, limits=large))
    with pytest.raises(SpecError, match=r"limits\.factor_max: expected at most 65504 with float16"):
        check(ModelSpec(factor_dtype=FactorDtype.FLOAT16, limits=large))
    with pytest.raises(SpecError, match="factor_dtype: expected a known dtype"):
        check(ModelSpec(factor_dtype=7))  # type: ignore[arg-type]
