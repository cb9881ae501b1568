"""The order of a micro-batch's negatives by item, on the GPU.

The negatives of a piece of a record are sorted once by (micro-batch, row, place). A place is group
* width + number in the group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.device.warp import cuda, kernel
from livefactor_kernels.numbers.parts import inlined

# Bits of a key (micro-batch, row, place). There are at most `MAX_SHARED_NEGATIVES` places.
PLACE_BITS, _ROW_BITS = 17, 32
_PLACE_MASK, _ROW_MASK = (1 << PLACE_BITS) - 1, (1 << _ROW_BITS) - 1
BATCHES_MAX = 1 << 14
"""Maximum number of micro-batches per piece, so that a key has 63 bits."""
NEGATIVES_OF_PIECE = 1 << 20
"""Maximum number of negatives per piece, unless one micro-batch has more."""


@inlined
def place_of(key: Any) -> Any:
    """Place (int64) of a sorted negative in its micro-batch."""
    return key & _PLACE_MASK


@inlined
def shared_row_of(key: Any) -> Any:
    """Row (int64) of a sorted negative."""
    return (key >> PLACE_BITS) & _ROW_MASK


@kernel
def livefactor_order_negatives_kernel(
    words: Any, rows_at: Any, of_batch: Any, count: Any, entries: Any, keys: Any
) -> None:
    """Writes the keys of a piece's negatives, `of_batch` per micro-batch. A thread per key.

    Entries from `count` on are no negatives.
    """
    i = cuda.grid(1)
    if i >= entries:
        return
    batch, place = np.int64(i // of_batch), np.int64(i % of_batch)
    row = np.int64(words[rows_at + i]) if i < count else np.int64(_ROW_MASK)
    keys[i] = (((batch << _ROW_BITS) | row) << PLACE_BITS) | place
