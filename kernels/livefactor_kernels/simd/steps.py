"""The rows of a table in CPU kernels: addresses, dot product, score, random word, prefetch.

Arrays are addresses (uint64). A place in the factors is a number of bytes, counted as if they were
float32, also if they are narrow (`narrow.load_factors`). `blocks` (k_padded / 16) and `adagrad` are
constants of the calling kernel, and the type of the factors is part of the type of `Factors`. So
the code of other cases is gone after inlining.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, load1, load_u32, prefetch, tree_sum
from livefactor_kernels.numbers.narrow import (
    Factors,
    dtype_of,
    factors_of,
    load_factors,
    prefetch_factors,
)
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import rounding_word
from livefactor_kernels.spec.model import FactorDtype, ModelSpec

ONE = np.uint64(1)
ZERO = np.uint64(0)
WORD_BYTES = np.uint64(4)
"""Size of a float32 and of a row number."""
FLOAT32 = int(FactorDtype.FLOAT32)


class RowArrays(Protocol):
    """The arrays of a table (`tables.cpu.Table`) that kernels use, by row.

    `state` and `history` have them by the name of the section.
    """

    spec: ModelSpec
    side: int
    factors: np.ndarray
    bias: np.ndarray
    state: dict[str, np.ndarray]
    history: dict[str, np.ndarray]


class Rows(NamedTuple):
    """The addresses of a table's arrays for steps with SGD or AdaGrad.

    Attributes:
        factors, bias: the factors, and the biases float32[cap].
        factor_g, bias_g: the accumulators of AdaGrad; 0 without AdaGrad.
        side: `USERS` or `ITEMS`.
    """

    factors: Factors
    bias: np.uint64
    factor_g: np.uint64
    bias_g: np.uint64
    side: np.uint64

    @staticmethod
    def of(table: RowArrays) -> Rows:
        """The addresses of a table's arrays, which never move."""
        bias, factor_g, bias_g = (
            np.uint64(0 if array is None else array.ctypes.data)
            for array in (table.bias, table.state.get("factor_g"), table.state.get("bias_g"))
        )
        return Rows(factors_of(table.factors), bias, factor_g, bias_g, np.uint64(table.side))


class Rounding(NamedTuple):
    """The numbers that determine the random bits of a step, together with its row.

    Attributes:
        key: the key of `ROUNDING_DOMAIN`.
        revision: revision of the record.
        step: number of the micro-batch in its record.
    """

    key: Any
    revision: Any
    step: Any


@inlined
def row_bytes(blocks: Any) -> Any:
    """Bytes of a row of `blocks` vectors."""
    return blocks * VECTOR_BYTES


@inlined
def word(base: Any, index: Any) -> Any:
    """uint32 number `index` of the array at address `base`, as uint64."""
    return load_u32(base, index * WORD_BYTES)


@inlined
def real(base: Any, index: Any) -> Any:
    """float32 number `index` of the array at address `base`."""
    return load1(base, index * WORD_BYTES)


@inlined
def dot(x: Any, x_offset: Any, y: Any, y_offset: Any, blocks: Any) -> Any:
    """Dot product (float32) of two rows, in the order of the semantics.

    `x` and `y` are factors, and the offsets are the places of the rows in them.
    """
    lanes = load_factors(x, x_offset) * load_factors(y, y_offset)
    for c in range(ONE, blocks):
        at = c * VECTOR_BYTES
        lanes = lanes + load_factors(x, x_offset + at) * load_factors(y, y_offset + at)
    return tree_sum(lanes)


@inlined
def score(mean: Any, users: Any, items: Any, user: Any, item: Any, blocks: Any) -> Any:
    """Score (float32) of a user's row and an item's row."""
    size = row_bytes(blocks)
    product = dot(users.factors, user * size, items.factors, item * size, blocks)
    return scalar.score(mean, real(users.bias, user), real(items.bias, item), product)


@inlined
def row_word(rows: Any, row: Any, rounding: Any) -> Any:
    """The random word of a row's step. It is 0 for float32 factors, which are not rounded."""
    if dtype_of(rows.factors) == FLOAT32:
        return ZERO
    return rounding_word(rounding.key, rounding.revision, rounding.step, rows.side, row)


@inlined
def prefetch_row(rows: Any, row: Any, blocks: Any, adagrad: Any) -> None:
    """Prefetches all cache lines of a row: factors, bias, accumulators."""
    offset = row * row_bytes(blocks)
    prefetch_factors(rows.factors, offset, blocks)
    prefetch(rows.bias, row * WORD_BYTES)
    if adagrad:
        for c in range(blocks):
            prefetch(rows.factor_g, offset + c * VECTOR_BYTES)
        prefetch(rows.bias_g, row * WORD_BYTES)
