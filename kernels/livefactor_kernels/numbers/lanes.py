"""Sixteen lanes for Numba: the types `Vec16` and `Words16`, with operators, loads and stores.

The types are LLVM's `<16 x float>` and `<16 x i32>`. The formulas of `scalar.py` are written once
in plain arithmetic. With these types they compile for one float32 and for sixteen. Every operation
is IEEE float32 and rounded separately. Nothing is flagged fast-math or contractible, so that
machines with 512-bit, 256-bit and 128-bit registers give the same bits. Loads and stores take a
uint64 address and an optional offset in bytes; their docstrings give the alignment of the sum.
NumPy slices would cost more than the arithmetic.

A `Words16` holds sixteen 32-bit words where scalar code holds one word in a uint64 (`random.py`).
It wraps at 32 bits, so masks that limit a uint64 to 32 bits cost nothing. The functions `clamp`,
`root`, `bits_of`, `real_of`, `whole` and `choose` extend plain arithmetic; they accept NumPy
values, too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types
from numba.core.cgutils import get_or_insert_function
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import (
    intrinsic,
    lower_builtin,
    overload,
    register_model,
    type_callable,
)

LANES = 16
VECTOR_BYTES = np.uint64(4 * LANES)
HAS_HALVES = not (config.CPU_NAME or config.CPU_FEATURES) and bool(
    binding.get_host_cpu_features().get("f16c")
)
"""Whether compiled code may widen float16 with an instruction of this CPU (F16C)."""


_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INT32 = ir.IntType(32)
_WORDS = ir.VectorType(_INT32, LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)


class Vec16Type(types.Type):  # type: ignore[misc]
    """Numba type of sixteen float32 lanes. Python can neither pass nor receive it."""

    def __init__(self) -> None:
        super().__init__(name="Vec16")


vec16 = Vec16Type()


class Words16Type(types.Type):  # type: ignore[misc]
    """Numba type of sixteen 32-bit words. It has the same limits as `Vec16Type`."""

    def __init__(self) -> None:
        super().__init__(name="Words16")


words16 = Words16Type()


def _offset(offset: Any) -> Any:
    """The type of the optional offset argument of a load or a store."""
    return types.Omitted(None) if offset is None or isinstance(offset, types.Omitted) else types.uint64


@register_model(Vec16Type)
class _Vec16Model(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


@register_model(Words16Type)
class _Words16Model(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _WORDS)


def pointer_to(
    builder: ir.IRBuilder, address: ir.Value, offset: ir.Value | None, pointee: ir.Type
) -> ir.Value:
    """The pointer for an access to an integer address, or to `offset` bytes after it.

    The offset must be a separate operand (LLVM's getelementptr). Numba optimises a function again
    after code generation has rewritten its addresses. By then, a sum `base + offset` may have
    become "offset as pointer, plus base". With a constant offset 0, LLVM would treat the access as
    one to null, as unreachable, and store wrong values.
    """
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    if offset is not None:
        pointer = builder.gep(pointer, [offset], source_etype=ir.IntType(8))
    return builder.bitcast(pointer, pointee.as_pointer())


def _pointer(builder: ir.IRBuilder, sig: Any, args: Any, pointee: ir.Type) -> ir.Value:
    """The pointer for an intrinsic's first argument and its last one, an optional offset."""
    offset = None if isinstance(sig.args[-1], types.Omitted) else args[-1]
    return pointer_to(builder, args[0], offset, pointee)


def _splat(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    nothing = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    seed = builder.insert_element(nothing, value, _INT32(0))
    return builder.shuffle_vector(seed, nothing, ir.Constant(_WORDS, [0] * LANES))


def _lanes_of(builder: ir.IRBuilder, value: ir.Value, kind: Any) -> ir.Value:
    """A vector unchanged, a float32 in all lanes, or the low 32 bits of a uint64 in all lanes."""
    if kind in (vec16, words16):
        return value
    return _splat(builder, builder.trunc(value, _INT32) if kind == types.uint64 else value)


def _register_operator(op: Callable[[Any, Any], Any], emit: str, vector: Any, scalar: Any) -> None:
    """Types and lowers `op` for two vectors, and for a vector and a scalar in all lanes."""

    @type_callable(op)
    def _type(context: Any) -> Callable[[Any, Any], Any]:
        def typer(a: Any, b: Any) -> Any:
            pair = (a, b)
            if vector in pair and all(t in (vector, scalar) for t in pair):
                return vector
            return None

        return typer

    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (_lanes_of(builder, v, t) for v, t in zip(args, sig.args, strict=True))
        return getattr(builder, emit)(a, b)

    for a, b in ((vector, vector), (vector, scalar), (scalar, vector)):
        lower_builtin(op, a, b)(_lower)


for _op, _emit in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_operator(_op, _emit, vec16, types.float32)
for _op, _emit in (
    (operator.add, "add"),
    (operator.mul, "mul"),
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.xor, "xor"),
    (operator.lshift, "shl"),
    (operator.rshift, "lshr"),
):
    _register_operator(_op, _emit, words16, types.uint64)


@type_callable(operator.neg)
def _type_neg(context: Any) -> Callable[[Any], Any]:
    return lambda a: vec16 if a == vec16 else None


@lower_builtin(operator.neg, vec16)
def _lower_neg(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


@intrinsic
def load16(typingctx: Any, address: Any, offset: Any = None) -> Any:
    """Loads a Vec16 (alignment: 64)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, sig, args, _VECTOR), align=64)

    return vec16(types.uint64, _offset(offset)), codegen


@intrinsic
def store16(typingctx: Any, address: Any, value: Any, offset: Any = None) -> Any:
    """Stores a Vec16 (alignment: 64)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, sig, args, _VECTOR), align=64)
        return context.get_dummy_value()

    return types.void(types.uint64, vec16, _offset(offset)), codegen


@intrinsic
def load_shorts(typingctx: Any, address: Any, offset: Any = None) -> Any:
    """Loads sixteen 16-bit numbers as Words16 (alignment: 32)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        shorts = builder.load(_pointer(builder, sig, args, _SHORTS), align=32)
        return builder.zext(shorts, _WORDS)

    return words16(types.uint64, _offset(offset)), codegen


@intrinsic
def load_halves(typingctx: Any, address: Any, offset: Any = None) -> Any:
    """Loads sixteen float16 as Vec16 (alignment: 32). It needs `HAS_HALVES`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = builder.load(_pointer(builder, sig, args, _HALVES), align=32)
        return builder.fpext(halves, _VECTOR)

    return vec16(types.uint64, _offset(offset)), codegen


@intrinsic
def store_shorts(typingctx: Any, address: Any, value: Any, offset: Any = None) -> Any:
    """Stores the low 16 bits of the words of a Words16 (alignment: 32)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        shorts = builder.trunc(args[1], _SHORTS)
        builder.store(shorts, _pointer(builder, sig, args, _SHORTS), align=32)
        return context.get_dummy_value()

    return types.void(types.uint64, words16, _offset(offset)), codegen


@intrinsic
def lane_numbers(typingctx: Any) -> Any:
    """The Words16 with the numbers 0..15."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(_WORDS, list(range(LANES)))

    return words16(), codegen


@intrinsic
def load1(typingctx: Any, address: Any, offset: Any = None) -> Any:
    """Loads a float32 (alignment: 4)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, sig, args, _FLOAT), align=4)

    return types.float32(types.uint64, _offset(offset)), codegen


@intrinsic
def store1(typingctx: Any, address: Any, value: Any, offset: Any = None) -> Any:
    """Stores a float32 (alignment: 4)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, sig, args, _FLOAT), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32, _offset(offset)), codegen


@intrinsic
def load_u32(typingctx: Any, address: Any, offset: Any = None) -> Any:
    """Loads a uint32 as uint64 (alignment: 4)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.load(_pointer(builder, sig, args, _INT32), align=4), ir.IntType(64))

    return types.uint64(types.uint64, _offset(offset)), codegen


@intrinsic
def store_u32(typingctx: Any, address: Any, value: Any, offset: Any = None) -> Any:
    """Stores the low 32 bits of the uint64 `value` (alignment: 4)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], _INT32), _pointer(builder, sig, args, _INT32), align=4)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, _offset(offset)), codegen


@intrinsic
def broadcast(typingctx: Any, value: Any) -> Any:
    """The Vec16 with the float32 `value` in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return vec16(types.float32), codegen


@intrinsic
def tree_sum(typingctx: Any, value: Any) -> Any:
    """The float32 sum of a Vec16: lane l += lane l+8, then l+4, l+2, l+1."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = []
            for start in (0, width):
                mask = ir.Constant(ir.VectorType(_INT32, width), list(range(start, start + width)))
                halves.append(builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask))
            vector = builder.fadd(*halves)
        return builder.extract_element(vector, _INT32(0))

    return types.float32(vec16), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any, offset: Any = None) -> Any:
    """Prefetches a cache line. An unmapped one is ignored."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(builder, sig, args, ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT32, _INT32, _INT32])
        function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # The arguments mean: read, keep in all caches, data.
        builder.call(function, [pointer, _INT32(0), _INT32(3), _INT32(1)])
        return context.get_dummy_value()

    return types.void(types.uint64, _offset(offset)), codegen


@intrinsic
def _root16(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        return builder.call(get_or_insert_function(builder.module, kind, "llvm.sqrt.v16f32"), args)

    return vec16(vec16), codegen


@intrinsic
def _clamp16(typingctx: Any, value: Any, limit: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, high = args[0], _splat(builder, args[1])
        low = _splat(builder, builder.fneg(args[1]))
        value = builder.select(builder.fcmp_ordered(">", value, high), high, value)
        return builder.select(builder.fcmp_ordered("<", value, low), low, value)

    return vec16(vec16, types.float32), codegen


def root(value: Any) -> Any:
    """The correctly rounded square root of a float32, an array of them or a Vec16."""
    return np.sqrt(value)


@overload(root)
def _root(value: Any) -> Any:
    def vector(value: Any) -> Any:
        return _root16(value)

    def scalar(value: Any) -> Any:
        # CUDA compiles this spelling, too.
        return math.sqrt(value)

    return vector if value == vec16 else scalar


def clamp(value: Any, limit: Any) -> Any:
    """`value` limited to [-limit, limit]. `limit` is a float32 above 0. A model contains no NaN."""
    return np.minimum(np.maximum(value, -limit), limit)


@overload(clamp)
def _clamp(value: Any, limit: Any) -> Any:
    def vector(value: Any, limit: Any) -> Any:
        return _clamp16(value, limit)

    def scalar(value: Any, limit: Any) -> Any:
        value = limit if value > limit else value
        return -limit if value < -limit else value

    return vector if value == vec16 else scalar


@intrinsic
def _cast16(typingctx: Any, value: Any) -> Any:
    result = words16 if value == vec16 else vec16

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _WORDS if value == vec16 else _VECTOR)

    return result(value), codegen


@intrinsic
def _whole16(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # Below 2**31 it equals the unsigned conversion, which many CPUs lack.
        return builder.fptosi(args[0], _WORDS)

    return words16(vec16), codegen


@intrinsic
def _choose16(typingctx: Any, word: Any, limit: Any, below: Any, other: Any) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        limit = _lanes_of(builder, args[1], types.uint64)
        return builder.select(builder.icmp_unsigned("<", args[0], limit), args[2], args[3])

    return words16(words16, types.uint64, words16, words16), codegen


@intrinsic
def match16(typingctx: Any, address: Any, word: Any, offset: Any = None) -> Any:
    """Bit l of a uint64 is set if lane l of sixteen uint32 (alignment: 64) equals `word`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        words = builder.load(_pointer(builder, sig, args, _WORDS), align=64)
        hits = builder.icmp_unsigned("==", words, _lanes_of(builder, args[1], sig.args[1]))
        return builder.zext(builder.bitcast(hits, ir.IntType(LANES)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64, _offset(offset)), codegen


def bits_of(value: Any) -> Any:
    """The bits of a float32 as a word (uint64), or of a Vec16 as a Words16."""
    return value.view(np.uint32).astype(np.uint64)


@overload(bits_of, jit_options={"forceinline": True})
def _bits_of(value: Any) -> Any:
    def vector(value: Any) -> Any:
        return _cast16(value)

    def scalar(value: Any) -> Any:
        return np.uint64(np.float32(value).view(np.uint32))

    return vector if value == vec16 else scalar


def real_of(word: Any) -> Any:
    """The float32 with the bits of a word, or the Vec16 with the bits of a Words16."""
    return word.astype(np.uint32).view(np.float32)


@overload(real_of, jit_options={"forceinline": True})
def _real_of(word: Any) -> Any:
    def vector(word: Any) -> Any:
        return _cast16(word)

    def scalar(word: Any) -> Any:
        return np.uint32(word).view(np.float32)

    return vector if word == words16 else scalar


def whole(value: Any) -> Any:
    """The integer part of a float32 (or Vec16) in [0, 2**31), as a word (or Words16)."""
    return value.astype(np.uint64)


@overload(whole, jit_options={"forceinline": True})
def _whole(value: Any) -> Any:
    def vector(value: Any) -> Any:
        return _whole16(value)

    def scalar(value: Any) -> Any:
        # This takes one instruction. A direct conversion to uint64 takes many.
        return np.uint64(np.int64(value))

    return vector if value == vec16 else scalar


def choose(word: Any, limit: Any, below: Any, other: Any) -> Any:
    """`below` if the word is below `limit`, else `other`. All are uint64, or all are Words16."""
    return np.where(word < limit, below, other)


@overload(choose, jit_options={"forceinline": True})
def _choose(word: Any, limit: Any, below: Any, other: Any) -> Any:
    def vector(word: Any, limit: Any, below: Any, other: Any) -> Any:
        return _choose16(word, limit, below, other)

    def scalar(word: Any, limit: Any, below: Any, other: Any) -> Any:
        return below if word < limit else other

    return vector if word == words16 else scalar


def address_of(array: np.ndarray) -> np.uint64:
    """The address of an array's first element. The caller keeps the array alive."""
    return np.uint64(array.__array_interface__["data"][0])


@overload(address_of)
def _address_of(array: Any) -> Any:
    def compiled(array: Any) -> Any:
        return np.uint64(array.ctypes.data)

    return compiled
