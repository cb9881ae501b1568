"""Calls of short kernels without a look at the types of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def entry_of(kernel: Any, *arguments: Any) -> Callable[..., Any]:
    """Calls a kernel, and returns its compiled code for arguments of these types.

    The code does not check the types of its arguments. A call of the kernel looks at each of them
    first, which takes longer than a short kernel.
    """
    kernel(*arguments)
    entry: Callable[..., Any] = kernel.overloads[tuple(map(kernel.typeof_pyval, arguments))].entry_point
    return entry
