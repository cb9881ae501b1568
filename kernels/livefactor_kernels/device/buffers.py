"""Memory of the device, as array operations and as kernels take it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Buffer(NamedTuple):
    """Memory of the device: `array` for the array module, `argument` for kernels."""

    array: Any
    argument: Any


class Growing(Protocol):
    """An array that grows in place, without copies.

    Its address range is reserved, and memory is added to it. `mapped` is the number of bytes with
    memory.
    """

    buffer: Buffer
    mapped: int

    def grow(self, nbytes: int) -> bool:
        """Provides memory for the first `nbytes`. Returns False if the device has too little."""

    def missing(self, nbytes: int) -> int:
        """The bytes that `grow(nbytes)` would add."""
