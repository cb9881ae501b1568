"""The decorator of every kernel that Numba compiles for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit

from livefactor_kernels.numbers.cache import KernelCache, NoFolder


def compiled(
    function: Callable[..., Any] | None = None,
    *,
    nogil: bool = True,
    error_model: str = "numpy",
    inline: str = "never",
) -> Any:
    """The decorator of a kernel.

    At the first call with certain types of arguments, Numba compiles the kernel or loads it from
    disk.

    Args:
        function: the kernel, if the decorator is used without arguments.
        nogil: whether a call releases the GIL.
        error_model: with "numpy" a division by zero gives infinity or NaN, with "python" it raises
            ZeroDivisionError.
        inline: "always" inlines the kernel into the kernels that call it.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        # Nothing calls a kernel from C.
        options = {"error_model": error_model, "inline": inline, "no_cfunc_wrapper": True}
        kernel = njit(nogil=nogil, **options)(function)
        # Where no folder can be written, Numba's own cache remains, which keeps nothing.
        with suppress(NoFolder):
            kernel._cache = KernelCache(function)
        return kernel

    return decorate if function is None else decorate(function)
