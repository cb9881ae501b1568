"""16-bit factors: their arrays, exact widening to float32, and stochastic rounding.

Arithmetic is float32 for every storage type. A factor is widened when it is read. The float32
result of a step is rounded up or down to one of its two narrow neighbours, with probabilities in
proportion to the distances. The random bits are a function of the place and the time
(`random.rounding_word`, `random.column_word`). Representable numbers stay unchanged. Rounding to
nearest, which loses small steps, never occurs (Gupta, Agrawal, Gopalakrishnan, Narayanan, ICML
2015).

    bfloat16   the upper half of a float32: 16 random bits are added below it, the rest is cut off
    float16    from 2**-14 on the same with 13 random bits; below, the neighbours are multiples of
               2**-24, and 20 random bits decide (the number's part below 2**-44 is cut off)

The formulas are plain arithmetic on words (uint64 that hold 32 bits) and float32. They run on NumPy
arrays, and compile for scalars (CPU and CUDA) and for sixteen lanes. NumPy has no bfloat16, so its
arrays are uint16.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import (
    HAS_HALVES,
    VECTOR_BYTES,
    bits_of,
    choose,
    clamp,
    lane_numbers,
    load16,
    load_halves,
    load_shorts,
    prefetch,
    real_of,
    store16,
    store_shorts,
    whole,
)
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import column_word, initial_factor, philox, rounding_word
from livefactor_kernels.spec.model import FactorDtype

_U, _F = np.uint64, np.float32
_FLOAT32, _FLOAT16 = int(FactorDtype.FLOAT32), int(FactorDtype.FLOAT16)
_ZERO, _ONE, _TWO, _FOUR = _U(0), _U(1), _U(2), _U(4)
_12, _13, _16, _19, _20, _32 = _U(12), _U(13), _U(16), _U(19), _U(20), _U(32)
_MAGNITUDE, _SIGN16, _MAGNITUDE16, _MASK16 = _U(0x7FFFFFFF), _U(0x8000), _U(0x7FFF), _U(0xFFFF)
_MASK = _U(0xFFFFFFFF)
# The bits of 2**-14, the smallest normal float16.
_NORMAL16 = _U(0x38800000)
# -(127 - 15) * 2**10 modulo 2**16.
_REBIAS = _U(0x4000)
_SMALL, _TO_SMALL, _REBIASED = _F(2.0**-14), _F(2.0**44), _F(2.0**112)


# ---------------------------------------------------------------- the formulas


@inlined
def round_bfloat16(x: Any, noise: Any) -> Any:
    """Rounds a float32 to bfloat16 bits (a word), up or down by the upper 16 bits of `noise`.

    x must be finite and below the largest bfloat16.
    """
    return (bits_of(x) + (noise >> _16)) >> _16


@inlined
def round_float16(x: Any, noise: Any) -> Any:
    """Rounds a float32 to float16 bits (a word) by the upper bits of `noise`; |x| <= 65504."""
    bits = bits_of(x)
    magnitude = bits & _MAGNITUDE
    normal = (((magnitude + (noise >> _19)) >> _13) + _REBIAS) & _MASK16
    small = (whole(clamp(real_of(magnitude), _SMALL) * _TO_SMALL) + (noise >> _12)) >> _20
    return ((bits >> _16) & _SIGN16) | choose(magnitude, _NORMAL16, small, normal)


@inlined
def widen_bfloat16(word: Any) -> Any:
    """The exact float32 of bfloat16 bits."""
    return real_of(word << _16)


@inlined
def widen_float16(word: Any) -> Any:
    """The exact float32 of finite float16 bits. The shifted bits are its value times 2**-112."""
    magnitude = bits_of(real_of((word & _MAGNITUDE16) << _13) * _REBIASED)
    return real_of(magnitude | ((word & _SIGN16) << _16))


# ---------------------------------------------------------------- arrays


def array_dtype(dtype: FactorDtype) -> np.dtype:
    """The NumPy dtype of a table's factors."""
    kinds = {
        FactorDtype.FLOAT32: np.float32,
        FactorDtype.FLOAT16: np.float16,
        FactorDtype.BFLOAT16: np.uint16,
    }
    return np.dtype(kinds[dtype])


def widened(factors: np.ndarray) -> np.ndarray:
    """The exact float32 of stored factors. A float32 array is returned unchanged."""
    if factors.dtype == np.uint16:
        return (factors.astype(np.uint32) << 16).view(np.float32)
    return factors.astype(np.float32, copy=False)


def rounded(dtype: FactorDtype, values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Rounds float32[n] with random words `noise`, uint64[n], if `dtype` is narrow."""
    if dtype == FactorDtype.FLOAT32:
        return values
    formula = round_float16 if dtype == FactorDtype.FLOAT16 else round_bfloat16
    return formula(values, noise).astype(np.uint16).view(array_dtype(dtype))  # type: ignore[no-any-return]


@compiled
def init_narrow_rows(
    keys: Any, factors: Any, dtype: Any, k: Any, scale: Any, key: Any, rounding_key: Any, table: Any
) -> None:
    """Writes initial rows like `random.init_rows`, rounded to the narrow `dtype`.

    `factors` are bits, uint16[n, kp].
    """
    for i in range(_U(keys.size)):
        low, high = keys[i] & _MASK, keys[i] >> _32
        word = rounding_word(rounding_key, keys[i], _ZERO, table, _ZERO)
        for j in range(_ZERO, k, _FOUR):
            words = philox(low, high, j // _FOUR, table, key)
            for lane in range(min(_FOUR, k - j)):
                column = j + _U(lane)
                x, noise = initial_factor(words[lane], scale), column_word(word, column)
                bits = round_float16(x, noise) if dtype == _FLOAT16 else round_bfloat16(x, noise)
                factors[i, column] = np.uint16(bits)


# ---------------------------------------------------------------- rows in kernels


class Float32Factors(NamedTuple):
    """The factors of a table for kernels.

    The type tells how they are stored, so that each type has its own kernel.
    """

    address: np.uint64


class Float16Factors(NamedTuple):
    """The factors of a table with float16 (see `Float32Factors`)."""

    address: np.uint64


class Bfloat16Factors(NamedTuple):
    """The factors of a table with bfloat16 (see `Float32Factors`)."""

    address: np.uint64


Factors = Float32Factors | Float16Factors | Bfloat16Factors
_KINDS: dict[str, type[Float32Factors] | type[Float16Factors] | type[Bfloat16Factors]] = {
    "float32": Float32Factors,
    "float16": Float16Factors,
    # `as_argument` passes float16 as int16.
    "int16": Float16Factors,
    "uint16": Bfloat16Factors,
}
_DTYPES = {
    Float32Factors: FactorDtype.FLOAT32,
    Float16Factors: FactorDtype.FLOAT16,
    Bfloat16Factors: FactorDtype.BFLOAT16,
}


def factors_of(array: np.ndarray) -> Factors:
    """An array of factors in the form for kernels. It must outlive the result.

    Its rows are padded and start at multiples of 64 bytes.
    """
    return _KINDS[array.dtype.name](_U(array.ctypes.data))


@overload(factors_of, jit_options={"forceinline": True})
def _factors_of(array: Any) -> Any:
    kind = _KINDS[array.dtype.name]

    def compiled(array: Any) -> Any:
        return kind(_U(array.ctypes.data))

    return compiled


def as_argument(factors: np.ndarray) -> np.ndarray:
    """An array of factors in the form that compiled code can call `factors_of` with.

    Numba has no float16 arrays, so they are passed as int16.
    """
    return factors.view(np.int16) if factors.dtype == np.float16 else factors


def dtype_of(factors: Any) -> int:
    """The `FactorDtype` of factors as a number. In compiled code it is a constant."""
    return int(_DTYPES[type(factors)])


@overload(dtype_of, jit_options={"forceinline": True})
def _dtype_of(factors: Any) -> Any:
    dtype = int(_DTYPES[factors.instance_class])

    def constant(factors: Any) -> Any:
        return dtype

    return constant


@inlined
def _load_float16(address: Any, offset: Any) -> Any:
    return widen_float16(load_shorts(address, offset))


@inlined
def _load_float16_quickly(address: Any, offset: Any) -> Any:
    return load_halves(address, offset)


load_float16 = _load_float16_quickly if HAS_HALVES else _load_float16
"""Loads sixteen float16 at an address and an offset as Vec16, in the CPU's fastest way."""


@inlined
def load_factors(factors: Any, offset: Any) -> Any:
    """Loads sixteen factors as Vec16.

    `offset` is in bytes of float32 factors from the first one, a multiple of 64.
    """
    if dtype_of(factors) == _FLOAT32:
        return load16(factors.address, offset)
    if dtype_of(factors) == _FLOAT16:
        return load_float16(factors.address, offset >> _ONE)
    return widen_bfloat16(load_shorts(factors.address, offset >> _ONE))


@inlined
def store_factors(factors: Any, offset: Any, value: Any, column: Any, word: Any) -> None:
    """Stores a Vec16 as sixteen factors that start at the row's `column`.

    `offset` is that of `load_factors`. `word` is the random word of the row's step
    (`random.rounding_word`).
    """
    if dtype_of(factors) == _FLOAT32:
        store16(factors.address, value, offset)
        return
    noise = column_word(word, lane_numbers() + column)
    bits = round_float16(value, noise) if dtype_of(factors) == _FLOAT16 else round_bfloat16(value, noise)
    store_shorts(factors.address, bits, offset >> _ONE)


@inlined
def prefetch_factors(factors: Any, offset: Any, blocks: Any) -> None:
    """Prefetches `blocks` times sixteen factors. `offset` is that of `load_factors`."""
    if dtype_of(factors) == _FLOAT32:
        for c in range(blocks):
            prefetch(factors.address, offset + c * VECTOR_BYTES)
        return
    # A cache line holds two blocks, wherever in it the row starts.
    for c in range(_ZERO, blocks, _TWO):
        prefetch(factors.address, (offset + c * VECTOR_BYTES) >> _ONE)
