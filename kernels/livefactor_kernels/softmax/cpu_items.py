"""The steps of a micro-batch's items on the CPU (semantics: `softmax/__init__.py`).

The loop over the negatives of a group keeps the gradients of four negatives in registers per loaded
vector. The assignment of sums to registers changes no bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.lanes import VECTOR_BYTES, broadcast, load1, load16, store16
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers.cpu import prefetch_state, step_row
from livefactor_kernels.simd.gradients import (
    CHUNK_EVENTS,
    END,
    Occurrence,
    add_block,
    add_occurrence,
    finish,
    fold,
    link,
    place_for,
)
from livefactor_kernels.simd.steps import ONE, WORD_BYTES, ZERO, Rounding, real, row_bytes, word
from livefactor_kernels.softmax.cpu_events import width_of

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


class Matrix(NamedTuple):
    """The address of a matrix of float32, and the bytes of its rows."""

    address: Any
    row_bytes: Any


@inlined
def _sum_block(sums: Any, errors: Any, x: Any, n: Any, count: Any, at: Any, is_first: Any) -> None:
    """Sums e_n x over `count` events, for negatives n = (n0, n1, n2, n3) and the vector at `at`.

    The matrices are `sums` with a row per negative, `errors` with a row per event, and `x` with a
    row per event. With `is_first` the sums begin at 0, otherwise at the stored ones.
    """
    n0, n1, n2, n3 = n
    e0, e1, e2, e3 = (
        errors.address + n0 * WORD_BYTES,
        errors.address + n1 * WORD_BYTES,
        errors.address + n2 * WORD_BYTES,
        errors.address + n3 * WORD_BYTES,
    )
    y = load16(x.address, at)
    a0, a1, a2, a3 = y * load1(e0, ZERO), y * load1(e1, ZERO), y * load1(e2, ZERO), y * load1(e3, ZERO)
    for t in range(ONE, count):
        y, place = load16(x.address, t * x.row_bytes + at), t * errors.row_bytes
        a0 = a0 + y * load1(e0, place)
        a1 = a1 + y * load1(e1, place)
        a2 = a2 + y * load1(e2, place)
        a3 = a3 + y * load1(e3, place)
    out, wide = sums.address, sums.row_bytes
    o0, o1, o2, o3 = n0 * wide + at, n1 * wide + at, n2 * wide + at, n3 * wide + at
    if not is_first:
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
def pull_negatives(events: Any, sums: Any, chunk: Any, blocks: Any) -> None:
    """Adds the events of a chunk to the gradients of the negatives of their group."""
    wide, kp, m = row_bytes(blocks + ONE), row_bytes(blocks), chunk.negatives
    size, count = sums.places * WORD_BYTES, chunk.last - chunk.first
    first_error = events.errors + chunk.first * size
    errors, x = Matrix(first_error, size), Matrix(events.x.address + chunk.first * kp, kp)
    gradients = Matrix(sums.gradients + chunk.group * sums.places * wide, wide)
    # Indices after the last negative repeat the last negative, with the same result.
    for n in range(ZERO, m, _FOUR):
        rows = n, min(n + ONE, m - ONE), min(n + _TWO, m - ONE), min(n + _THREE, m - ONE)
        for c in range(blocks):
            _sum_block(gradients, errors, x, rows, count, c * VECTOR_BYTES, chunk.is_first)
    biases = sums.biases + chunk.group * size
    for place in range(ZERO, size, VECTOR_BYTES):
        total = load16(first_error, place)
        for t in range(ONE, count):
            total = total + load16(first_error, t * size + place)
        store16(biases, total if chunk.is_first else load16(biases, place) + total, place)


@inlined
def _step_item(model: Any, scratch: Any, item: Any, first: Any, work: Any, micro_batch: Any) -> None:
    """Sums and steps one item: first its events, then its occurrences as a negative.

    The list starts at occurrence `first`. `work` is float32[2, k_padded + 16] for an item and a
    chunk.
    """
    items, blocks, rates = model.items, model.blocks, model.rates
    chains, events, sums = scratch.items, scratch.events, scratch.sums
    kp, wide = row_bytes(blocks), row_bytes(blocks + ONE)
    total, chunk = work, work + wide
    number, o, bias = ZERO, first, real(items.bias, item)
    while o != END and o < micro_batch:
        target, fresh = place_for(total, chunk, number, blocks), number % CHUNK_EVENTS == ZERO
        e = real(events.error, o)
        occurrence = Occurrence(e, events.x, o * kp, items.factors, item * kp, bias, rates)
        add_occurrence(target, fresh, occurrence, blocks)
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
    step_row(model, items, item, total, True, Rounding(ZERO, ZERO, ZERO))


@inlined
def link_items(scratch: Any, groups: Any, micro_batch: Any) -> Any:
    """Links the occurrences of each item. Returns the number of items.

    Events have numbers from 0 on, and the places of negatives have numbers from micro_batch on.
    """
    chains, events = scratch.items, scratch.events
    used, count = ZERO, word(events.ends, groups.count - ONE)
    for t in range(count):
        used = link(chains, used, word(events.items, t), t)
    begin = ZERO
    for group in range(groups.count):
        end = word(events.ends, group)
        if end > begin:
            first = micro_batch + group * scratch.sums.places
            for n in range(width_of(groups, group)):
                used = link(chains, used, word(groups.rows, group * groups.width + n), first + n)
        begin = end
    return used


@inlined
def step_items(model: Any, scratch: Any, work: Any, numbers: Any, micro_batch: Any) -> None:
    """Steps the items with the numbers [first, last) = `numbers` among the linked ones."""
    chains, (first, last) = scratch.items, numbers
    for q in range(first, last):
        ahead = min(q + _AHEAD, last - ONE)
        prefetch_state(model.items, word(chains.row, ahead), model.blocks, model.method)
        item, occurrence = word(chains.row, q), word(chains.first, q)
        _step_item(model, scratch, item, occurrence, work, micro_batch)
