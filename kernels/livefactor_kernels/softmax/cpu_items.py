"""The steps of a micro-batch's items on the CPU (semantics: `softmax/__init__.py`).

The loop over the negatives of a group keeps the gradients of four negatives in registers per loaded
vector. The assignment of sums to registers changes no bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.lanes import VECTOR_BYTES, broadcast, inlined, load1, load16, store16
from livefactor_kernels.optimizers.cpu import prefetch_state, step_row
from livefactor_kernels.simd.gradients import (
    CHUNK_EVENTS,
    END,
    add_block,
    add_occurrence,
    finish,
    fold,
    link,
    place_for,
)
from livefactor_kernels.simd.steps import ONE, WORD_BYTES, ZERO, Rounding, real, row_bytes, word

_TWO, _THREE, _FOUR = np.uint64(2), np.uint64(3), np.uint64(4)
_AHEAD = np.uint64(8)


class Sums(NamedTuple):
    """The sums of a micro-batch's negatives, as addresses. A group has `places` negatives with
    padding.

    Attributes:
        gradients: float32[groups, places, k_padded + 16].
        biases: float32[groups, places].
        places: number of negatives per group, a multiple of 16.
    """

    gradients: np.uint64
    biases: np.uint64
    places: np.uint64


@inlined
def _sum_block(
    out: Any, errors: Any, size: Any, n: Any, x: Any, kp: Any, count: Any, at: Any, wide: Any, onto: Any
) -> None:
    """Sums e_n x over `count` events, for negatives n = (n0, n1, n2, n3) and one vector."""
    n0, n1, n2, n3 = n
    e0, e1, e2, e3 = (
        errors + n0 * WORD_BYTES,
        errors + n1 * WORD_BYTES,
        errors + n2 * WORD_BYTES,
        errors + n3 * WORD_BYTES,
    )
    y = load16(x, at)
    a0, a1, a2, a3 = y * load1(e0, ZERO), y * load1(e1, ZERO), y * load1(e2, ZERO), y * load1(e3, ZERO)
    for t in range(ONE, count):
        y, place = load16(x, t * kp + at), t * size
        a0 = a0 + y * load1(e0, place)
        a1 = a1 + y * load1(e1, place)
        a2 = a2 + y * load1(e2, place)
        a3 = a3 + y * load1(e3, place)
    o0, o1, o2, o3 = n0 * wide + at, n1 * wide + at, n2 * wide + at, n3 * wide + at
    if onto:
        a0, a1, a2, a3 = (
            load16(out, o0) + a0,
            load16(out, o1) + a1,
            load16(out, o2) + a2,
            load16(out, o3) + a3,
        )
    store16(out, a3, o3)
    store16(out, a2, o2)
    store16(out, a1, o1)
    store16(out, a0, o0)


@inlined
def pull_negatives(
    events: Any, sums: Any, group: Any, begin: Any, first: Any, last: Any, m: Any, blocks: Any
) -> None:
    """Adds the events [first, last) to the gradients of the negatives of their group.

    The events are one chunk. The first chunk of the group starts at `begin`.
    """
    wide, kp, onto = row_bytes(blocks + ONE), row_bytes(blocks), first > begin
    size = sums.places * WORD_BYTES
    errors, x = events.errors + first * size, events.x.address + first * kp
    gradients, biases = sums.gradients + group * sums.places * wide, sums.biases + group * size
    # Indices after the last negative repeat the last negative, with the same result.
    for n in range(ZERO, m, _FOUR):
        rows = n, min(n + ONE, m - ONE), min(n + _TWO, m - ONE), min(n + _THREE, m - ONE)
        for c in range(blocks):
            at = c * VECTOR_BYTES
            _sum_block(gradients, errors, size, rows, x, kp, last - first, at, wide, onto)
    for place in range(ZERO, size, VECTOR_BYTES):
        total = load16(errors, place)
        for t in range(ONE, last - first):
            total = total + load16(errors, t * size + place)
        store16(biases, load16(biases, place) + total if onto else total, place)


@inlined
def _step_item(
    items: Any, item: Any, first: Any, chains: Any, events: Any, sums: Any, work: Any, micro_batch: Any, blocks: Any,
    method: Any, rates: Any,
) -> None:  # fmt: skip
    """Sums and steps one item: first its events, then its occurrences as a negative.

    The list starts at occurrence `first`. `work` is float32[2, k_padded + 16] for an item and a
    chunk.
    """
    kp, wide = row_bytes(blocks), row_bytes(blocks + ONE)
    total, chunk = work, work + wide
    number, o, bias = ZERO, first, real(items.bias, item)
    while o != END and o < micro_batch:
        target, fresh = place_for(total, chunk, number, blocks), number % CHUNK_EVENTS == ZERO
        add_occurrence(
            target,
            fresh,
            real(events.error, o),
            events.x,
            o * kp,
            items.factors,
            item * kp,
            bias,
            blocks,
            rates,
        )
        number += ONE
        o = word(chains.next, o)
    fresh = number == ZERO
    if number > CHUNK_EVENTS:
        fold(total, chunk, blocks)
    while o != END:
        n = o - micro_batch
        for c in range(blocks):
            add_block(total, c, fresh, load16(sums.gradients, n * wide + c * VECTOR_BYTES))
        add_block(total, blocks, fresh, broadcast(real(sums.biases, n)))
        fresh = False
        o = word(chains.next, o)
    finish(total, chunk, ZERO, number, rates.hot_events, blocks)
    step_row(items, item, total, True, blocks, method, rates, Rounding(ZERO, ZERO), ZERO)


@inlined
def link_items(
    chains: Any, events: Any, drawn: Any, width: Any, sums: Any, groups: Any, last_m: Any, micro_batch: Any
) -> Any:
    """Links the occurrences of each item. Returns the number of items.

    Events have numbers from 0 on, and the places of negatives have numbers from micro_batch on.
    `drawn` is the address of the negatives, uint32[groups, width]. The last group has `last_m` of
    them.
    """
    used, count = ZERO, word(events.ends, groups - ONE)
    for t in range(count):
        used = link(chains, used, word(events.items, t), t)
    begin = ZERO
    for group in range(groups):
        end = word(events.ends, group)
        if end > begin:
            first = micro_batch + group * sums.places
            for n in range(last_m if group == groups - ONE else width):
                used = link(chains, used, word(drawn, group * width + n), first + n)
        begin = end
    return used


@inlined
def step_items(
    items: Any, chains: Any, events: Any, sums: Any, work: Any, numbers: Any, micro_batch: Any, blocks: Any,
    method: Any, rates: Any,
) -> None:  # fmt: skip
    """Steps the items with the numbers [first, last) = `numbers` among the linked ones."""
    first, last = numbers
    for q in range(first, last):
        ahead = min(q + _AHEAD, last - ONE)
        prefetch_state(items, word(chains.row, ahead), blocks, method)
        item, occurrence = word(chains.row, q), word(chains.first, q)
        _step_item(items, item, occurrence, chains, events, sums, work, micro_batch, blocks, method, rates)
