"""The GPU kernels of rule SOFTMAX (semantics: `softmax/__init__.py`).

    users      a half-warp per user: its events in order, each with the negatives of its group, and
               its steps. It stores the errors of each event, and the user's factors at it.
    negatives  a thread per negative and factor: the sum over the events of its group
    items      a half-warp per item: the sum over its events, then over its occurrences as a
               negative, and its step

Items do not change before the third launch, and users are independent. So a micro-batch takes three
launches.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import float32

from livefactor_kernels.device.plan import value_of, weight_of
from livefactor_kernels.device.warp import cuda, half_of, half_sum, kernel, lane
from livefactor_kernels.history.cuda import (
    EVENT_BITS,
    begins_row,
    end_of_row,
    event_of,
    first_of_row,
    row_of,
)
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.sums import CHUNK
from livefactor_kernels.optimizers import Method
from livefactor_kernels.optimizers.cuda import Element, Gradient, step_one, step_row
from livefactor_kernels.sgd.cuda_micro_batch import dot, load_row
from livefactor_kernels.softmax import GAP_MAX
from livefactor_kernels.softmax.cuda_shared import PLACE_BITS, place_of, shared_row_of
from livefactor_kernels.spec.model import LANES, OptimizerKind

_F0 = np.float32(0.0)
_ADAGRAD = int(OptimizerKind.ADAGRAD)
_NO_WORD = np.uint32(0)
"""Unused word for the rounding of a step: the factors are float32."""


class Batch(NamedTuple):
    """A micro-batch (all numbers int64): events [start, stop) of the piece.

    Attributes:
        group_events, width: events and negatives per group; the last group has `last_m` negatives.
        rows_at, rarity_at: places of the negatives' rows and rarity in the record's words.
        own_at: place of the rarity of the events' items.
        shared_start, shared_stop: its entries among the sorted negatives of the piece.
    """

    start: int
    stop: int
    group_events: int
    width: int
    last_m: int
    rows_at: int
    rarity_at: int
    own_at: int
    shared_start: int
    shared_stop: int


class Results(NamedTuple):
    """Results of a micro-batch that later kernels use, all float32.

    Attributes:
        own: own[t] is the error of event t's item.
        errors: errors[t * width + n] is the error of negative n.
        x: x[t * k_padded + j] are the factors of the user at event t.
        sums, bias: of the negative in place p = group * width + n: sums[p * k_padded + j], bias[p].
        counts: counts[group] is the number of its events that count.
    """

    own: Any
    errors: Any
    x: Any
    sums: Any
    bias: Any
    counts: Any


class Kernels(NamedTuple):
    """The kernels for an optimiser and a length of rows."""

    users: Any
    negatives: Any
    items: Any


@inlined
def _counts(piece: Any, floats: Any, t: Any) -> Any:
    """Whether the model learns from event t of the piece."""
    return value_of(piece, floats, t) > _F0


@inlined
def _m_of(batch: Any, group: Any) -> Any:
    """Number of negatives of a group."""
    last = (batch.stop - batch.start - 1) // batch.group_events
    return batch.last_m if group == last else batch.width


class Model(NamedTuple):
    """The parts of a model that a kernel needs.

    Attributes:
        items: the rows of the items.
        blocks: a row has `blocks` times 16 factors; a constant of the kernel.
        method: `Method`, a constant of the kernel.
        rates: `Rates` if the method is plain, else `StepRates`.
    """

    items: Any
    blocks: Any
    method: Any
    rates: Any


class Events(NamedTuple):
    """The events of a micro-batch: its piece of the record, its numbers, the record's floats."""

    piece: Any
    batch: Any
    floats: Any


class Vectors(NamedTuple):
    """Working memory of a half-warp, one row each.

    Attributes:
        x: factors of the row that steps.
        y: factors of another row, or a partial sum.
        g: gradient of the row that steps.
    """

    x: Any
    y: Any
    g: Any


@inlined
def _take_errors(events: Any, words: Any, model: Any, results: Any, t: Any, vectors: Any) -> Any:
    """Computes the errors of event t. Returns the error of its item.

    vectors.x has the factors of its user. A lane processes every sixteenth negative.
    """
    (piece, batch, floats), (x, y, _) = events, vectors
    items, blocks, limit = model.items, model.blocks, model.rates.error_max
    group = (t - batch.start) // batch.group_events
    m, first = _m_of(batch, group), group * batch.width
    rows_at, rarity_at = batch.rows_at + first, batch.rarity_at + first
    at, own = (t - batch.start) * batch.width, np.int64(words[piece.items_at + piece.first + t])
    load_row(items.factors, own, y, blocks)
    s_own = items.bias[own] + dot(x, y, blocks)
    for n in range(m):
        row = np.int64(words[rows_at + n])
        load_row(items.factors, row, y, blocks)
        s = items.bias[row] + dot(x, y, blocks)
        if n % LANES == lane():
            results.errors[at + n] = s
    total = _F0
    for n in range(lane(), m, LANES):
        z = scalar.exp(clamp(results.errors[at + n] - s_own, GAP_MAX)) * floats[rarity_at + n]
        if np.int64(words[rows_at + n]) == own:
            z = _F0
        results.errors[at + n] = z
        total = total + z
    total = half_sum(total)
    scale = weight_of(piece, floats, t) / (floats[batch.own_at + piece.first + t] + total)
    for n in range(lane(), m, LANES):
        results.errors[at + n] = clamp(results.errors[at + n] * scale, limit)
    own_error = -clamp(total * scale, limit)
    if lane() == 0:
        results.own[t - batch.start] = own_error
    return own_error


@inlined
def _pull_user(
    events: Any, words: Any, model: Any, results: Any, t: Any, own_error: Any, vectors: Any
) -> None:
    """Computes the gradient of event t's user in vectors.g."""
    (piece, batch, _), (x, y, g) = events, vectors
    items, blocks = model.items, model.blocks
    group = (t - batch.start) // batch.group_events
    m, rows_at, at = _m_of(batch, group), batch.rows_at + group * batch.width, (t - batch.start) * batch.width
    load_row(items.factors, np.int64(words[piece.items_at + piece.first + t]), y, blocks)
    for c in range(blocks):
        g[c] = own_error * y[c]
    for first in range(0, m, LANES):
        mine = results.errors[at + first + lane()] if first + lane() < m else _F0
        for n in range(first, min(first + LANES, m)):
            e = half_of(mine, n - first)
            load_row(items.factors, np.int64(words[rows_at + n]), y, blocks)
            for c in range(blocks):
                g[c] = g[c] + e * y[c]
    for c in range(blocks):
        g[c] = g[c] + model.rates.l2 * x[c]


@inlined
def _add_events(events: Any, keys: Any, model: Any, results: Any, row: Any, first: Any, vectors: Any) -> Any:
    """Adds an item's own events to vectors.g, from its sorted entry `first` on.

    vectors.x has the factors of the item. Returns (sum of the bias's gradient, number of events).
    """
    (piece, batch, floats), (x, chunk, total) = events, vectors
    blocks, rates = model.blocks, model.rates
    bias, number, i = model.items.bias[row], 0, np.int64(first)
    chunk_bias, total_bias = _F0, _F0
    while i < batch.stop and row_of(keys[i]) == row:
        t = event_of(keys[i])
        i += 1
        if not _counts(piece, floats, t):
            continue
        e, place = results.own[t - batch.start], (t - batch.start) * (blocks * LANES) + lane()
        fresh = number % CHUNK == 0
        if fresh and number > 0:
            for c in range(blocks):
                total[c] = chunk[c] if number == CHUNK else total[c] + chunk[c]
            total_bias = chunk_bias if number == CHUNK else total_bias + chunk_bias
        for c in range(blocks):
            term = scalar.pull(e, results.x[place + c * LANES], rates.l2, x[c])
            chunk[c] = term if fresh else chunk[c] + term
        term_bias = scalar.bias_pull(e, rates.bias_l2, bias)
        chunk_bias = term_bias if fresh else chunk_bias + term_bias
        number += 1
    if number > 0:
        for c in range(blocks):
            total[c] = chunk[c] if number <= CHUNK else total[c] + chunk[c]
        total_bias = chunk_bias if number <= CHUNK else total_bias + chunk_bias
    return total_bias, number


@inlined
def _step_by_columns(model: Any, rows: Any, row: Any, x: Any, gradient: Any, scale: Any) -> None:
    """Steps a row by its gradient times `scale`. `x` gets its new factors."""
    blocks, rates, adagrad = model.blocks, model.rates, model.method.optimizer == _ADAGRAD
    at = row * (blocks * LANES) + lane()
    for c in range(blocks):
        place = at + c * LANES
        factor = Element(rows.factors, rows.factor_g, place)
        step_one(factor, gradient.factors[c] * scale, rates.rate, adagrad, rates, _NO_WORD, _NO_WORD)
        x[c] = rows.factors[place]
    if gradient.has_bias and lane() == 0:
        bias = Element(rows.bias, rows.bias_g, row)
        step_one(bias, gradient.bias * scale, rates.bias_rate, adagrad, rates, _NO_WORD, _NO_WORD)


@inlined
def _step_whole(model: Any, rows: Any, row: Any, x: Any, gradient: Any, scale: Any) -> None:
    """Like `_step_by_columns`, for steps that need the whole gradient. It overwrites the
    gradient.
    """
    g, blocks = gradient.factors, model.blocks
    for c in range(blocks):
        g[c] = g[c] * scale
    product = Gradient(g, gradient.bias * scale, gradient.has_bias)
    step_row(rows, row, product, _NO_WORD, blocks, model.method, model.rates)
    load_row(rows.factors, row, x, blocks)


@cache
def softmax_kernels(blocks: int, method: Method) -> Kernels:
    """The kernels for rows of `blocks` times 16 factors, with `Rates` if the method is plain.

    Otherwise they take `StepRates`.
    """
    BLOCKS, METHOD = int(blocks), method
    KP = BLOCKS * LANES
    step = _step_by_columns if method.is_plain else _step_whole

    @kernel
    def livefactor_softmax_users_kernel(
        piece: Any,
        batch: Any,
        keys: Any,
        words: Any,
        floats: Any,
        users: Any,
        items: Any,
        results: Any,
        rates: Any,
    ) -> None:
        """A half-warp per entry. The first entry of a user processes all its entries."""
        x, y = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        g = cuda.local.array(BLOCKS, float32)
        i = batch.start + cuda.grid(1) // LANES
        if i >= batch.stop or not begins_row(keys, i, batch.start):
            return
        model, events, vectors = (
            Model(items, BLOCKS, METHOD, rates),
            Events(piece, batch, floats),
            Vectors(x, y, g),
        )
        user, end = row_of(keys[i]), end_of_row(keys, i, batch.stop)
        load_row(users.factors, user, x, BLOCKS)
        while i < end:
            t = event_of(keys[i])
            i += 1
            if not _counts(piece, floats, t):
                continue
            for c in range(BLOCKS):
                results.x[(t - batch.start) * KP + c * LANES + lane()] = x[c]
            own_error = _take_errors(events, words, model, results, t, vectors)
            _pull_user(events, words, model, results, t, own_error, vectors)
            scale = scalar.hot_scale(rates.hot_events, 1)
            step(model, users, user, x, Gradient(g, _F0, False), scale)

    @kernel
    def livefactor_softmax_negatives_kernel(piece: Any, batch: Any, floats: Any, results: Any) -> None:
        """A thread per negative and factor. Column k_padded is the bias."""
        i = cuda.grid(1)
        p, column = i // (KP + 1), i % (KP + 1)
        if p >= batch.shared_stop - batch.shared_start:
            return
        group, n = p // batch.width, p % batch.width
        total, chunk, number = _F0, _F0, 0
        first = batch.start + group * batch.group_events
        for t in range(first, min(first + batch.group_events, batch.stop)):
            if not _counts(piece, floats, t):
                continue
            place = t - batch.start
            term = results.errors[place * batch.width + n]
            if column < KP:
                term = term * results.x[place * KP + column]
            if number % CHUNK == 0 and number > 0:
                total = chunk if number == CHUNK else total + chunk
            chunk = term if number % CHUNK == 0 else chunk + term
            number += 1
        total = chunk if number <= CHUNK else total + chunk
        if column < KP:
            results.sums[p * KP + column] = total
        else:
            results.bias[p] = total
            results.counts[group] = np.float32(number)

    @kernel
    def livefactor_softmax_items_kernel(
        piece: Any, batch: Any, keys: Any, shared: Any, floats: Any, items: Any, results: Any, rates: Any
    ) -> None:
        """A half-warp per entry and, after them, per sorted negative. The first one of an item
        steps it.
        """
        x, chunk = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        total = cuda.local.array(BLOCKS, float32)
        count, i = batch.stop - batch.start, cuda.grid(1) // LANES
        if i >= count + batch.shared_stop - batch.shared_start:
            return
        if i < count:
            first = np.int64(batch.start + i)
            if not begins_row(keys, first, batch.start):
                return
            row = row_of(keys[first])
            other = first_of_row(shared, batch.shared_start, batch.shared_stop, row, PLACE_BITS)
        else:
            other = np.int64(batch.shared_start + i - count)
            row = shared_row_of(shared[other])
            if other > batch.shared_start and shared_row_of(shared[other - 1]) == row:
                return
            first = first_of_row(keys, batch.start, batch.stop, row, EVENT_BITS)
            if first < batch.stop and row_of(keys[first]) == row:
                # The entry of an event steps this item.
                return
        load_row(items.factors, row, x, BLOCKS)
        model, events = Model(items, BLOCKS, METHOD, rates), Events(piece, batch, floats)
        bias, own_events = _add_events(events, keys, model, results, row, first, Vectors(x, chunk, total))
        number = own_events
        while other < batch.shared_stop and shared_row_of(shared[other]) == row:
            p = place_of(shared[other])
            other += 1
            if results.counts[p // batch.width] == _F0:
                continue
            for c in range(BLOCKS):
                term = results.sums[p * KP + c * LANES + lane()]
                total[c] = term if number == 0 else total[c] + term
            bias = results.bias[p] if number == 0 else bias + results.bias[p]
            number += 1
        if number == 0:
            return
        scale = scalar.hot_scale(rates.hot_events, own_events)
        step(model, items, row, x, Gradient(total, bias, True), scale)

    return Kernels(
        livefactor_softmax_users_kernel, livefactor_softmax_negatives_kernel, livefactor_softmax_items_kernel
    )
