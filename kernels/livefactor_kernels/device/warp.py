"""Building blocks of GPU kernels. No other file imports numba.cuda.

A half-warp of 16 lanes works on a row. Lane l holds the factors j = l (mod 16). The functions below
have a second version for Numba's simulator, which has neither shuffles nor warps. In the simulator
a block is one half-warp, and its lanes exchange values through shared memory and `syncthreads`.

Arithmetic on two float32 is lowered to libdevice's `_rn` functions, which become `add.rn.f32`,
`mul.rn.f32` and so on. NVVM and ptxas must then not contract a product and a sum into one rounding.
Division and square root of Numba are IEEE, and subnormals are kept. The formulas of
`numbers/scalar.py` therefore give the bits of the reference without changes. `add64` and `mul64` do
the same for float64. This holds for every CUDA kernel that Numba compiles in the process.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from livefactor_kernels.numbers.lanes import LANES
from livefactor_kernels.numbers.parts import inlined

# numba-cuda 0.30 uses `row_stack`, which NumPy 2.5 removed: numba-cuda issue #907.
if not hasattr(np, "row_stack"):
    np.row_stack = np.vstack

from numba import cuda

__all__ = [
    "BLOCK_THREADS",
    "SIMULATED",
    "add64",
    "cuda",
    "float16_of",
    "half_of",
    "half_sum",
    "kernel",
    "lane",
    "mul64",
]

# numba-cuda-mlir has no simulator.
SIMULATED = bool(getattr(cuda.config, "ENABLE_CUDASIM", False))
"""Whether kernels run in Numba's simulator: on NumPy arrays, as Python threads."""
BLOCK_THREADS = LANES if SIMULATED else 128
"""Threads per block. The simulator's versions need a block of one half-warp."""

_LANE_MASK = LANES - 1


def kernel(function: Callable[..., None]) -> Any:
    """Decorates a kernel.

    It is compiled for the argument types of its first launch, and again for other types.
    """
    return cuda.jit(function)


if SIMULATED:

    def lane() -> int:
        """This thread's lane in its half-warp, 0..15."""
        return int(_thread().threadIdx.x)

    def half_sum(value: Any) -> Any:
        """A half-warp's float32 sum, in all lanes: lane l += lane l+8, then l+4, l+2, l+1."""
        lanes = _meet(value)
        while lanes.size > 1:
            half = lanes.size // 2
            lanes = lanes[:half] + lanes[half:]
        return lanes[0]

    def half_of(value: Any, source: int) -> Any:
        """The float32 of lane `source`, in all lanes of a half-warp."""
        return _meet(value)[source]

    def float16_of(word: Any) -> Any:
        """The float16 with the low 16 bits of a uint64."""
        return np.uint16(word).view(np.float16)

    def add64(a: Any, b: Any) -> Any:
        """The sum of two float64 with its own rounding."""
        return a + b

    def mul64(a: Any, b: Any) -> Any:
        """The product of two float64 with its own rounding."""
        return a * b

    def _meet(value: Any) -> np.ndarray:
        """Waits for all lanes and returns their values.

        Two buffers are used in turn. A lane at the second meeting knows that all lanes have left
        the one before the first.
        """
        thread = _thread()
        turn = thread.turn = 1 - getattr(thread, "turn", 0)
        lanes: np.ndarray = vars(thread._manager).setdefault("lanes", np.zeros((2, LANES), np.float32))[turn]
        lanes[thread.threadIdx.x] = value
        thread.syncthreads()
        return lanes

    def _thread() -> Any:
        """The present thread of the simulator. It has its position, and its block as `_manager`."""
        return threading.current_thread()

else:
    from llvmlite import ir
    from numba import types
    from numba.core.cgutils import get_or_insert_function
    from numba.cuda import libdevice
    from numba.cuda.extending import intrinsic, lower_builtin

    _FLOAT = ir.FloatType()

    def _lower_exactly(op: Callable[[Any, Any], Any], name: str) -> None:
        @lower_builtin(op, types.float32, types.float32)
        def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(_FLOAT, [_FLOAT, _FLOAT])
            return builder.call(get_or_insert_function(builder.module, kind, name), args)

    for _op, _name in (
        (operator.add, "__nv_fadd_rn"),
        (operator.sub, "__nv_fsub_rn"),
        (operator.mul, "__nv_fmul_rn"),
        (operator.truediv, "__nv_fdiv_rn"),
    ):
        _lower_exactly(_op, _name)

    @intrinsic
    def float16_of(typingctx: Any, word: Any) -> Any:
        """The float16 with the low 16 bits of a uint64. Numba represents it by these bits."""

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.trunc(args[0], context.get_value_type(types.float16))

        return types.float16(types.uint64), codegen

    @inlined
    def add64(a: Any, b: Any) -> Any:  # type: ignore[misc]
        """The sum of two float64 with its own rounding."""
        return libdevice.dadd_rn(a, b)

    @inlined
    def mul64(a: Any, b: Any) -> Any:  # type: ignore[misc]
        """The product of two float64 with its own rounding."""
        return libdevice.dmul_rn(a, b)

    @inlined
    def lane() -> Any:  # type: ignore[misc]
        """This thread's lane in its half-warp, 0..15."""
        return cuda.threadIdx.x & _LANE_MASK

    @inlined
    def half_of(value: Any, source: Any) -> Any:  # type: ignore[misc]
        """The float32 of lane `source`, in all lanes of a half-warp."""
        own_half = cuda.threadIdx.x & LANES
        return cuda.shfl_sync(0xFFFF << own_half, value, own_half | source)

    @inlined
    def half_sum(value: Any) -> Any:  # type: ignore[misc]
        """The float32 sum of a half-warp's lanes, in all: lane l += lane l+8, then l+4, l+2, l+1.

        A sum of two is the same in either order, so both lanes of a pair may add the other's value.
        """
        mask = 0xFFFF << (cuda.threadIdx.x & LANES)
        value = value + cuda.shfl_xor_sync(mask, value, 8)
        value = value + cuda.shfl_xor_sync(mask, value, 4)
        value = value + cuda.shfl_xor_sync(mask, value, 2)
        return value + cuda.shfl_xor_sync(mask, value, 1)
