"""Sampled softmax in compiled code (semantics: `softmax/__init__.py`).

A micro-batch goes by in chunks of 32 events, whose rows, errors and pulls stay in the first caches beside the shared
negatives. These lie in scratch twice: as rows, and turned, so that sixteen scores are taken at once, lane by lane of the
dots; a term that is loaded serves two or four sums in registers. Which sums share a turn changes no bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .. import scalar
from ..gradients import (
    CHUNK_EVENTS,
    END,
    Chains,
    add_block,
    add_occurrence,
    finish,
    fold,
    link,
    place_for,
    reset,
    step_row,
)
from ..lanes import (
    VECTOR_BYTES,
    address_of,
    bits_of,
    broadcast,
    choose,
    clamp,
    inlined,
    load1,
    load16,
    real_of,
    store1,
    store16,
    store_u32,
    tree_sum,
)
from ..narrow import factors_of, load_factors
from ..spec import LANES, ModelSpec, OptimizerKind, Proposal
from ..steps import ONE, WORD_BYTES, ZERO, Rounding, Rows, dot, prefetch_row, real, row_bytes, word
from ..tables import Table, reserve
from ..update import Rates, Update
from . import GAP_MAX
from .proposal import Proposer, Shared

_F0, _F1 = np.float32(0.0), np.float32(1.0)
_LANES = np.uint64(LANES)
_TWO, _FOUR = np.uint64(2), np.uint64(4)
_AHEAD = np.uint64(8)
_NO_FLOATS = np.empty(0, np.float32)


class Events(NamedTuple):
    """The events of a micro-batch that count, one after the other: addresses of users, items uint32[B]; weight, own
    (rarity of the item), error (of the item) float32[B]; x float32[B, kp]: users' rows; errors float32[B, M]: of the
    negatives; pulls float32[B, kp + 16]: on the users."""

    users: np.uint64
    items: np.uint64
    weight: np.uint64
    own: np.uint64
    error: np.uint64
    x: Any
    errors: np.uint64
    pulls: np.uint64


class Negatives(NamedTuple):
    """A micro-batch's negatives, m of them filled up to M, a multiple of 16: addresses of rows uint32[M]; bias, rarity
    (0 where there is none) float32[M]; y float32[M, kp]; turned float32[kp, M]; gradients float32[M + 2, kp + 16]: theirs,
    one of an item, one of a chunk; biases float32[M]: their biases' gradients. size: bytes of M floats."""

    rows: np.uint64
    bias: np.uint64
    rarity: np.uint64
    y: np.uint64
    turned: np.uint64
    gradients: np.uint64
    biases: np.uint64
    size: np.uint64


class Scratch(NamedTuple):
    """Working memory of a model's kernel; reused over calls, never part of the state."""

    users: Chains
    items: Chains
    events: Events
    negatives: Negatives

    @staticmethod
    def of(spec: ModelSpec, users: Table, items: Table) -> tuple[Scratch, list[np.ndarray]]:
        """Scratch of a model, and the arrays that must outlive it."""
        arrays: list[np.ndarray] = []

        def floats(*shape: int) -> np.uint64:
            arrays.append(reserve(shape, np.float32))
            return address_of(arrays[-1])

        size, kp, wide = spec.micro_batch, spec.k_padded, spec.k_padded + LANES
        m = -(-spec.shared_negatives // LANES) * LANES
        chains = [
            Chains(floats(table.capacity), *(floats(count) for _ in range(4)))
            for table, count in ((users, size), (items, size + m))
        ]
        columns = [floats(size) for _ in range(5)]
        arrays.append(reserve((size, kp), np.float32))
        events = Events(*columns, factors_of(arrays[-1]), floats(size, m), floats(size, wide))
        shapes = (m,), (m,), (m,), (m, kp), (kp, m), (m + 2, wide), (m,)
        negatives = Negatives(*(floats(*shape) for shape in shapes), np.uint64(4 * m))
        return Scratch(*chains, events, negatives), arrays


@inlined
def _gather_negatives(items: Any, negatives: Any, drawn: Any, rarity: Any, count: Any, blocks: Any) -> Any:
    """Copy the negatives' rows, uint32 at address `drawn`, to scratch; returns how many vectors of them there are."""
    vectors, kp = (count + _LANES - ONE) // _LANES, blocks * _LANES
    for n in range(vectors * _LANES):
        at = n * WORD_BYTES
        is_there = n < count
        row = word(drawn, n) if is_there else ZERO
        store_u32(negatives.rows, row, at)
        store1(negatives.rarity, real(rarity, n) if is_there else _F0, at)
        store1(negatives.bias, real(items.bias, row) if is_there else _F0, at)
        start, target = row * row_bytes(blocks), negatives.y + n * row_bytes(blocks)
        for c in range(blocks):
            place = c * VECTOR_BYTES
            vector = load_factors(items.factors, start + place)
            store16(target, vector if is_there else broadcast(_F0), place)
        for j in range(kp):
            store1(negatives.turned, real(target, j), j * negatives.size + at)
    return vectors


@inlined
def _keep_events(
    user_rows: Any, item_rows: Any, values: Any, weights: Any, own: Any, start: Any, stop: Any, events: Any
) -> Any:
    """Copy the columns of the events [start, stop) that count to scratch; returns how many do."""
    count = ZERO
    for t in range(start, stop):
        value = values[t] if values.size else _F1
        at = count * WORD_BYTES
        store_u32(events.users, np.uint64(user_rows[t]), at)
        store_u32(events.items, np.uint64(item_rows[t]), at)
        store1(events.weight, weights[t] if weights.size else _F1, at)
        store1(events.own, own[t], at)
        count += ONE if value > _F0 else ZERO
    return count


@inlined
def _lane(turned: Any, size: Any, x: Any, other: Any, lane: Any, blocks: Any) -> Any:
    """Lane `lane` of the dots of sixteen negatives with two rows, at addresses x and other."""
    at = lane * WORD_BYTES
    y = load16(turned, lane * size)
    one, two = y * load1(x, at), y * load1(other, at)
    for c in range(ONE, blocks):
        at = (c * _LANES + lane) * WORD_BYTES
        y = load16(turned, (c * _LANES + lane) * size)
        one, two = one + y * load1(x, at), two + y * load1(other, at)
    return one, two


@inlined
def _lanes2(turned: Any, size: Any, x: Any, other: Any, lane: Any, blocks: Any) -> Any:
    a, b = _lane(turned, size, x, other, lane, blocks)
    c, d = _lane(turned, size, x, other, lane + np.uint64(8), blocks)
    return a + c, b + d


@inlined
def _lanes4(turned: Any, size: Any, x: Any, other: Any, lane: Any, blocks: Any) -> Any:
    a, b = _lanes2(turned, size, x, other, lane, blocks)
    c, d = _lanes2(turned, size, x, other, lane + _FOUR, blocks)
    return a + c, b + d


@inlined
def _lanes8(turned: Any, size: Any, x: Any, other: Any, lane: Any, blocks: Any) -> Any:
    a, b = _lanes4(turned, size, x, other, lane, blocks)
    c, d = _lanes4(turned, size, x, other, lane + _TWO, blocks)
    return a + c, b + d


@inlined
def _dots(turned: Any, size: Any, x: Any, other: Any, blocks: Any) -> Any:
    """Dots of sixteen negatives with two rows: a dot's tree over lanes, each lane a vector."""
    a, b = _lanes8(turned, size, x, other, ZERO, blocks)
    c, d = _lanes8(turned, size, x, other, ONE, blocks)
    return a + c, b + d


@inlined
def _score(events: Any, negatives: Any, first: Any, last: Any, vectors: Any, blocks: Any) -> None:
    """Scores of the negatives to events.errors, for events [first, last), two at a time."""
    kp = row_bytes(blocks)
    x = events.x.address
    for v in range(vectors):
        at = v * VECTOR_BYTES
        bias = load16(negatives.bias, at)
        for t in range(first, last, _TWO):
            other = min(t + ONE, last - ONE)
            one, two = _dots(negatives.turned + at, negatives.size, x + t * kp, x + other * kp, blocks)
            store16(events.errors, bias + one, t * negatives.size + at)
            store16(events.errors, bias + two, other * negatives.size + at)


@inlined
def _take_errors(events: Any, negatives: Any, t: Any, own_score: Any, vectors: Any, rates: Any) -> None:
    """Make the scores of event t errors."""
    errors, item, total = events.errors + t * negatives.size, word(events.items, t), broadcast(_F0)
    for v in range(vectors):
        at = v * VECTOR_BYTES
        z = scalar.exp_lanes(clamp(load16(errors, at) - own_score, GAP_MAX)) * load16(negatives.rarity, at)
        differs = bits_of(load16(negatives.rows, at)) ^ item
        z = real_of(choose(differs, ONE, differs, bits_of(z)))  # where it is 0, so is z
        store16(errors, z, at)
        total = z if v == ZERO else total + z
    s = tree_sum(total)
    scale = real(events.weight, t) / (real(events.own, t) + s)
    for v in range(vectors):
        at = v * VECTOR_BYTES
        store16(errors, clamp(load16(errors, at) * scale, rates.error_max), at)
    store1(events.error, -clamp(s * scale, rates.error_max), t * WORD_BYTES)


@inlined
def _combine(
    out: Any, stride: Any, count: Any, weights: Any, row_step: Any, term_step: Any, terms: Any, size: Any, n: Any,
    blocks: Any, fresh: Any, onto: Any,
) -> None:  # fmt: skip
    """Rows i < count of `out`: the sum over j < n of weight (i, j) * row j of `terms`, four rows and sixteen columns a turn.

    Addresses out, rows of `stride` bytes; weights, (i, j) at i * row_step + j * term_step; terms, rows of `size` bytes.
    fresh: begin with the first term and, if onto, add the whole to out; else begin with what out holds.
    """
    for i in range(ZERO, count, _FOUR):
        i1, i2, i3 = min(i + ONE, count - ONE), min(i + _TWO, count - ONE), min(i + _TWO + ONE, count - ONE)
        w0, w1, w2, w3 = (
            weights + i * row_step,
            weights + i1 * row_step,
            weights + i2 * row_step,
            weights + i3 * row_step,
        )
        o0, o1, o2, o3 = out + i * stride, out + i1 * stride, out + i2 * stride, out + i3 * stride
        for c in range(blocks):
            at = c * VECTOR_BYTES
            if fresh:
                y = load16(terms, at)
                a0, a1, a2, a3 = (
                    y * load1(w0, ZERO),
                    y * load1(w1, ZERO),
                    y * load1(w2, ZERO),
                    y * load1(w3, ZERO),
                )
            else:
                a0, a1, a2, a3 = load16(o0, at), load16(o1, at), load16(o2, at), load16(o3, at)
            for j in range(ONE if fresh else ZERO, n):
                y, place = load16(terms, j * size + at), j * term_step
                a0 = a0 + y * load1(w0, place)
                a1 = a1 + y * load1(w1, place)
                a2 = a2 + y * load1(w2, place)
                a3 = a3 + y * load1(w3, place)
            if fresh and onto:
                a0, a1, a2, a3 = (
                    load16(o0, at) + a0,
                    load16(o1, at) + a1,
                    load16(o2, at) + a2,
                    load16(o3, at) + a3,
                )
            store16(o3, a3, at)  # those past the last are the last, and the same
            store16(o2, a2, at)
            store16(o1, a1, at)
            store16(o0, a0, at)


@inlined
def _own_scores(
    users: Any, items: Any, scratch: Any, first: Any, last: Any, count: Any, blocks: Any, adagrad: Any
) -> None:
    """Copy the users' rows of events [first, last) to scratch; the scores of their items to events.error."""
    events = scratch.events
    for t in range(first, last):
        ahead = min(t + _AHEAD, count - ONE)
        prefetch_row(users, word(events.users, ahead), blocks, adagrad)
        prefetch_row(items, word(events.items, ahead), blocks, adagrad)
        start, item = word(events.users, t) * row_bytes(blocks), word(events.items, t)
        for c in range(blocks):
            at = c * VECTOR_BYTES
            store16(events.x.address, load16(users.factors.address, start + at), t * row_bytes(blocks) + at)
        product = dot(events.x, t * row_bytes(blocks), items.factors, item * row_bytes(blocks), blocks)
        store1(events.error, real(items.bias, item) + product, t * WORD_BYTES)


@inlined
def _pull_users(
    items: Any, events: Any, negatives: Any, first: Any, last: Any, m: Any, blocks: Any, rates: Any
) -> None:
    """The pulls of events [first, last) on their users."""
    wide, kp = row_bytes(blocks + ONE), row_bytes(blocks)
    for t in range(first, last):
        own, y = real(events.error, t), word(events.items, t) * kp
        for c in range(blocks):
            at = c * VECTOR_BYTES
            store16(events.pulls, load16(items.factors.address, y + at) * own, t * wide + at)
    _combine(
        events.pulls + first * wide, wide, last - first, events.errors + first * negatives.size, negatives.size,
        WORD_BYTES, negatives.y, kp, m, blocks, False, False,
    )  # fmt: skip
    for t in range(first, last):
        for c in range(blocks):
            at = c * VECTOR_BYTES
            pull, x = load16(events.pulls, t * wide + at), load16(events.x.address, t * kp + at)
            store16(events.pulls, pull + x * rates.l2, t * wide + at)


@inlined
def _pull_negatives(
    events: Any, negatives: Any, first: Any, last: Any, m: Any, vectors: Any, blocks: Any
) -> None:
    """Add the chunk of events [first, last) to the negatives' gradients, which the first chunk begins."""
    wide, kp, onto = row_bytes(blocks + ONE), row_bytes(blocks), first > ZERO
    errors = events.errors + first * negatives.size
    _combine(
        negatives.gradients, wide, m, errors, WORD_BYTES, negatives.size, events.x.address + first * kp, kp,
        last - first, blocks, True, onto,
    )  # fmt: skip
    for v in range(vectors):
        at = v * VECTOR_BYTES
        total = load16(errors, at)
        for t in range(ONE, last - first):
            total = total + load16(errors, t * negatives.size + at)
        store16(negatives.biases, load16(negatives.biases, at) + total if onto else total, at)


@inlined
def _step_item(
    items: Any, item: Any, first: Any, scratch: Any, micro_batch: Any, blocks: Any, adagrad: Any, rates: Any
) -> None:
    """Sum and step one item: its events, then the negatives that it is, from occurrence `first` on."""
    events, negatives = scratch.events, scratch.negatives
    kp, wide = row_bytes(blocks), row_bytes(blocks + ONE)
    total = negatives.gradients + negatives.size // WORD_BYTES * wide
    chunk = total + wide
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
        o = word(scratch.items.next, o)
    fresh = number == ZERO
    if number > CHUNK_EVENTS:
        fold(total, chunk, blocks)
    while o != END:
        n = o - micro_batch
        for c in range(blocks):
            add_block(total, c, fresh, load16(negatives.gradients, n * wide + c * VECTOR_BYTES))
        add_block(total, blocks, fresh, broadcast(real(negatives.biases, n)))
        fresh = False
        o = word(scratch.items.next, o)
    finish(total, chunk, ZERO, number, rates.hot_events, blocks)
    step_row(items, item, total, True, blocks, adagrad, rates, Rounding(ZERO, ZERO), ZERO)


@inlined
def _step_user(
    users: Any, user: Any, first: Any, scratch: Any, blocks: Any, adagrad: Any, rates: Any
) -> None:
    """Sum the pulls on one user, from event `first` on, into the first of them, and step."""
    wide = row_bytes(blocks + ONE)
    total, chunk, number, t = scratch.events.pulls + first * wide, scratch.negatives.gradients, ZERO, first
    while t != END:
        if number > ZERO:
            target, fresh = place_for(total, chunk, number, blocks), number % CHUNK_EVENTS == ZERO
            for c in range(blocks):
                add_block(target, c, fresh, load16(scratch.events.pulls, t * wide + c * VECTOR_BYTES))
        number += ONE
        t = word(scratch.users.next, t)
    finish(total, chunk, number, number, rates.hot_events, blocks)
    step_row(users, user, total, False, blocks, adagrad, rates, Rounding(ZERO, ZERO), ZERO)


@inlined
def _step_rows(
    users: Any,
    items: Any,
    scratch: Any,
    count: Any,
    m: Any,
    micro_batch: Any,
    blocks: Any,
    adagrad: Any,
    rates: Any,
) -> None:
    """Link occurrences by row (an item's events are numbered from 0, its negatives from micro_batch), step all rows."""
    used_users, used_items = ZERO, ZERO
    for t in range(count):
        used_users = link(scratch.users, used_users, word(scratch.events.users, t), t)
        used_items = link(scratch.items, used_items, word(scratch.events.items, t), t)
    for n in range(m):
        used_items = link(scratch.items, used_items, word(scratch.negatives.rows, n), micro_batch + n)
    for q in range(used_items):
        item, first = word(scratch.items.row, q), word(scratch.items.first, q)
        _step_item(items, item, first, scratch, micro_batch, blocks, adagrad, rates)
    for q in range(used_users):
        _step_user(
            users, word(scratch.users.row, q), word(scratch.users.first, q), scratch, blocks, adagrad, rates
        )
    reset(scratch.users, used_users)
    reset(scratch.items, used_items)


@cache
def softmax_kernel(blocks: int, adagrad: int, stamp: int) -> Any:
    """Kernel for rows of `blocks` vectors; `drawn`, `rarity`, `own` are those of `Shared`."""
    BLOCKS, ADAGRAD, STAMP = np.uint64(blocks), int(adagrad), int(stamp)

    @njit(cache=True, nogil=True, error_model="numpy")
    def livefactor_softmax_kernel(
        users: Any, items: Any, user_rows: Any, item_rows: Any, values: Any, weights: Any, drawn: Any, rarity: Any,
        own: Any, is_in_batch: Any, rates: Any, scratch: Any, micro_batch: Any,
    ) -> int:  # fmt: skip
        n, events, negatives = np.uint64(user_rows.size), scratch.events, scratch.negatives
        for start in range(ZERO, n, micro_batch):
            step, stop = start // micro_batch, min(start + micro_batch, n)
            count = _keep_events(user_rows, item_rows, values, weights, own, start, stop, events)
            if count == ZERO:
                continue
            m = stop - start if is_in_batch else np.uint64(drawn.shape[1])
            at = step * np.uint64(drawn.shape[1]) * WORD_BYTES
            rows, rare = address_of(drawn) + at, address_of(rarity) + at
            vectors = _gather_negatives(items, negatives, rows, rare, m, BLOCKS)
            for first in range(ZERO, count, CHUNK_EVENTS):
                last = min(first + CHUNK_EVENTS, count)
                _own_scores(users, items, scratch, first, last, count, BLOCKS, ADAGRAD)
                _score(events, negatives, first, last, vectors, BLOCKS)
                for t in range(first, last):
                    _take_errors(events, negatives, t, real(events.error, t), vectors, rates)
                _pull_users(items, events, negatives, first, last, m, BLOCKS, rates)
                _pull_negatives(events, negatives, first, last, m, vectors, BLOCKS)
            _step_rows(users, items, scratch, count, m, micro_batch, BLOCKS, ADAGRAD, rates)
        return STAMP

    return livefactor_softmax_kernel


class Softmax:
    """Learns from updates."""

    def __init__(self, spec: ModelSpec, users: Table, items: Table, stamp: int) -> None:
        """Compiles the kernels, or loads them from Numba's cache; stamp: as `cpu.SOURCE_STAMP`."""
        self._spec, self._rates = spec, Rates.of(spec)
        self.proposer = Proposer(spec, items)
        self._rows = Rows.of(users), Rows.of(items)
        self._scratch, self._memory = Scratch.of(spec, users, items)
        adagrad = int(spec.optimizer.kind == OptimizerKind.ADAGRAD)
        self._kernel = softmax_kernel(spec.k_padded // LANES, adagrad, stamp)
        empty = np.empty(0, np.uint32)
        nothing = Update(0, empty, empty, None, None, 0, 0)
        self.learn(nothing, self.proposer.propose(nothing))

    def learn(self, update: Update, shared: Shared) -> None:
        """Learn from one record with the negatives that were proposed for it. The GIL is released."""
        columns = (_NO_FLOATS if column is None else column for column in (update.values, update.weights))
        events = update.user_rows, update.item_rows, *columns
        is_in_batch = self._spec.softmax.proposal == Proposal.IN_BATCH
        micro_batch = np.uint64(self._spec.micro_batch)
        self._kernel(*self._rows, *events, *shared, is_in_batch, self._rates, self._scratch, micro_batch)
