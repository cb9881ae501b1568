"""What kernels of micro-batches share: the occurrences of a row as a linked list, and sums of them in the order of the
semantics. (The step of a row by its sum: `optimizers/cpu.py`.)

A gradient row is k_padded floats and 16 more, of which the first is the bias's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, broadcast, inlined, load16, store16, store_u32
from livefactor_kernels.numbers.narrow import load_factors
from livefactor_kernels.numbers.sums import CHUNK
from livefactor_kernels.simd.steps import ONE, WORD_BYTES, ZERO, word

CHUNK_EVENTS = np.uint64(CHUNK)
END = np.uint64(0xFFFFFFFF)
_F1 = np.float32(1.0)


class Chains(NamedTuple):
    """Occurrences by row of one side, as linked lists of occurrence numbers: addresses of uint32 arrays.

    place[row]: 1 + the row's number among the rows used, 0 if unused. row, first, last: by that number. next:
    by occurrence.
    """

    place: np.uint64
    row: np.uint64
    first: np.uint64
    last: np.uint64
    next: np.uint64


@inlined
def set_word(base: Any, index: Any, value: Any) -> None:
    """Write uint32 number `index` of an array at address `base`."""
    store_u32(base, value, index * WORD_BYTES)


@inlined
def link(chains: Any, used: Any, row: Any, occurrence: Any) -> Any:
    """Append an occurrence to its row's list; the number of rows used after it."""
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
    """Forget the occurrences of the rows used."""
    for q in range(used):
        set_word(chains.place, word(chains.row, q), ZERO)


@inlined
def add_block(target: Any, c: Any, fresh: Any, term: Any) -> None:
    """Add 16 lanes to block c of a gradient row, or start it with them."""
    at = c * VECTOR_BYTES
    store16(target, term if fresh else load16(target, at) + term, at)


@inlined
def place_for(total: Any, chunk: Any, number: Any, blocks: Any) -> Any:
    """Where a row's occurrence `number` adds: the first chunk straight to `total`, later ones to `chunk`,
    folded when full."""
    if number < CHUNK_EVENTS:
        return total
    if number % CHUNK_EVENTS == ZERO and number > CHUNK_EVENTS:
        fold(total, chunk, blocks)
    return chunk


@inlined
def fold(total: Any, chunk: Any, blocks: Any) -> None:
    """Add gradient row `chunk` to `total`."""
    for c in range(blocks + ONE):
        at = c * VECTOR_BYTES
        store16(total, load16(total, at) + load16(chunk, at), at)


@inlined
def finish(total: Any, chunk: Any, number: Any, events: Any, hot: Any, blocks: Any) -> None:
    """Complete a row's sum of `number` occurrences, and scale it down if more than `hot` events name the
    row."""
    if number > CHUNK_EVENTS:
        fold(total, chunk, blocks)
    scale_vectors(total, scalar.hot_scale(hot, events), blocks + ONE)


@inlined
def scale_vectors(vectors: Any, scale: Any, count: Any) -> None:
    """Multiply `count` vectors at an address by a float32."""
    if scale != _F1:
        for c in range(count):
            at = c * VECTOR_BYTES
            store16(vectors, load16(vectors, at) * scale, at)


@inlined
def add_occurrence(
    target: Any, fresh: Any, e: Any, other: Any, other_start: Any, own: Any, own_start: Any, bias: Any,
    blocks: Any, weights: Any,
) -> None:  # fmt: skip
    """Add (e * other) + (lambda * own), and the bias's e + (lambda_b * bias), to a gradient row. other, own:
    factors, and where their rows begin. weights: of L2, with fields l2 and bias_l2."""
    for c in range(blocks):
        at = c * VECTOR_BYTES
        y, x = load_factors(other, other_start + at), load_factors(own, own_start + at)
        add_block(target, c, fresh, scalar.pull(e, y, weights.l2, x))
    add_block(target, blocks, fresh, broadcast(scalar.bias_pull(e, weights.bias_l2, bias)))
