"""Sixteen tree sums at once, for Numba: each step adds the upper half of the lanes that a sum still has to the lower, as
`lanes.tree_sum`, and packs two vectors into one.

    pack8   of one sum a vector two, of eight lanes each
    pack4   of two four         pack2   of four eight         pack1   of eight sixteen, whole

How they pack is what 256-bit registers do without crossing their halves: of sums a b c d .. pack1 leaves, eight a half,
a c e g b d f h.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from livefactor_kernels.numbers.lanes import LANES, vec16

_MASK = ir.VectorType(ir.IntType(32), LANES)


def _joined_sums(lower: list[int], upper: list[int]) -> Any:
    """Intrinsic that adds two selections of the lanes of two Vec16 (the second's are numbered from 16)."""

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
