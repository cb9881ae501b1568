"""GPU kernels of a micro-batch: the sums of user chunks and item chunks, then the steps.

    users    a half-warp per chunk: dot products, errors (stored for the items), and the gradient
             of the chunk, all from old rows
    items    a half-warp per chunk: the gradient of the chunk from the errors and old rows
    step     a thread per factor: the sum of a row's chunks from left to right, scaled if the row
             is hot, and its step. If a step needs the whole gradient, a half-warp per row
             (`optimizers/cuda.py`).

A barrier separates the three. There are three ways to run them. A micro-batch takes three launches.
If micro-batches are small, one block processes all micro-batches of a span (`walk`) with the
block's barrier. Or the whole grid is resident on the device (`walk_together`) and has a barrier
over all blocks. All of them call the same functions, which sum in the order of the semantics. So
the shape of a launch and the number of blocks change no bit. A row with many occurrences has many
chunks, which as many half-warps sum.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import float32

from livefactor_kernels.device.factors import load_factor
from livefactor_kernels.device.plan import event_of, row_of, value_of, weight_of
from livefactor_kernels.device.warp import cuda, half_sum, kernel, lane
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers import Method
from livefactor_kernels.optimizers.cuda import Element, Gradient, step_one, step_row
from livefactor_kernels.sgd.cuda_regularization import drop, dropped_dot, l2_of, load_keep_scales
from livefactor_kernels.spec.model import LANES, Loss, OptimizerKind
from livefactor_kernels.tables import ITEMS, USERS

_SQUARED, _LOGISTIC, _BPR = int(Loss.SQUARED), int(Loss.LOGISTIC), int(Loss.BPR)
_ADAGRAD = int(OptimizerKind.ADAGRAD)
_F0 = np.float32(0.0)
_AHEAD = 8
"""Number of chunk sums of a hot row that are loaded together before they are added."""


class Work(NamedTuple):
    """A span of a record: its numbers, and its plan on the device."""

    span: Any
    plan: Any


class Columns(NamedTuple):
    """The columns of a record on the device, as words and as floats."""

    words: Any
    floats: Any


class Model(NamedTuple):
    """The parts of a model that a kernel needs.

    Attributes:
        users, items: rows.
        blocks: a row has `blocks` times 16 factors; a constant of the kernel.
        loss, method: number of a `Loss`, and `Method`; constants of the kernel.
        rates: `Rates` if the method is plain, else `StepRates`.
    """

    users: Any
    items: Any
    blocks: Any
    loss: Any
    method: Any
    rates: Any


class Target(NamedTuple):
    """The place of a chunk's gradient in the sums."""

    sums: Any
    place: Any


class Segment(NamedTuple):
    """Row `number` of a side's micro-batch."""

    side: Any
    micro_batch: Any
    number: Any


class Kernels(NamedTuple):
    """The kernels for a loss, an optimiser and a length of rows."""

    users: Any
    items: Any
    step: Any
    walk: Any
    walk_together: Any


@inlined
def load_row(factors: Any, row: Any, out: Any, blocks: Any) -> None:
    """Loads this lane's factors of a row: out[c] = factor c * 16 + lane."""
    at = row * (blocks * LANES) + lane()
    for c in range(blocks):
        out[c] = load_factor(factors, at + c * LANES)


@inlined
def dot(x: Any, y: Any, blocks: Any) -> Any:
    """Dot product (float32, in all lanes) of two rows of `load_row`, in the order of the
    semantics.
    """
    total = x[0] * y[0]
    for c in range(1, blocks):
        total = total + x[c] * y[c]
    return half_sum(total)


@inlined
def _add(total: Any, c: Any, fresh: Any, term: Any) -> None:
    total[c] = term if fresh else total[c] + term


@inlined
def _store(target: Any, total: Any, total_bias: Any, events: Any, blocks: Any) -> None:
    sums, place = target
    at = place * ((blocks + 1) * LANES)
    for c in range(blocks):
        sums.gradients[at + c * LANES + lane()] = total[c]
    if lane() == 0:
        sums.gradients[at + blocks * LANES] = total_bias
        sums.events[place] = np.int32(events)


@inlined
def _event_before(span: Any, plan: Any, start: Any, entries: Any) -> Any:
    """The event of the entry before a chunk in its segment. -1 for the first chunk of a segment."""
    if start > 0 and plan.keys[start - 1] >> span.entry_bits == plan.keys[start] >> span.entry_bits:
        return event_of(span, plan.keys[start - 1], entries)[0]
    return np.int64(-1)


@inlined
def _user_chunk(
    work: Any, columns: Any, model: Any, target: Any, mean: Any, chunk: Any, scratch: Any
) -> None:
    """Computes the errors and the gradient of one chunk of a user's entries.

    `scratch` is working memory: (x, y, positive's y, total, dropout factors).
    """
    (span, plan), (words, floats), (x, y, y_positive, total, keep_scales) = work, columns, scratch
    users, items, blocks, loss, method, rates = model
    start, stop = plan.chunk_start[chunk], plan.chunk_start[chunk + 1]
    row = row_of(span, plan.keys[start])
    load_row(users.factors, row, x, blocks)
    l2, bias_l2 = l2_of(users, row, rates.l2, method), l2_of(users, row, rates.bias_l2, method)
    bias, total_bias, s_positive = users.bias[row], _F0, _F0
    before, events = _event_before(span, plan, start, span.user_entries), 0
    # The event whose positive and dropout factors are loaded.
    last = np.int64(-1)
    for i in range(start, stop):
        fresh = i == start
        t, number = event_of(span, plan.keys[i], span.user_entries)
        slot = number + 1 if loss == _BPR else number
        if (loss == _BPR or method.drops) and t != last:
            if method.drops:
                load_keep_scales(plan.dropout_words[t], keep_scales, blocks, rates)
            if loss == _BPR:
                positive = np.int64(words[span.items_at + span.first + t])
                load_row(items.factors, positive, y_positive, blocks)
                s_positive = scalar.score(
                    _F0, bias, items.bias[positive], dropped_dot(x, y_positive, keep_scales, blocks, method)
                )
            last = t
        item = np.int64(words[span.items_at + span.first + t])
        if slot > 0:
            item = np.int64(plan.negatives[t * span.width + slot - 1])
        load_row(items.factors, item, y, blocks)
        s = scalar.score(mean, bias, items.bias[item], dropped_dot(x, y, keep_scales, blocks, method))
        weight = weight_of(span, floats, t)
        if loss == _BPR:
            e = scalar.bpr_error(s_positive, s, weight, rates.error_max)
            for c in range(blocks):
                difference = drop(y_positive[c] - y[c], keep_scales, c, method)
                _add(total, c, fresh, scalar.pull(e, difference, l2, x[c]))
        else:
            value = value_of(span, floats, t) if slot == 0 else _F0
            if loss == _SQUARED:
                e = scalar.squared_error(s, value, weight, rates.error_max)
            else:
                e = scalar.logistic_error(s, value, weight, rates.error_max)
            for c in range(blocks):
                _add(total, c, fresh, scalar.pull(e, drop(y[c], keep_scales, c, method), l2, x[c]))
            bias_term = scalar.bias_pull(e, bias_l2, bias)
            total_bias = bias_term if fresh else total_bias + bias_term
        if lane() == 0:
            plan.errors[t * (span.width + 1) + slot] = e
        events += 1 if t != before else 0
        before = t
    _store(target, total, total_bias, events, blocks)


@inlined
def _item_chunk(work: Any, words: Any, model: Any, target: Any, chunk: Any, scratch: Any) -> None:
    """Computes the gradient of one chunk of an item's entries from the errors.

    `scratch` is that of `_user_chunk`.
    """
    (span, plan), (x, y, _, total, keep_scales) = work, scratch
    users, items, blocks, loss, method, rates = model
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
            load_keep_scales(plan.dropout_words[t], keep_scales, blocks, rates)
        load_row(users.factors, np.int64(words[span.users_at + span.first + t]), x, blocks)
        for c in range(blocks):
            _add(total, c, fresh, scalar.pull(e, drop(x[c], keep_scales, c, method), l2, y[c]))
        bias_term = scalar.bias_pull(e, bias_l2, bias)
        total_bias = bias_term if fresh else total_bias + bias_term
        events += 1 if t != before else 0
        before = t
    _store(target, total, total_bias, events, blocks)


@inlined
def _row_sum(sums: Any, at: Any, count: Any, stride: Any, ahead: Any) -> Any:
    """Sum (float32) of `count` chunk sums from gradients[at] on, `stride` apart, left to right."""
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
def _step_column(
    work: Any, segment: Any, rows: Any, column: Any, sums: Any, scratch: Any, model: Any
) -> None:
    """Steps one column of a row of a micro-batch, if the row exists. `segment` is a `Segment`.

    Column k_padded is the bias.
    """
    (span, plan), (side, micro_batch, number) = work, segment
    blocks, loss, method, rates = model.blocks, model.loss, model.method, model.rates
    group = side * span.batches + micro_batch
    at_segment = plan.group_segment[group] + number
    if at_segment >= plan.group_segment[group + 1]:
        return
    first, width = plan.segment_chunk[at_segment], blocks * LANES
    count = plan.segment_chunk[at_segment + 1] - first
    place = first - plan.group_chunk[group] + side * sums.items_at
    if column == width and side == USERS and loss == _BPR:
        # The user's bias cancels in the difference of the scores.
        return
    events = np.int64(0)
    for c in range(count):
        events += sums.events[place + c]
    stride, adagrad = width + LANES, method.optimizer == _ADAGRAD
    g = _row_sum(sums, place * stride + column, count, stride, scratch[0])
    g = g * scalar.hot_scale(rates.hot_events, events)
    row, word = row_of(span, plan.keys[plan.chunk_start[first]]), plan.segment_word[at_segment]
    if column == width:
        bias = Element(rows.bias, rows.bias_g, row)
        step_one(bias, g, rates.bias_rate, adagrad, rates, word, column)
    else:
        factor = Element(rows.factors, rows.factor_g, row * width + column)
        step_one(factor, g, rates.rate, adagrad, rates, word, column)


@inlined
def _step_lane(work: Any, segment: Any, rows: Any, column: Any, sums: Any, scratch: Any, model: Any) -> None:
    """Like `_step_column`, for a whole row by a half-warp. `column` is the lane.

    `scratch` is (ahead, a row).
    """
    (span, plan), (side, micro_batch, number), (ahead, gradient) = work, segment, scratch
    blocks, loss, method, rates = model.blocks, model.loss, model.method, model.rates
    group = side * span.batches + micro_batch
    at_segment = plan.group_segment[group] + number
    if at_segment >= plan.group_segment[group + 1]:
        return
    first, width = plan.segment_chunk[at_segment], blocks * LANES
    count = plan.segment_chunk[at_segment + 1] - first
    place = first - plan.group_chunk[group] + side * sums.items_at
    events = np.int64(0)
    for c in range(count):
        events += sums.events[place + c]
    stride, scale = width + LANES, scalar.hot_scale(rates.hot_events, events)
    for c in range(blocks):
        at = place * stride + c * LANES + column
        gradient[c] = _row_sum(sums, at, count, stride, ahead) * scale
    g_bias = _row_sum(sums, place * stride + width, count, stride, ahead) * scale
    row, word = row_of(span, plan.keys[plan.chunk_start[first]]), plan.segment_word[at_segment]
    # With BPR the user's bias cancels in the difference of the scores.
    has_bias = side == ITEMS or loss != _BPR
    step_row(rows, row, Gradient(gradient, g_bias, has_bias), word, blocks, method, rates)


def threads_of_a_step(blocks: int, method: Method) -> int:
    """Threads that step a row: one per column and one for the bias, or a half-warp."""
    return blocks * LANES + 1 if method.is_plain else LANES


@cache
def micro_batch_kernels(blocks: int, loss: int, method: Method) -> Kernels:
    """The kernels for rows of `blocks` times 16 factors.

    They take `Rates` and `DeviceRows` if the method is plain, else `StepRates` and `StateRows`.
    """
    return Kernels(
        *_chunk_kernels(int(blocks), int(loss), method),
        _step_kernel(int(blocks), int(loss), method),
        _walk_kernel(int(blocks), int(loss), method, False),
        _walk_kernel(int(blocks), int(loss), method, True),
    )


def _chunk_kernels(BLOCKS: int, LOSS: int, method: Method) -> tuple[Any, Any]:
    METHOD, DROP_BLOCKS = method, BLOCKS if method.drops else 1

    @kernel
    def livefactor_users_kernel(
        span: Any, plan: Any, words: Any, floats: Any, users: Any, items: Any, sums: Any, rates: Any,
        micro_batch: Any,
    ) -> None:  # fmt: skip
        x, y = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        z, total = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        keep_scales = cuda.local.array(DROP_BLOCKS, float32)
        place = cuda.grid(1) // LANES
        chunk = plan.group_chunk[micro_batch] + place
        if chunk >= plan.group_chunk[micro_batch + 1]:
            return
        mean = floats[span.means_at + span.first // span.batch + micro_batch] if LOSS == _SQUARED else _F0
        scratch, model = (x, y, z, total, keep_scales), Model(users, items, BLOCKS, LOSS, METHOD, rates)
        columns, target = Columns(words, floats), Target(sums, place)
        _user_chunk(Work(span, plan), columns, model, target, mean, chunk, scratch)

    @kernel
    def livefactor_items_kernel(
        span: Any, plan: Any, words: Any, users: Any, items: Any, sums: Any, rates: Any, micro_batch: Any
    ) -> None:
        x, y = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        total, keep_scales = cuda.local.array(BLOCKS, float32), cuda.local.array(DROP_BLOCKS, float32)
        place, group = cuda.grid(1) // LANES, span.batches + micro_batch
        chunk = plan.group_chunk[group] + place
        if chunk >= plan.group_chunk[group + 1]:
            return
        scratch, model = (x, y, y, total, keep_scales), Model(users, items, BLOCKS, LOSS, METHOD, rates)
        target = Target(sums, place + sums.items_at)
        _item_chunk(Work(span, plan), words, model, target, chunk, scratch)

    return livefactor_users_kernel, livefactor_items_kernel


def _step_kernel(BLOCKS: int, LOSS: int, method: Method) -> Any:
    METHOD, THREADS = method, threads_of_a_step(BLOCKS, method)
    step = _step_column if method.is_plain else _step_lane

    @kernel
    def livefactor_step_kernel(
        span: Any, plan: Any, users: Any, items: Any, sums: Any, rates: Any, micro_batch: Any
    ) -> None:
        """A thread per column of a row, or per lane of it. The second dimension of the grid is the
        side.
        """
        scratch = (cuda.local.array(_AHEAD, float32), cuda.local.array(BLOCKS, float32))
        i, side = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
        number, column = i // THREADS, i % THREADS
        rows, model = users if side == USERS else items, Model(users, items, BLOCKS, LOSS, METHOD, rates)
        step(Work(span, plan), Segment(side, micro_batch, number), rows, column, sums, scratch, model)

    return livefactor_step_kernel


def _walk_kernel(BLOCKS: int, LOSS: int, method: Method, WHOLE_GRID: bool) -> Any:
    METHOD, THREADS = method, threads_of_a_step(BLOCKS, method)
    DROP_BLOCKS = BLOCKS if method.drops else 1
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
        """Processes all micro-batches of a span in order, by one block or by a resident grid."""
        x, y = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        z, total = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        keep_scales = cuda.local.array(DROP_BLOCKS, float32)
        scratch, step_scratch = (x, y, z, total, keep_scales), (cuda.local.array(_AHEAD, float32), total)
        work, model = Work(span, plan), Model(users, items, BLOCKS, LOSS, METHOD, rates)
        columns, thread, threads = Columns(words, floats), cuda.grid(1), cuda.gridsize(1)
        for m in range(span.batches):
            mean = floats[span.means_at + span.first // span.batch + m] if LOSS == _SQUARED else _F0
            first = plan.group_chunk[m]
            for chunk in range(first + thread // LANES, plan.group_chunk[m + 1], threads // LANES):
                target = Target(sums, chunk - first)
                _user_chunk(work, columns, model, target, mean, chunk, scratch)
            barrier()
            group = span.batches + m
            first = plan.group_chunk[group]
            for chunk in range(first + thread // LANES, plan.group_chunk[group + 1], threads // LANES):
                target = Target(sums, chunk - first + sums.items_at)
                _item_chunk(work, words, model, target, chunk, scratch)
            barrier()
            for side in range(2):
                rows, group = users if side == USERS else items, side * span.batches + m
                count = plan.group_segment[group + 1] - plan.group_segment[group]
                for i in range(thread, count * THREADS, threads):
                    number, column = i // THREADS, i % THREADS
                    step(work, Segment(side, m, number), rows, column, sums, step_scratch, model)
            barrier()

    return livefactor_walk_kernel


# A side is also the number of its groups, places and blocks.
assert (USERS, ITEMS) == (0, 1)
