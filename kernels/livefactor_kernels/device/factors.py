"""Loads and stores single factors in GPU memory: float32, float16 and bfloat16 (as uint16).

Narrow factors are widened and rounded by the formulas of `numbers/narrow.py`. The element type of
the array selects the storage type, so that each type has its own kernel. A float16 is widened by
the GPU's instruction for it, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from livefactor_kernels.device.warp import float16_of
from livefactor_kernels.numbers.narrow import round_bfloat16, round_float16, widen_bfloat16
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import column_word


@inlined
def _load_real(factors: Any, at: Any) -> Any:
    return np.float32(factors[at])


@inlined
def _load_bfloat16(factors: Any, at: Any) -> Any:
    return widen_bfloat16(np.uint64(factors[at]))


@inlined
def _store_float32(factors: Any, at: Any, value: Any, word: Any, column: Any) -> None:
    factors[at] = value


@inlined
def _store_float16(factors: Any, at: Any, value: Any, word: Any, column: Any) -> None:
    noise = column_word(np.uint64(word), np.uint64(column))
    factors[at] = float16_of(round_float16(value, noise))


@inlined
def _store_bfloat16(factors: Any, at: Any, value: Any, word: Any, column: Any) -> None:
    noise = column_word(np.uint64(word), np.uint64(column))
    factors[at] = np.uint16(round_bfloat16(value, noise))


_LOADS: dict[str, Callable[..., Any]] = {
    "float32": _load_real,
    "float16": _load_real,
    "uint16": _load_bfloat16,
}
_STORES: dict[str, Callable[..., None]] = {
    "float32": _store_float32,
    "float16": _store_float16,
    "uint16": _store_bfloat16,
}


def load_factor(factors: Any, at: Any) -> Any:
    """The float32 value of element `at`."""
    return _LOADS[factors.dtype.name](factors, at)


@overload(load_factor, jit_options={"forceinline": True})
def _load_factor(factors: Any, at: Any) -> Any:
    load = _LOADS[factors.dtype.name]

    def implementation(factors: Any, at: Any) -> Any:
        return load(factors, at)

    return implementation


def store_factor(factors: Any, at: Any, value: Any, word: Any, column: Any) -> None:
    """Stores a float32 as element `at`, which is in the `column` of a row.

    `word` is the random word of the row's step, for narrow arrays (`random.rounding_word`).
    """
    _STORES[factors.dtype.name](factors, at, value, word, column)


@overload(store_factor, jit_options={"forceinline": True})
def _store_factor(factors: Any, at: Any, value: Any, word: Any, column: Any) -> Any:
    store = _STORES[factors.dtype.name]

    def implementation(factors: Any, at: Any, value: Any, word: Any, column: Any) -> None:
        store(factors, at, value, word, column)

    return implementation


class DeviceRows(NamedTuple):
    """The arrays of one side on the device, flat.

    Factors are [cap * k_padded] in the stored type (`device/factors.py`), biases are float32[cap],
    and AdaGrad's state is float32 of the same sizes. Without AdaGrad, its two arrays have one
    unused element.
    """

    factors: Any
    bias: Any
    factor_g: Any
    bias_g: Any


class StateRows(NamedTuple):
    """The arrays of one side with the state of any optimiser.

    The order of the state is that of `optimizers.state_slots`. `seen` is the number of events so
    far, uint32[cap].
    """

    factors: Any
    bias: Any
    factor_g: Any
    bias_g: Any
    factor_h: Any
    bias_h: Any
    row_state: Any
    seen: Any
