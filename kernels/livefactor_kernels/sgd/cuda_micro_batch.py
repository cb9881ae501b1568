"""GPU kernels of a micro-batch: errors and sums of the users' chunks, sums of the items' chunks, then one step
a row.

    users    a half-warp a chunk: dots, errors (kept for the items) and the chunk's gradient, old rows only
    items    a half-warp a chunk: the chunk's gradient from the errors, old rows only
    step     a thread a factor: a row's chunk sums left to right, scaled if the row is hot, and its step; or a half-warp
             a row, where a step needs all of its gradient (`optimizers/cuda.py`)

Between the three lies a barrier: three launches for a micro-batch; or, where micro-batches are small, one block
that walks over all of a span's (`walk`), with the block's barrier; or a grid that is on the device as a whole
(`walk_together`), with a barrier over all of it. All run the same functions, in
which the order of every sum is the semantics': so neither the launch shape nor the number of blocks shows in
a bit. A row named by half of the batch is many chunks, summed by as many half-warps.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import float32

from livefactor_kernels.device.factors import load_factor, store_factor
from livefactor_kernels.device.plan import event_of, row_of, value_of, weight_of
from livefactor_kernels.device.warp import cuda, half_sum, kernel, lane
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import clamp, inlined
from livefactor_kernels.optimizers import Method
from livefactor_kernels.optimizers.cuda import step_row
from livefactor_kernels.sgd.cuda_regularization import l2_of, load_kept, told, told_dot
from livefactor_kernels.spec.model import LANES, Loss, OptimizerKind
from livefactor_kernels.tables import ITEMS, USERS

_SQUARED, _LOGISTIC, _BPR = int(Loss.SQUARED), int(Loss.LOGISTIC), int(Loss.BPR)
_ADAGRAD = int(OptimizerKind.ADAGRAD)
_F0 = np.float32(0.0)
_AHEAD = 8
"""Chunk sums of a hot row that are loaded at once before they are added."""


class Kernels(NamedTuple):
    """The kernels of a loss, an optimiser and a length of rows."""

    users: Any
    items: Any
    step: Any
    walk: Any
    walk_together: Any


@inlined
def load_row(factors: Any, row: Any, out: Any, blocks: Any) -> None:
    """This lane's factors of a row: out[c] = factor c * 16 + lane."""
    at = row * (blocks * LANES) + lane()
    for c in range(blocks):
        out[c] = load_factor(factors, at + c * LANES)


@inlined
def dot(x: Any, y: Any, blocks: Any) -> Any:
    """Dot product (float32, in all lanes) of two rows as `load_row` gives them, in the order of the
    semantics."""
    total = x[0] * y[0]
    for c in range(1, blocks):
        total = total + x[c] * y[c]
    return half_sum(total)


@inlined
def _add(total: Any, c: Any, fresh: Any, term: Any) -> None:
    total[c] = term if fresh else total[c] + term


@inlined
def _store(sums: Any, place: Any, total: Any, total_bias: Any, events: Any, blocks: Any) -> None:
    at = place * ((blocks + 1) * LANES)
    for c in range(blocks):
        sums.gradients[at + c * LANES + lane()] = total[c]
    if lane() == 0:
        sums.gradients[at + blocks * LANES] = total_bias
        sums.events[place] = np.int32(events)


@inlined
def _event_before(span: Any, plan: Any, start: Any, entries: Any) -> Any:
    """Event of the entry before a chunk in its segment, -1 if the chunk is the segment's first."""
    if start > 0 and plan.keys[start - 1] >> span.entry_bits == plan.keys[start] >> span.entry_bits:
        return event_of(span, plan.keys[start - 1], entries)[0]
    return np.int64(-1)


@inlined
def _user_chunk(
    span: Any, plan: Any, words: Any, floats: Any, users: Any, items: Any, sums: Any, rates: Any, mean: Any,
    chunk: Any, place: Any, scratch: Any, blocks: Any, loss: Any, method: Any,
) -> None:  # fmt: skip
    """Errors and gradient of one chunk of a user's entries. scratch: (x, y, positive's y, total, kept columns) to work
    in."""
    x, y, y_positive, total, kept = scratch
    start, stop = plan.chunk_start[chunk], plan.chunk_start[chunk + 1]
    row = row_of(span, plan.keys[start])
    load_row(users.factors, row, x, blocks)
    l2, bias_l2 = l2_of(users, row, rates.l2, method), l2_of(users, row, rates.bias_l2, method)
    bias, total_bias, s_positive = users.bias[row], _F0, _F0
    before, events = _event_before(span, plan, start, span.user_entries), 0
    last = np.int64(-1)  # the event whose positive and columns are loaded
    for i in range(start, stop):
        fresh = i == start
        t, number = event_of(span, plan.keys[i], span.user_entries)
        slot = number + 1 if loss == _BPR else number
        if (loss == _BPR or method.drops) and t != last:
            if method.drops:
                load_kept(plan.dropped[t], kept, blocks, rates)
            if loss == _BPR:
                positive = np.int64(words[span.items_at + span.first + t])
                load_row(items.factors, positive, y_positive, blocks)
                s_positive = scalar.score(
                    _F0, bias, items.bias[positive], told_dot(x, y_positive, kept, blocks, method)
                )
            last = t
        item = np.int64(words[span.items_at + span.first + t])
        if slot > 0:
            item = np.int64(plan.negatives[t * span.width + slot - 1])
        load_row(items.factors, item, y, blocks)
        s = scalar.score(mean, bias, items.bias[item], told_dot(x, y, kept, blocks, method))
        weight = weight_of(span, floats, t)
        if loss == _BPR:
            e = scalar.bpr_error(s_positive, s, weight, rates.error_max)
            for c in range(blocks):
                difference = told(y_positive[c] - y[c], kept, c, method)
                _add(total, c, fresh, scalar.pull(e, difference, l2, x[c]))
        else:
            target = value_of(span, floats, t) if slot == 0 else _F0
            if loss == _SQUARED:
                e = scalar.squared_error(s, target, weight, rates.error_max)
            else:
                e = scalar.logistic_error(s, target, weight, rates.error_max)
            for c in range(blocks):
                _add(total, c, fresh, scalar.pull(e, told(y[c], kept, c, method), l2, x[c]))
            bias_term = scalar.bias_pull(e, bias_l2, bias)
            total_bias = bias_term if fresh else total_bias + bias_term
        if lane() == 0:
            plan.errors[t * (span.width + 1) + slot] = e
        events += 1 if t != before else 0
        before = t
    _store(sums, place, total, total_bias, events, blocks)


@inlined
def _item_chunk(
    span: Any, plan: Any, words: Any, users: Any, items: Any, sums: Any, rates: Any, chunk: Any, place: Any,
    scratch: Any, blocks: Any, loss: Any, method: Any,
) -> None:  # fmt: skip
    """Gradient of one chunk of an item's entries, from the errors. scratch as in `_user_chunk`."""
    x, y, _, total, kept = scratch
    start, stop = plan.chunk_start[chunk], plan.chunk_start[chunk + 1]
    row = row_of(span, plan.keys[start])
    load_row(items.factors, row, y, blocks)
    l2, bias_l2 = l2_of(items, row, rates.l2, method), l2_of(items, row, rates.bias_l2, method)
    bias, total_bias = items.bias[row], _F0
    before, events = _event_before(span, plan, start, span.item_entries), 0
    for i in range(start, stop):
        fresh = i == start
        t, number = event_of(span, plan.keys[i], span.item_entries)
        slot = number
        if loss == _BPR:
            slot = number + 1 if number < span.width else number - span.width + 1
        e = plan.errors[t * (span.width + 1) + slot]
        if loss == _BPR and number >= span.width:
            e = -e
        if method.drops:
            load_kept(plan.dropped[t], kept, blocks, rates)
        load_row(users.factors, np.int64(words[span.users_at + span.first + t]), x, blocks)
        for c in range(blocks):
            _add(total, c, fresh, scalar.pull(e, told(x[c], kept, c, method), l2, y[c]))
        bias_term = scalar.bias_pull(e, bias_l2, bias)
        total_bias = bias_term if fresh else total_bias + bias_term
        events += 1 if t != before else 0
        before = t
    _store(sums, place, total, total_bias, events, blocks)


@inlined
def _row_sum(sums: Any, at: Any, count: Any, stride: Any, ahead: Any) -> Any:
    """Sum (float32), left to right, of `count` chunk sums from gradients[at] on, `stride` apart."""
    total, i = sums.gradients[at], 1
    while i + _AHEAD <= count:
        for j in range(_AHEAD):
            ahead[j] = sums.gradients[at + (i + j) * stride]
        for j in range(_AHEAD):
            total = total + ahead[j]
        i += _AHEAD
    while i < count:
        total = total + sums.gradients[at + i * stride]
        i += 1
    return total


@inlined
def step_one(
    values: Any,
    accumulators: Any,
    at: Any,
    g: Any,
    rate: Any,
    adagrad: Any,
    rates: Any,
    word: Any,
    column: Any,
) -> None:
    """Step one factor or bias by its gradient; word, column: as `store_factor`."""
    x = load_factor(values, at)
    if adagrad:
        total = scalar.adagrad_sum(accumulators[at], g)
        stepped = scalar.adagrad_step(x, g, total, rate, rates.eps, rates.factor_max)
        store_factor(values, at, stepped, word, column)
        accumulators[at] = clamp(total, rates.g_max)
    else:
        store_factor(values, at, scalar.sgd_step(x, g, rate, rates.factor_max), word, column)


@inlined
def _step_column(
    span: Any, plan: Any, side: Any, rows: Any, sums: Any, rates: Any, micro_batch: Any, number: Any,
    column: Any, scratch: Any, blocks: Any, loss: Any, method: Any,
) -> None:  # fmt: skip
    """Step one column (k_padded: the bias) of row `number` of a side's micro-batch, if there is one such."""
    group = side * span.batches + micro_batch
    segment = plan.group_segment[group] + number
    if segment >= plan.group_segment[group + 1]:
        return
    first, width = plan.segment_chunk[segment], blocks * LANES
    count = plan.segment_chunk[segment + 1] - first
    place = first - plan.group_chunk[group] + side * sums.items_at
    if column == width and side == USERS and loss == _BPR:
        return  # the user's bias cancels in the difference of the scores
    events = np.int64(0)
    for c in range(count):
        events += sums.events[place + c]
    stride, adagrad = width + LANES, method.optimizer == _ADAGRAD
    g = _row_sum(sums, place * stride + column, count, stride, scratch[0])
    g = g * scalar.hot_scale(rates.hot_events, events)
    row, word = row_of(span, plan.keys[plan.chunk_start[first]]), plan.segment_word[segment]
    if column == width:
        step_one(rows.bias, rows.bias_g, row, g, rates.bias_rate, adagrad, rates, word, column)
    else:
        at = row * width + column
        step_one(rows.factors, rows.factor_g, at, g, rates.rate, adagrad, rates, word, column)


@inlined
def _step_lane(
    span: Any, plan: Any, side: Any, rows: Any, sums: Any, rates: Any, micro_batch: Any, number: Any,
    column: Any, scratch: Any, blocks: Any, loss: Any, method: Any,
) -> None:  # fmt: skip
    """As `_step_column`, the whole row by a half-warp; column: the lane. scratch: (ahead, a row)."""
    ahead, gradient = scratch
    group = side * span.batches + micro_batch
    segment = plan.group_segment[group] + number
    if segment >= plan.group_segment[group + 1]:
        return
    first, width = plan.segment_chunk[segment], blocks * LANES
    count = plan.segment_chunk[segment + 1] - first
    place = first - plan.group_chunk[group] + side * sums.items_at
    events = np.int64(0)
    for c in range(count):
        events += sums.events[place + c]
    stride, scale = width + LANES, scalar.hot_scale(rates.hot_events, events)
    for c in range(blocks):
        at = place * stride + c * LANES + column
        gradient[c] = _row_sum(sums, at, count, stride, ahead) * scale
    g_bias = _row_sum(sums, place * stride + width, count, stride, ahead) * scale
    row, word = row_of(span, plan.keys[plan.chunk_start[first]]), plan.segment_word[segment]
    with_bias = side == ITEMS or loss != _BPR  # a user's cancels in the difference of the scores
    step_row(rows, row, gradient, g_bias, with_bias, word, blocks, method, rates)


def threads_of_a_step(blocks: int, method: Method) -> int:
    """Threads that step a row: one for each column and the bias, or a half-warp."""
    return blocks * LANES + 1 if method.is_plain else LANES


@cache
def micro_batch_kernels(blocks: int, loss: int, method: Method) -> Kernels:
    """Kernels for rows of `blocks` times 16 factors. They take `Rates` and `DeviceRows` if the method is plain, else `StepRates` and
    `StateRows`."""
    return Kernels(
        *_chunk_kernels(int(blocks), int(loss), method),
        _step_kernel(int(blocks), int(loss), method),
        _walk_kernel(int(blocks), int(loss), method, False),
        _walk_kernel(int(blocks), int(loss), method, True),
    )


def _chunk_kernels(BLOCKS: int, LOSS: int, method: Method) -> tuple[Any, Any]:
    METHOD, KEPT = method, BLOCKS if method.drops else 1

    @kernel
    def livefactor_users_kernel(
        span: Any, plan: Any, words: Any, floats: Any, users: Any, items: Any, sums: Any, rates: Any,
        micro_batch: Any,
    ) -> None:  # fmt: skip
        x, y = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        z, total = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        kept = cuda.local.array(KEPT, float32)
        place = cuda.grid(1) // LANES
        chunk = plan.group_chunk[micro_batch] + place
        if chunk >= plan.group_chunk[micro_batch + 1]:
            return
        mean = floats[span.means_at + span.first // span.batch + micro_batch] if LOSS == _SQUARED else _F0
        scratch = (x, y, z, total, kept)
        _user_chunk(
            span, plan, words, floats, users, items, sums, rates, mean, chunk, place, scratch, BLOCKS, LOSS, METHOD
        )  # fmt: skip

    @kernel
    def livefactor_items_kernel(
        span: Any, plan: Any, words: Any, users: Any, items: Any, sums: Any, rates: Any, micro_batch: Any
    ) -> None:
        x, y = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        total, kept = cuda.local.array(BLOCKS, float32), cuda.local.array(KEPT, float32)
        place, group = cuda.grid(1) // LANES, span.batches + micro_batch
        chunk = plan.group_chunk[group] + place
        if chunk >= plan.group_chunk[group + 1]:
            return
        place, scratch = place + sums.items_at, (x, y, y, total, kept)
        _item_chunk(span, plan, words, users, items, sums, rates, chunk, place, scratch, BLOCKS, LOSS, METHOD)

    return livefactor_users_kernel, livefactor_items_kernel


def _step_kernel(BLOCKS: int, LOSS: int, method: Method) -> Any:
    METHOD, THREADS = method, threads_of_a_step(BLOCKS, method)
    step = _step_column if method.is_plain else _step_lane

    @kernel
    def livefactor_step_kernel(
        span: Any, plan: Any, users: Any, items: Any, sums: Any, rates: Any, micro_batch: Any
    ) -> None:
        """A thread a column of a row, or a lane a row; the grid's second dimension is the side."""
        scratch = (cuda.local.array(_AHEAD, float32), cuda.local.array(BLOCKS, float32))
        i, side = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
        number, column = i // THREADS, i % THREADS
        rows = users if side == USERS else items
        step(
            span, plan, side, rows, sums, rates, micro_batch, number, column, scratch, BLOCKS, LOSS, METHOD
        )  # fmt: skip

    return livefactor_step_kernel


def _walk_kernel(BLOCKS: int, LOSS: int, method: Method, WHOLE_GRID: bool) -> Any:
    METHOD, THREADS = method, threads_of_a_step(BLOCKS, method)
    KEPT = BLOCKS if method.drops else 1
    step = _step_column if method.is_plain else _step_lane

    @inlined
    def barrier() -> None:
        if WHOLE_GRID:
            cuda.cg.this_grid().sync()
        else:
            cuda.syncthreads()

    @kernel
    def livefactor_walk_kernel(
        span: Any, plan: Any, words: Any, floats: Any, users: Any, items: Any, sums: Any, rates: Any
    ) -> None:
        """All micro-batches of a span, one after the other, by one block or by a grid that runs all at once."""
        x, y = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        z, total = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        kept = cuda.local.array(KEPT, float32)
        scratch, stepping = (x, y, z, total, kept), (cuda.local.array(_AHEAD, float32), total)
        thread, threads = cuda.grid(1), cuda.gridsize(1)
        for m in range(span.batches):
            mean = floats[span.means_at + span.first // span.batch + m] if LOSS == _SQUARED else _F0
            first = plan.group_chunk[m]
            for chunk in range(first + thread // LANES, plan.group_chunk[m + 1], threads // LANES):
                _user_chunk(
                    span, plan, words, floats, users, items, sums, rates, mean, chunk, chunk - first, scratch,
                    BLOCKS, LOSS, METHOD,
                )  # fmt: skip
            barrier()
            group = span.batches + m
            first = plan.group_chunk[group]
            for chunk in range(first + thread // LANES, plan.group_chunk[group + 1], threads // LANES):
                place = chunk - first + sums.items_at
                _item_chunk(
                    span, plan, words, users, items, sums, rates, chunk, place, scratch, BLOCKS, LOSS, METHOD
                )
            barrier()
            for side in range(2):
                rows, group = users if side == USERS else items, side * span.batches + m
                count = plan.group_segment[group + 1] - plan.group_segment[group]
                for i in range(thread, count * THREADS, threads):
                    number, column = i // THREADS, i % THREADS
                    step(
                        span, plan, side, rows, sums, rates, m, number, column, stepping, BLOCKS, LOSS, METHOD
                    )  # fmt: skip
            barrier()

    return livefactor_walk_kernel


assert (USERS, ITEMS) == (0, 1)  # a side is also the number of its groups, its places and its blocks
