"""The errors of a group's events, and the steps of their users, on the CPU.

`softmax/__init__.py` has the semantics. Each loop over negatives keeps several sums in registers
per loaded vector: the dot products of four negatives, or four vectors of a user's gradient. The
assignment of sums to registers changes no bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import (
    VECTOR_BYTES,
    bits_of,
    broadcast,
    choose,
    clamp,
    load16,
    real_of,
    store1,
    store16,
    store_u32,
    tree_sum,
)
from livefactor_kernels.numbers.narrow import load_factors, prefetch_factors
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers.cpu import prefetch_state, step_row
from livefactor_kernels.simd.packs import pack1, pack2, pack4, pack8
from livefactor_kernels.simd.steps import ONE, WORD_BYTES, ZERO, Rounding, dot, real, row_bytes, word
from livefactor_kernels.softmax import GAP_MAX
from livefactor_kernels.spec.model import LANES

_F0, _F1 = np.float32(0.0), np.float32(1.0)
_LANES = np.uint64(LANES)
_TWO, _THREE, _FOUR, _EIGHT = np.uint64(2), np.uint64(3), np.uint64(4), np.uint64(8)
_AHEAD = np.uint64(8)


class Events(NamedTuple):
    """The counting events of a micro-batch, as addresses.

    Attributes:
        users, items: rows uint32[B].
        weight: float32[B].
        own: rarity of the event's item, float32[B].
        error: error of the event's item, float32[B].
        x: rows of the users, float32[B, k_padded].
        errors: errors of the negatives, float32[B, M].
        pull: gradient of a user, float32[k_padded].
        ends: end of each group among the events, uint32[groups].
    """

    users: np.uint64
    items: np.uint64
    weight: np.uint64
    own: np.uint64
    error: np.uint64
    x: Any
    errors: np.uint64
    pull: np.uint64
    ends: np.uint64


class Negatives(NamedTuple):
    """The m negatives of a group, padded to M, a multiple of 16, as addresses.

    Attributes:
        rows: uint32[M].
        bias: float32[M].
        rarity: float32[M], 0 for padding.
        y: rows of the negatives, float32[M, k_padded].
        quarters: result of `_quarters`, float32[4 M].
        size: bytes of M floats.
    """

    rows: np.uint64
    bias: np.uint64
    rarity: np.uint64
    y: np.uint64
    quarters: np.uint64
    size: np.uint64


class Groups(NamedTuple):
    """The groups of a micro-batch and their negatives.

    Attributes:
        rows: address of item rows, uint32[count, width].
        rarity: address of float32[count, width].
        width: number of negatives of a group.
        count: number of groups.
        last_width: number of negatives of the last group.
    """

    rows: Any
    rarity: Any
    width: Any
    count: Any
    last_width: Any


class Chunk(NamedTuple):
    """Up to 32 events of a group.

    Attributes:
        group: number of the group in the micro-batch.
        first, last: the events [first, last) of the micro-batch.
        negatives: number of negatives of the group.
        is_first: whether the chunk is the first one of the group.
    """

    group: Any
    first: Any
    last: Any
    negatives: Any
    is_first: Any


@inlined
def width_of(groups: Any, group: Any) -> Any:
    """Number of negatives of a group."""
    return groups.last_width if group == groups.count - ONE else groups.width


@inlined
def _vectors_of(count: Any) -> Any:
    """Number of vectors for `count` negatives."""
    return (count + _LANES - ONE) // _LANES


@inlined
def gather_negatives(model: Any, negatives: Any, groups: Any, group: Any) -> None:
    """Copies the rows of a group's negatives to scratch."""
    items, blocks, count = model.items, model.blocks, width_of(groups, group)
    offset = group * groups.width * WORD_BYTES
    rows, rarity = groups.rows + offset, groups.rarity + offset
    for n in range(_vectors_of(count) * _LANES):
        at = n * WORD_BYTES
        prefetch_factors(items.factors, word(rows, min(n + _AHEAD, count - ONE)) * row_bytes(blocks), blocks)
        is_there = n < count
        row = word(rows, n) if is_there else ZERO
        store_u32(negatives.rows, row, at)
        store1(negatives.rarity, real(rarity, n) if is_there else _F0, at)
        store1(negatives.bias, real(items.bias, row) if is_there else _F0, at)
        start, target = row * row_bytes(blocks), negatives.y + n * row_bytes(blocks)
        for c in range(blocks):
            place = c * VECTOR_BYTES
            vector = load_factors(items.factors, start + place)
            store16(target, vector if is_there else broadcast(_F0), place)


@inlined
def copy_events(record: Any, events: Any, start: Any, stop: Any, group_events: Any) -> None:
    """Copies the columns of the events [start, stop) that count to scratch."""
    user_rows, item_rows, values, weights, shared = record
    own, count = shared.own, ZERO
    for t in range(start, stop):
        value = values[t] if values.size else _F1
        at = count * WORD_BYTES
        store_u32(events.users, np.uint64(user_rows[t]), at)
        store_u32(events.items, np.uint64(item_rows[t]), at)
        store1(events.weight, weights[t] if weights.size else _F1, at)
        store1(events.own, own[t], at)
        count += ONE if value > _F0 else ZERO
        store_u32(events.ends, count, (t - start) // group_events * WORD_BYTES)


@inlined
def _dots4(x: Any, y: Any, blocks: Any) -> Any:
    """The last four lanes of the dot products of the row at address x with four rows.

    They are rows 0, 4, 1 and 5 from address y on.
    """
    y1, y4 = y + row_bytes(blocks), y + _FOUR * row_bytes(blocks)
    y5, own = y4 + row_bytes(blocks), load16(x, ZERO)
    a0, a1, a4, a5 = (
        own * load16(y, ZERO),
        own * load16(y1, ZERO),
        own * load16(y4, ZERO),
        own * load16(y5, ZERO),
    )
    for c in range(ONE, blocks):
        at = c * VECTOR_BYTES
        own = load16(x, at)
        a0 = a0 + own * load16(y, at)
        a1 = a1 + own * load16(y1, at)
        a4 = a4 + own * load16(y4, at)
        a5 = a5 + own * load16(y5, at)
    return pack4(pack8(a0, a4), pack8(a1, a5))


@inlined
def _quarters(x: Any, negatives: Any, vectors: Any, blocks: Any) -> None:
    """The last four lanes of the dot products of the row at address x with all negatives.

    A vector has four negatives, in the order 0 4 1 5, 2 6 3 7, and so on.
    """
    for q in range(vectors * _FOUR):
        n = (q >> ONE) * _EIGHT + (q & ONE) * _TWO
        store16(negatives.quarters, _dots4(x, negatives.y + n * row_bytes(blocks), blocks), q * VECTOR_BYTES)


@inlined
def _dots(quarters: Any, v: Any) -> Any:
    """Dot products of the sixteen negatives from 16 v on."""
    at = v * _FOUR * VECTOR_BYTES
    one = pack2(load16(quarters, at), load16(quarters, at + VECTOR_BYTES))
    at += _TWO * VECTOR_BYTES
    return pack1(one, pack2(load16(quarters, at), load16(quarters, at + VECTOR_BYTES)))


@inlined
def _take_errors(
    events: Any, negatives: Any, t: Any, own_score: Any, vectors: Any, blocks: Any, rates: Any
) -> None:
    """Computes the errors of event t. The row of its user is in scratch.

    `own_score` is the score of its item.
    """
    x = events.x.address + t * row_bytes(blocks)
    errors, item, total = events.errors + t * negatives.size, word(events.items, t), broadcast(_F0)
    _quarters(x, negatives, vectors, blocks)
    for v in range(vectors):
        at = v * VECTOR_BYTES
        scores = load16(negatives.bias, at) + _dots(negatives.quarters, v)
        z = scalar.exp(clamp(scores - own_score, GAP_MAX)) * load16(negatives.rarity, at)
        differs = bits_of(load16(negatives.rows, at)) ^ item
        # z is 0 where `differs` is 0.
        z = real_of(choose(differs, ONE, differs, bits_of(z)))
        store16(errors, z, at)
        total = z if v == ZERO else total + z
    s = tree_sum(total)
    scale = real(events.weight, t) / (real(events.own, t) + s)
    for v in range(vectors):
        at = v * VECTOR_BYTES
        store16(errors, clamp(load16(errors, at) * scale, rates.error_max), at)
    store1(events.error, -clamp(s * scale, rates.error_max), t * WORD_BYTES)


@inlined
def _pull_user(items: Any, events: Any, negatives: Any, t: Any, m: Any, blocks: Any, rates: Any) -> None:
    """Writes the gradient of event t's user to events.pull, four vectors at a time."""
    kp, x = row_bytes(blocks), events.x.address + t * row_bytes(blocks)
    own, item = real(events.error, t), items.factors.address + word(events.items, t) * kp
    errors = events.errors + t * negatives.size
    # Indices after the last vector repeat the last vector, with the same result.
    for c in range(ZERO, blocks, _FOUR):
        c1, c2, c3 = min(c + ONE, blocks - ONE), min(c + _TWO, blocks - ONE), min(c + _THREE, blocks - ONE)
        at0, at1, at2, at3 = c * VECTOR_BYTES, c1 * VECTOR_BYTES, c2 * VECTOR_BYTES, c3 * VECTOR_BYTES
        a0, a1, a2, a3 = (
            load16(item, at0) * own,
            load16(item, at1) * own,
            load16(item, at2) * own,
            load16(item, at3) * own,
        )
        for n in range(m):
            e, y = real(errors, n), n * kp
            a0 = a0 + load16(negatives.y, y + at0) * e
            a1 = a1 + load16(negatives.y, y + at1) * e
            a2 = a2 + load16(negatives.y, y + at2) * e
            a3 = a3 + load16(negatives.y, y + at3) * e
        store16(events.pull, a3 + load16(x, at3) * rates.l2, at3)
        store16(events.pull, a2 + load16(x, at2) * rates.l2, at2)
        store16(events.pull, a1 + load16(x, at1) * rates.l2, at1)
        store16(events.pull, a0 + load16(x, at0) * rates.l2, at0)


@inlined
def learn_users(model: Any, events: Any, negatives: Any, chunk: Any, count: Any) -> None:
    """Computes the errors of a chunk's events in order, and steps each user at once.

    `count` is the number of events of the micro-batch.
    """
    users, items, blocks, method, rates = model
    kp, vectors = row_bytes(blocks), _vectors_of(chunk.negatives)
    for t in range(chunk.first, chunk.last):
        ahead = min(t + _AHEAD, count - ONE)
        prefetch_state(users, word(events.users, ahead), blocks, method)
        prefetch_state(items, word(events.items, ahead), blocks, method)
        user, item = word(events.users, t), word(events.items, t)
        for c in range(blocks):
            at = c * VECTOR_BYTES
            store16(events.x.address, load16(users.factors.address, user * kp + at), t * kp + at)
        own_score = real(items.bias, item) + dot(events.x, t * kp, items.factors, item * kp, blocks)
        _take_errors(events, negatives, t, own_score, vectors, blocks, rates)
        _pull_user(items, events, negatives, t, chunk.negatives, blocks, rates)
        step_row(model, users, user, events.pull, False, Rounding(ZERO, ZERO, ZERO))
