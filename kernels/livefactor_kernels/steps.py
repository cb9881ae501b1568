"""Row steps in compiled code, shared by the CPU's kernels: dot product, one block of 16 factors, one bias,
prefetch.

Rows are addresses (uint64). `blocks` (k_padded / 16) and `adagrad` are constants of the kernel that calls;
after inlining nothing of the other case is left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import scalar
from .lanes import VECTOR_BYTES, clamp, inlined, load1, load16, load_u32, prefetch, store1, store16, tree_sum
from .tables import Table

ONE = np.uint64(1)
ZERO = np.uint64(0)
WORD_BYTES = np.uint64(4)  # of a float32 and of a row number


class Rows(NamedTuple):
    """Addresses (uint64) of a table's arrays; the accumulators' are 0 without AdaGrad."""

    factors: np.uint64
    bias: np.uint64
    factor_g: np.uint64
    bias_g: np.uint64

    @staticmethod
    def of(table: Table) -> Rows:
        """Addresses of a table's arrays (which never move)."""
        arrays = (table.factors, table.bias, table.factor_g, table.bias_g)
        return Rows(*(np.uint64(0 if array is None else array.ctypes.data) for array in arrays))


@inlined
def row_bytes(blocks: Any) -> Any:
    """Bytes of a row of `blocks` vectors."""
    return blocks * VECTOR_BYTES


@inlined
def word(base: Any, index: Any) -> Any:
    """uint32 number `index` of an array at address `base`, as uint64."""
    return load_u32(base, index * WORD_BYTES)


@inlined
def real(base: Any, index: Any) -> Any:
    """float32 number `index` of an array at address `base`."""
    return load1(base, index * WORD_BYTES)


@inlined
def dot(x: Any, y: Any, blocks: Any) -> Any:
    """Dot product (float32) of the rows at x and y, in the order of the semantics."""
    lanes = load16(x) * load16(y)
    for c in range(ONE, blocks):
        lanes = lanes + load16(x, c * VECTOR_BYTES) * load16(y, c * VECTOR_BYTES)
    return tree_sum(lanes)


@inlined
def score(mean: Any, users: Any, items: Any, user: Any, item: Any, blocks: Any) -> Any:
    """Score (float32) of a user's row and an item's."""
    size = row_bytes(blocks)
    product = dot(users.factors + user * size, items.factors + item * size, blocks)
    return scalar.score(mean, real(users.bias, user), real(items.bias, item), product)


@inlined
def step_block(rows: Any, offset: Any, x: Any, g: Any, adagrad: Any, rates: Any) -> None:
    """Step 16 factors, `offset` bytes into the table, from their old value x by gradient g, and store
    them."""
    if adagrad:
        total = scalar.adagrad_sum(load16(rows.factor_g, offset), g)
        store16(
            rows.factors, scalar.adagrad_step(x, g, total, rates.rate, rates.eps, rates.factor_max), offset
        )
        store16(rows.factor_g, clamp(total, rates.g_max), offset)
    else:
        store16(rows.factors, scalar.sgd_step(x, g, rates.rate, rates.factor_max), offset)


@inlined
def step_bias(rows: Any, row: Any, x: Any, g: Any, adagrad: Any, rates: Any) -> None:
    """Step a row's bias from its old value x by gradient g, and store it."""
    offset = row * WORD_BYTES
    if adagrad:
        total = scalar.adagrad_sum(load1(rows.bias_g, offset), g)
        store1(
            rows.bias, scalar.adagrad_step(x, g, total, rates.bias_rate, rates.eps, rates.factor_max), offset
        )
        store1(rows.bias_g, clamp(total, rates.g_max), offset)
    else:
        store1(rows.bias, scalar.sgd_step(x, g, rates.bias_rate, rates.factor_max), offset)


@inlined
def prefetch_row(rows: Any, row: Any, blocks: Any, adagrad: Any) -> None:
    """Ask for all cache lines of a row: factors, bias, accumulators."""
    offset = row * row_bytes(blocks)
    for c in range(blocks):
        prefetch(rows.factors, offset + c * VECTOR_BYTES)
    prefetch(rows.bias, row * WORD_BYTES)
    if adagrad:
        for c in range(blocks):
            prefetch(rows.factor_g, offset + c * VECTOR_BYTES)
        prefetch(rows.bias_g, row * WORD_BYTES)
