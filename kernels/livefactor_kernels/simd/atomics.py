"""Loads and stores with a memory order, on raw addresses, in compiled code.

The store of a NumPy element in a Numba kernel is a plain store. The compiler may move it, and on
weakly ordered machines the processor may, too. If a thread publishes to others without a lock, the
order is part of the protocol. Addresses are uint64 and multiples of 8. Values are uint64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

_I64 = ir.IntType(64)
_ALIGN = 8


def _load(typingctx: Any, order: str) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(pointer, order, _ALIGN, typ=_I64)

    return types.uint64(types.uint64), codegen


def _store(typingctx: Any, order: str) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        builder.store_atomic(args[1], pointer, order, _ALIGN)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@intrinsic
def load_acquire(typingctx: Any, address: Any) -> Any:
    """uint64 at `address`. No later load or store of this thread is moved before it."""
    return _load(typingctx, "acquire")


@intrinsic
def load_relaxed(typingctx: Any, address: Any) -> Any:
    """uint64 at `address`, read at once, without an order."""
    return _load(typingctx, "monotonic")


@intrinsic
def store_release(typingctx: Any, address: Any, value: Any) -> Any:
    """Writes `value` at `address`. No earlier load or store of this thread is moved after it."""
    return _store(typingctx, "release")


@intrinsic
def store_relaxed(typingctx: Any, address: Any, value: Any) -> Any:
    """Writes `value` at `address` at once, without an order."""
    return _store(typingctx, "monotonic")


def _fence(order: str) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence(order)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def acquire_fence(typingctx: Any) -> Any:
    """No later load or store of this thread is moved before an earlier load."""
    return _fence("acquire")


@intrinsic
def release_fence(typingctx: Any) -> Any:
    """No later store of this thread is moved before an earlier load or store."""
    return _fence("release")


@intrinsic
def relax(typingctx: Any) -> Any:
    """Tells the processor that this thread waits for a word in memory (PAUSE)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), ())
        return context.get_dummy_value()

    return types.void(), codegen
