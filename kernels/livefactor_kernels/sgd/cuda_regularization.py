"""Frequency-scaled L2 and factor dropout on the GPU (semantics: `sgd/__init__.py`).

Kernels of plain methods (`optimizers.Method.is_plain`) get rows and rates without the fields for
them. In these kernels the functions compile to plain code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from livefactor_kernels.device.warp import half_sum, lane
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import column_word
from livefactor_kernels.spec.model import LANES

_F0 = np.float32(0.0)


@inlined
def _same_l2(rows: Any, row: Any, l2: Any, method: Any) -> Any:
    return l2


@inlined
def _scaled_l2(rows: Any, row: Any, l2: Any, method: Any) -> Any:
    return scalar.frequent_l2(l2, rows.seen[row], method.frequency) if method.frequency else l2


def l2_of(rows: Any, row: Any, l2: Any, method: Any) -> Any:
    """The weight (float32) of L2 for an occurrence of a row."""
    return _scaled_l2(rows, row, l2, method)


@overload(l2_of, jit_options={"forceinline": True})
def _l2_of(rows: Any, row: Any, l2: Any, method: Any) -> Any:
    return _scaled_l2 if "seen" in rows.fields else _same_l2


@inlined
def _load_nothing(word: Any, out: Any, blocks: Any, rates: Any) -> None:
    pass


@inlined
def _load_columns(word: Any, out: Any, blocks: Any, rates: Any) -> None:
    for c in range(blocks):
        bits = column_word(np.uint64(word), np.uint64(c * LANES + lane()))
        out[c] = rates.keep_scale if bits < rates.keep_below else _F0


def load_keep_scales(word: Any, out: Any, blocks: Any, rates: Any) -> None:
    """Loads the factors of dropout on this lane's columns: 1 / (1 - p), or 0 in dropped columns.

    `word` is the random word of the event.
    """
    _load_columns(word, out, blocks, rates)


@overload(load_keep_scales, jit_options={"forceinline": True})
def _load_keep_scales(word: Any, out: Any, blocks: Any, rates: Any) -> Any:
    return _load_columns if "keep_scale" in rates.fields else _load_nothing


@inlined
def drop(value: Any, keep_scales: Any, c: Any, method: Any) -> Any:
    """A factor of column c * 16 + lane after dropout."""
    return value * keep_scales[c] if method.drops else value


@inlined
def dropped_dot(x: Any, y: Any, keep_scales: Any, blocks: Any, method: Any) -> Any:
    """Dot product (float32, in all lanes) of a user's row and an item's row after dropout."""
    total = x[0] * drop(y[0], keep_scales, 0, method)
    for c in range(1, blocks):
        total = total + x[c] * drop(y[c], keep_scales, c, method)
    return half_sum(total)
