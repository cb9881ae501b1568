"""Sixteen tree sums at once, for Numba.

Like `lanes.tree_sum`, each step adds the upper half of the remaining lanes of a sum to the lower
half. It also packs two vectors into one:

    pack8   a vector of two sums with eight lanes each, from two vectors of one sum
    pack4   a vector of four sums with four lanes each, from two results of pack8
    pack2   a vector of eight sums with two lanes each
    pack1   a vector of sixteen complete sums

The order of the sums is what 256-bit registers give without crossing their halves. Sums a b c d ..
leave pack1 as a c e g b d f h, in each half of the vector.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from livefactor_kernels.numbers.lanes import LANES, vec16

_MASK = ir.VectorType(ir.IntType(32), LANES)


def _joined_sums(lower: list[int], upper: list[int]) -> Any:
    """An intrinsic that adds two selections of the lanes of two Vec16.

    The lanes of the second Vec16 have numbers from 16 on.
    """

    @intrinsic
    def add_lanes(typingctx: Any, one: Any, other: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.fadd(
                *(builder.shuffle_vector(*args, ir.Constant(_MASK, mask)) for mask in (lower, upper))
            )

        return vec16(vec16, vec16), codegen

    return add_lanes


def _twice(mask: list[int]) -> list[int]:
    return mask + [lane + LANES for lane in mask]


pack8 = _joined_sums(_twice([*range(8)]), _twice([*range(8, 16)]))
pack4 = _joined_sums(_twice([0, 1, 2, 3, 8, 9, 10, 11]), _twice([4, 5, 6, 7, 12, 13, 14, 15]))
pack2 = _joined_sums(_twice([0, 1, 8, 9, 4, 5, 12, 13]), _twice([2, 3, 10, 11, 6, 7, 14, 15]))
pack1 = _joined_sums(_twice([0, 2, 8, 10, 4, 6, 12, 14]), _twice([1, 3, 9, 11, 5, 7, 13, 15]))
