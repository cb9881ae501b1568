"""Transposition of blocks of 16 x 16 float32 in memory, for Numba."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from livefactor_kernels.numbers.lanes import LANES, pointer_to

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_MASK = ir.VectorType(ir.IntType(32), LANES)


def _rows(builder: ir.IRBuilder, address: ir.Value, stride: ir.Value) -> list[ir.Value]:
    """The pointers to 16 rows of 16 float32."""
    offsets = [builder.mul(stride, ir.Constant(stride.type, row)) for row in range(LANES)]
    return [pointer_to(builder, address, offset, _VECTOR) for offset in offsets]


def _select(builder: ir.IRBuilder, one: ir.Value, other: ir.Value, lanes: list[int]) -> ir.Value:
    """Lanes of two vectors. Those of the second one have numbers from 16 on."""
    return builder.shuffle_vector(one, other, ir.Constant(_MASK, lanes))


def _transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The columns of 16 vectors. In each step pairs of rows exchange blocks of `size` lanes."""
    size = LANES // 2
    while size:
        done = list(rows)
        for row in range(LANES):
            if not row & size:
                pair = rows[row], rows[row + size]
                lower = [lane if not lane & size else LANES + lane - size for lane in range(LANES)]
                upper = [lane + size if not lane & size else LANES + lane for lane in range(LANES)]
                done[row] = _select(builder, *pair, lower)
                done[row + size] = _select(builder, *pair, upper)
        rows, size = done, size // 2
    return rows


@intrinsic
def transpose16(typingctx: Any, source: Any, target: Any, stride: Any) -> Any:
    """Writes the transposed block at address `source` to address `target` (alignment: 64).

    The rows of both blocks are `stride` bytes apart.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, target, stride = args
        rows = [builder.load(pointer, align=64) for pointer in _rows(builder, source, stride)]
        columns = _transposed(builder, rows)
        for column, pointer in zip(columns, _rows(builder, target, stride), strict=True):
            builder.store(column, pointer, align=64)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), codegen


@intrinsic
def mirror16(typingctx: Any, block: Any, stride: Any) -> Any:
    """Copies the lower triangle of the block at address `block` to its upper one (alignment: 64).

    The rows are `stride` bytes apart.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointers = _rows(builder, *args)
        rows = [builder.load(pointer, align=64) for pointer in pointers]
        columns = _transposed(builder, rows)
        for number, (row, column) in enumerate(zip(rows, columns, strict=True)):
            lanes = [lane if lane <= number else LANES + lane for lane in range(LANES)]
            builder.store(_select(builder, row, column, lanes), pointers[number], align=64)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen
