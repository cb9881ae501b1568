"""The occurrences of a row in a micro-batch, as a linked list, and their sum in the order of the
semantics.

`optimizers/cpu.py` steps a row by its sum. A gradient row has k_padded + 16 floats. The first of
the last 16 is the gradient of the bias.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, broadcast, load16, store16, store_u32
from livefactor_kernels.numbers.narrow import load_factors
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.sums import CHUNK
from livefactor_kernels.simd.steps import ONE, WORD_BYTES, ZERO, word

CHUNK_EVENTS = np.uint64(CHUNK)
END = np.uint64(0xFFFFFFFF)
_F1 = np.float32(1.0)


class Chains(NamedTuple):
    """The occurrences of each row of one side, as linked lists. All fields are addresses of uint32
    arrays.

    The rows in a micro-batch have numbers from 0 on, in order of first appearance.

    Attributes:
        place: by row, 1 + its number; 0 for rows that are not in the micro-batch.
        row: by number, the row.
        first, last: by number, the first and the last occurrence in the list of the row.
        next: by occurrence, the next one in its list, or `END`.
    """

    place: np.uint64
    row: np.uint64
    first: np.uint64
    last: np.uint64
    next: np.uint64


@inlined
def set_word(base: Any, index: Any, value: Any) -> None:
    """Writes uint32 number `index` of the array at address `base`."""
    store_u32(base, value, index * WORD_BYTES)


@inlined
def link(chains: Any, used: Any, row: Any, occurrence: Any) -> Any:
    """Appends an occurrence to the list of its row. Returns the new number of rows with a list."""
    place = word(chains.place, row)
    set_word(chains.next, occurrence, END)
    if place == ZERO:
        set_word(chains.row, used, row)
        set_word(chains.first, used, occurrence)
        set_word(chains.last, used, occurrence)
        set_word(chains.place, row, used + ONE)
        return used + ONE
    last = chains.last + (place - ONE) * WORD_BYTES
    set_word(chains.next, word(last, ZERO), occurrence)
    store_u32(last, occurrence)
    return used


@inlined
def reset(chains: Any, used: Any) -> None:
    """Removes the lists of the first `used` rows."""
    for q in range(used):
        set_word(chains.place, word(chains.row, q), ZERO)


@inlined
def add_block(target: Any, c: Any, fresh: Any, term: Any) -> None:
    """Adds 16 lanes to block c of the gradient row `target`, or stores them if it is `fresh`."""
    at = c * VECTOR_BYTES
    store16(target, term if fresh else load16(target, at) + term, at)


@inlined
def place_for(total: Any, chunk: Any, number: Any, blocks: Any) -> Any:
    """The gradient row to which occurrence `number` of a row is added.

    This is `total` for the first chunk, and `chunk` for later ones. A full chunk is added to
    `total` first.
    """
    if number < CHUNK_EVENTS:
        return total
    if number % CHUNK_EVENTS == ZERO and number > CHUNK_EVENTS:
        fold(total, chunk, blocks)
    return chunk


@inlined
def fold(total: Any, chunk: Any, blocks: Any) -> None:
    """Adds the gradient row `chunk` to `total`."""
    for c in range(blocks + ONE):
        at = c * VECTOR_BYTES
        store16(total, load16(total, at) + load16(chunk, at), at)


@inlined
def finish(total: Any, chunk: Any, number: Any, events: Any, hot: Any, blocks: Any) -> None:
    """Completes the sum of a row's `number` occurrences. Scales it down if the row has more than
    `hot` events.
    """
    if number > CHUNK_EVENTS:
        fold(total, chunk, blocks)
    scale_vectors(total, scalar.hot_scale(hot, events), blocks + ONE)


@inlined
def scale_vectors(vectors: Any, scale: Any, count: Any) -> None:
    """Multiplies `count` vectors at an address by a float32."""
    if scale != _F1:
        for c in range(count):
            at = c * VECTOR_BYTES
            store16(vectors, load16(vectors, at) * scale, at)


class Occurrence(NamedTuple):
    """One occurrence of a row in a micro-batch.

    Attributes:
        e: error, float32.
        other, other_start: factors of the other side, and the place of the other row in them.
        own, own_start: factors of the row's own side, and its place in them.
        bias: bias of the row, float32.
        weights: weights of L2, with the fields l2 and bias_l2.
    """

    e: Any
    other: Any
    other_start: Any
    own: Any
    own_start: Any
    bias: Any
    weights: Any


@inlined
def add_occurrence(target: Any, fresh: Any, occurrence: Any, blocks: Any) -> None:
    """Adds (e * other) + (lambda * own), and for the bias e + (lambda_b * bias), to a gradient
    row.
    """
    e, weights = occurrence.e, occurrence.weights
    for c in range(blocks):
        at = c * VECTOR_BYTES
        y = load_factors(occurrence.other, occurrence.other_start + at)
        x = load_factors(occurrence.own, occurrence.own_start + at)
        add_block(target, c, fresh, scalar.pull(e, y, weights.l2, x))
    add_block(target, blocks, fresh, broadcast(scalar.bias_pull(e, weights.bias_l2, occurrence.bias)))
