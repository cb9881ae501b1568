"""Sampled softmax in compiled code (semantics: `softmax/__init__.py`).

A micro-batch goes by in chunks of 32 events, whose users' rows and errors stay in the first caches beside the shared
negatives, which lie in scratch. Each loop over them keeps several sums in registers for a vector that it loads: the dots of
four negatives at once, four vectors of a user's gradient, the gradients of four negatives. Which sums share a turn changes
no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from ..optimizers import Method, StepRates
from ..packs import pack1, pack2, pack4, pack8
from ..row_steps import StepRows, prefetch_state, step_row
from ..spec import LANES, ModelSpec, Proposal
from ..steps import ONE, WORD_BYTES, ZERO, Rounding, dot, real, row_bytes, word
from ..tables import Table, reserve
from ..update import Update, writable
from . import GAP_MAX
from .proposal import Proposer

_F0, _F1 = np.float32(0.0), np.float32(1.0)
_LANES = np.uint64(LANES)
_TWO, _THREE, _FOUR, _EIGHT = np.uint64(2), np.uint64(3), np.uint64(4), np.uint64(8)
_AHEAD = np.uint64(8)
_NO_FLOATS = np.empty(0, np.float32)


class Events(NamedTuple):
    """The events of a micro-batch that count, one after the other: addresses of users, items uint32[B]; weight, own
    (rarity of the item), error (of the item) float32[B]; x float32[B, kp]: users' rows; errors float32[B, M]: of the
    negatives; pull float32[kp]: on a user."""

    users: np.uint64
    items: np.uint64
    weight: np.uint64
    own: np.uint64
    error: np.uint64
    x: Any
    errors: np.uint64
    pull: np.uint64


class Negatives(NamedTuple):
    """A micro-batch's negatives, m of them filled up to M, a multiple of 16: addresses of rows uint32[M]; bias, rarity
    (0 where there is none) float32[M]; y float32[M, kp]; quarters float32[4 M]: what `_quarters` leaves; gradients
    float32[M + 2, kp + 16]: theirs, one of an item, one of a chunk; biases float32[M]: their biases' gradients. size: bytes
    of M floats."""

    rows: np.uint64
    bias: np.uint64
    rarity: np.uint64
    y: np.uint64
    quarters: np.uint64
    gradients: np.uint64
    biases: np.uint64
    size: np.uint64


class Scratch(NamedTuple):
    """Working memory of a model's kernel; reused over calls, never part of the state."""

    items: Chains
    events: Events
    negatives: Negatives

    @staticmethod
    def of(spec: ModelSpec, items: Table) -> tuple[Scratch, list[np.ndarray]]:
        """Scratch of a model, and the arrays that must outlive it."""
        arrays: list[np.ndarray] = []

        def floats(*shape: int) -> np.uint64:
            arrays.append(reserve(shape, np.float32))
            return address_of(arrays[-1])

        size, kp, wide = spec.micro_batch, spec.k_padded, spec.k_padded + LANES
        m = -(-spec.negatives_of_event // LANES) * LANES
        chains = Chains(floats(items.capacity), *(floats(size + m) for _ in range(4)))
        columns = [floats(size) for _ in range(5)]
        arrays.append(reserve((size, kp), np.float32))
        events = Events._make([*columns, factors_of(arrays[-1]), floats(size, m), floats(wide)])
        shapes = (m,), (m,), (m,), (m, kp), (4 * m,), (m + 2, wide), (m,)
        negatives = Negatives._make([*(floats(*shape) for shape in shapes), np.uint64(4 * m)])
        return Scratch(chains, events, negatives), arrays


@inlined
def _gather_negatives(
    items: Any, negatives: Any, drawn: Any, rarity: Any, count: Any, blocks: Any, method: Any
) -> Any:
    """Copy the negatives' rows, uint32 at address `drawn`, to scratch; returns how many vectors of them there are."""
    vectors = (count + _LANES - ONE) // _LANES
    for n in range(vectors * _LANES):
        at = n * WORD_BYTES
        prefetch_state(items, word(drawn, min(n + _AHEAD, count - ONE)), blocks, method)
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
def _dots4(x: Any, y: Any, blocks: Any) -> Any:
    """The last four lanes of the dots of the row at address x with rows 0, 4, 1 and 5 from address y on."""
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
    """Of the dots with the row at address x the last four lanes, four negatives a vector: 0 4 1 5, 2 6 3 7, and so on."""
    for q in range(vectors * _FOUR):
        n = (q >> ONE) * _EIGHT + (q & ONE) * _TWO
        store16(negatives.quarters, _dots4(x, negatives.y + n * row_bytes(blocks), blocks), q * VECTOR_BYTES)


@inlined
def _dots(quarters: Any, v: Any) -> Any:
    """Dots of the sixteen negatives from 16 v on."""
    at = v * _FOUR * VECTOR_BYTES
    one = pack2(load16(quarters, at), load16(quarters, at + VECTOR_BYTES))
    at += _TWO * VECTOR_BYTES
    return pack1(one, pack2(load16(quarters, at), load16(quarters, at + VECTOR_BYTES)))


@inlined
def _take_errors(
    events: Any, negatives: Any, t: Any, own_score: Any, vectors: Any, blocks: Any, rates: Any
) -> None:
    """Errors of event t, whose user's row is in scratch and whose item has the score `own_score`."""
    x = events.x.address + t * row_bytes(blocks)
    errors, item, total = events.errors + t * negatives.size, word(events.items, t), broadcast(_F0)
    _quarters(x, negatives, vectors, blocks)
    for v in range(vectors):
        at = v * VECTOR_BYTES
        scores = load16(negatives.bias, at) + _dots(negatives.quarters, v)
        z = scalar.exp(clamp(scores - own_score, GAP_MAX)) * load16(negatives.rarity, at)
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
def _pull_user(items: Any, events: Any, negatives: Any, t: Any, m: Any, blocks: Any, rates: Any) -> None:
    """The gradient of event t's user to events.pull, four vectors of it at a time."""
    kp, x = row_bytes(blocks), events.x.address + t * row_bytes(blocks)
    own, item = real(events.error, t), items.factors.address + word(events.items, t) * kp
    errors = events.errors + t * negatives.size
    for c in range(ZERO, blocks, _FOUR):  # those past the last are the last, and the same
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
def _learn_users(
    users: Any, items: Any, scratch: Any, first: Any, last: Any, count: Any, m: Any, vectors: Any, blocks: Any,
    method: Any, rates: Any,
) -> None:  # fmt: skip
    """Errors of events [first, last), one after the other; each one's user steps at once."""
    events, negatives = scratch.events, scratch.negatives
    kp = row_bytes(blocks)
    for t in range(first, last):
        ahead = min(t + _AHEAD, count - ONE)
        prefetch_state(users, word(events.users, ahead), blocks, method)
        prefetch_state(items, word(events.items, ahead), blocks, method)
        user, item = word(events.users, t), word(events.items, t)
        for c in range(blocks):
            at = c * VECTOR_BYTES
            store16(events.x.address, load16(users.factors.address, user * kp + at), t * kp + at)
        own_score = real(items.bias, item) + dot(events.x, t * kp, items.factors, item * kp, blocks)
        _take_errors(events, negatives, t, own_score, vectors, blocks, rates)
        _pull_user(items, events, negatives, t, m, blocks, rates)
        step_row(users, user, events.pull, False, blocks, method, rates, Rounding(ZERO, ZERO), ZERO)


@inlined
def _sum_block(
    out: Any, errors: Any, size: Any, n: Any, x: Any, kp: Any, count: Any, at: Any, wide: Any, onto: Any
) -> None:
    """Sums of e_n x over `count` events, for negatives n = (n0, n1, n2, n3) and one vector of their gradients."""
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
def _pull_negatives(
    events: Any, negatives: Any, first: Any, last: Any, m: Any, vectors: Any, blocks: Any
) -> None:
    """Add the chunk of events [first, last) to the negatives' gradients, which the first chunk begins."""
    wide, kp, onto = row_bytes(blocks + ONE), row_bytes(blocks), first > ZERO
    errors = events.errors + first * negatives.size
    x = events.x.address + first * kp
    for n in range(ZERO, m, _FOUR):  # those past the last are the last, and the same
        rows = n, min(n + ONE, m - ONE), min(n + _TWO, m - ONE), min(n + _THREE, m - ONE)
        for c in range(blocks):
            at = c * VECTOR_BYTES
            _sum_block(negatives.gradients, errors, negatives.size, rows, x, kp, last - first, at, wide, onto)
    for v in range(vectors):
        at = v * VECTOR_BYTES
        total = load16(errors, at)
        for t in range(ONE, last - first):
            total = total + load16(errors, t * negatives.size + at)
        store16(negatives.biases, load16(negatives.biases, at) + total if onto else total, at)


@inlined
def _step_item(
    items: Any, item: Any, first: Any, scratch: Any, micro_batch: Any, blocks: Any, method: Any, rates: Any
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
    step_row(items, item, total, True, blocks, method, rates, Rounding(ZERO, ZERO), ZERO)


@inlined
def _step_items(
    items: Any, scratch: Any, count: Any, m: Any, micro_batch: Any, blocks: Any, method: Any, rates: Any
) -> None:
    """Link occurrences by item (events are numbered from 0, negatives from micro_batch), and step all items."""
    used = ZERO
    for t in range(count):
        used = link(scratch.items, used, word(scratch.events.items, t), t)
    for n in range(m):
        used = link(scratch.items, used, word(scratch.negatives.rows, n), micro_batch + n)
    for q in range(used):
        item, first = word(scratch.items.row, q), word(scratch.items.first, q)
        _step_item(items, item, first, scratch, micro_batch, blocks, method, rates)
    reset(scratch.items, used)


@cache
def softmax_kernel(blocks: int, method: Method, stamp: int) -> Any:
    """Kernel for rows of `blocks` vectors; `drawn`, `rarity`, `own` are those of `Shared`."""
    BLOCKS, METHOD, STAMP = np.uint64(blocks), method, int(stamp)

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
            vectors = _gather_negatives(items, negatives, rows, rare, m, BLOCKS, METHOD)
            for first in range(ZERO, count, CHUNK_EVENTS):
                last = min(first + CHUNK_EVENTS, count)
                _learn_users(users, items, scratch, first, last, count, m, vectors, BLOCKS, METHOD, rates)
                _pull_negatives(events, negatives, first, last, m, vectors, BLOCKS)
            _step_items(items, scratch, count, m, micro_batch, BLOCKS, METHOD, rates)
        return STAMP

    return livefactor_softmax_kernel


class Softmax:
    """Learns from updates."""

    records = False

    def __init__(self, spec: ModelSpec, users: Table, items: Table, stamp: int) -> None:
        """Compiles the kernels, or loads them from Numba's cache; stamp: as `cpu.SOURCE_STAMP`."""
        self._spec, self._rates = spec, StepRates.of(spec)
        self.proposer = Proposer(spec, items.capacity)
        self._rows = StepRows.of(users), StepRows.of(items)
        self._scratch, self._memory = Scratch.of(spec, items)
        self._kernel = softmax_kernel(spec.k_padded // LANES, Method.of(spec), stamp)
        empty = np.empty(0, np.uint32)
        nothing = Update(0, empty, empty, None, None, 0, 0)
        self.prepare([nothing])
        self.learn(nothing)

    def joins(self, updates: Sequence[Update]) -> bool:
        """One record a call: micro-batches are cut within it."""
        return len(updates) == 1

    def prepare(self, updates: Sequence[Update]) -> np.ndarray:
        """Propose a record's negatives: item rows uint32[any]."""
        self._shared = self.proposer.propose(updates[0])
        return self._shared.rows.reshape(-1)

    def learn(self, update: Update) -> None:
        """Learn from one record with the negatives that were proposed for it. The GIL is released."""
        given = update.values, update.weights
        columns = (_NO_FLOATS if column is None else writable(column) for column in given)
        events = update.user_rows, update.item_rows, *columns
        is_in_batch = self._spec.softmax.proposal == Proposal.IN_BATCH
        micro_batch = np.uint64(self._spec.micro_batch)
        self._kernel(
            *self._rows, *events, *self._shared, is_in_batch, self._rates, self._scratch, micro_batch
        )
