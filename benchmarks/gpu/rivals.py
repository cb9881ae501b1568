"""Two alternative update algorithms for a GPU, for squared loss and SGD, with the `apply` of the
backend.

    HogwildModel     one warp per event; stores race and nothing is ordered
    RowBlockModel    ordered micro-batches with one block per row, and no chunks for popular rows

Neither is a backend, since neither gives the bits of the semantics. RowBlockModel does only if no
row has more than 32 occurrences in a micro-batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32

from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device.buffers import Buffer
from livefactor_kernels.device.factors import load_factor, store_factor
from livefactor_kernels.device.plan import Plan, Span, event_of, row_of, value_of, weight_of
from livefactor_kernels.device.staging import WORD_BYTES, Slot
from livefactor_kernels.device.warp import BLOCK_THREADS, SIMULATED, cuda, half_sum, kernel
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers.sgd import descend
from livefactor_kernels.sgd.cuda import Sgd
from livefactor_kernels.sgd.cuda_micro_batch import dot, load_row
from livefactor_kernels.spec.model import LANES, ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.update import Rates, Update

WARP = LANES if SIMULATED else 2 * LANES
K = 64
_EACH = K // WARP
_BLOCKS = K // LANES


@inlined
def _warp_sum(value: Any) -> Any:
    if WARP > LANES:
        value = value + cuda.shfl_xor_sync(0xFFFFFFFF, value, LANES)
    return half_sum(value)


@kernel
def livefactor_hogwild_kernel(
    words: Any, floats: Any, events: Any, users_at: Any, items_at: Any, values_at: Any, users: Any, items: Any,
    mean: Any, rates: Any,
) -> None:  # fmt: skip
    """Updates with one warp per event. It reads, steps and stores 64 factors of the user and the
    item without any order.

    Narrow factors are rounded with random bits at the cost of the backend: one word per event.
    """
    x, y = cuda.local.array(_EACH, float32), cuda.local.array(_EACH, float32)
    t, mine = cuda.grid(1) // WARP, cuda.threadIdx.x % WARP
    if t >= events:
        return
    user, item = np.int64(words[users_at + t]), np.int64(words[items_at + t])
    total = np.float32(0.0)
    for c in range(_EACH):
        x[c] = load_factor(users.factors, user * K + c * WARP + mine)
        y[c] = load_factor(items.factors, item * K + c * WARP + mine)
        total += x[c] * y[c]
    user_bias, item_bias = users.bias[user], items.bias[item]
    s = scalar.score(mean, user_bias, item_bias, _warp_sum(total))
    e = scalar.squared_error(s, floats[values_at + t], np.float32(1.0), rates.error_max)
    for c in range(_EACH):
        # The address is written out below, since a shared sum needs more registers.
        column = c * WARP + mine
        g_user, g_item = scalar.pull(e, y[c], rates.l2, x[c]), scalar.pull(e, x[c], rates.l2, y[c])
        new_x = descend(x[c], g_user, rates.rate, rates)
        new_y = descend(y[c], g_item, rates.rate, rates)
        store_factor(users.factors, user * K + c * WARP + mine, new_x, t, column)
        store_factor(items.factors, item * K + c * WARP + mine, new_y, t, K + column)
    if mine == 0:
        g_user = scalar.bias_pull(e, rates.bias_l2, user_bias)
        g_item = scalar.bias_pull(e, rates.bias_l2, item_bias)
        users.bias[user] = descend(user_bias, g_user, rates.bias_rate, rates)
        items.bias[item] = descend(item_bias, g_item, rates.bias_rate, rates)


@kernel
def livefactor_errors_kernel(
    span: Any, plan: Any, words: Any, floats: Any, users: Any, items: Any, rates: Any, micro_batch: Any
) -> None:
    """Computes the error of each event of a micro-batch, with a half-warp per event."""
    x, y = cuda.local.array(_BLOCKS, float32), cuda.local.array(_BLOCKS, float32)
    number = cuda.grid(1) // LANES
    t = micro_batch * span.batch + number
    if number >= span.batch or t >= span.events:
        return
    user = np.int64(words[span.users_at + span.first + t])
    item = np.int64(words[span.items_at + span.first + t])
    load_row(users.factors, user, x, _BLOCKS)
    load_row(items.factors, item, y, _BLOCKS)
    mean = floats[span.means_at + span.first // span.batch + micro_batch]
    s = scalar.score(mean, users.bias[user], items.bias[item], dot(x, y, _BLOCKS))
    value, weight = value_of(span, floats, t), weight_of(span, floats, t)
    e = scalar.squared_error(s, value, weight, rates.error_max)
    if cuda.threadIdx.x % LANES == 0:
        plan.errors[t] = e


@kernel
def livefactor_row_block_kernel(
    span: Any, plan: Any, words: Any, users: Any, items: Any, totals: Any, rates: Any, micro_batch: Any
) -> None:
    """Sums all occurrences of a row in order, with a block per row and a thread per factor.

    The last thread sums the bias.
    """
    side, number = cuda.blockIdx.y, cuda.blockIdx.x
    group = side * span.batches + micro_batch
    segment = plan.group_segment[group] + number
    if segment >= plan.group_segment[group + 1]:
        return
    start = plan.chunk_start[plan.segment_chunk[segment]]
    stop = plan.chunk_start[plan.segment_chunk[segment + 1]]
    row, own, other = row_of(span, plan.keys[start]), items, users
    other_at = span.users_at + span.first
    if side == USERS:
        own, other, other_at = users, items, span.items_at + span.first
    for column in range(cuda.threadIdx.x, K + 1, cuda.blockDim.x):
        total = np.float32(0.0)
        for i in range(start, stop):
            t = event_of(span, plan.keys[i], np.int64(1))[0]
            e = plan.errors[t]
            if column < K:
                term = scalar.pull(
                    e,
                    other.factors[np.int64(words[other_at + t]) * K + column],
                    rates.l2,
                    own.factors[row * K + column],
                )
            else:
                term = scalar.bias_pull(e, rates.bias_l2, own.bias[row])
            total = term if i == start else total + term
        scale = scalar.hot_scale(rates.hot_events, stop - start)
        totals[(side * span.batch + number) * (K + 1) + column] = total * scale


@kernel
def livefactor_row_step_kernel(
    span: Any, plan: Any, users: Any, items: Any, totals: Any, rates: Any, micro_batch: Any
) -> None:
    """Steps the rows, with a thread per column of a row."""
    i, side = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    number, column = i // (K + 1), i % (K + 1)
    group = side * span.batches + micro_batch
    segment = plan.group_segment[group] + number
    if segment >= plan.group_segment[group + 1]:
        return
    row = row_of(span, plan.keys[plan.chunk_start[plan.segment_chunk[segment]]])
    rows = users if side == USERS else items
    g = totals[(side * span.batch + number) * (K + 1) + column]
    if column < K:
        at = row * K + column
        rows.factors[at] = descend(rows.factors[at], g, rates.rate, rates)
    else:
        rows.bias[row] = descend(rows.bias[row], g, rates.bias_rate, rates)


class HogwildModel(CudaModel):
    """Learns a record in one launch. k must be 64."""

    def _learn(self, update: Update, slot: Slot, offsets: dict[str, int]) -> None:
        events = update.user_rows.size
        places = (offsets[name] // WORD_BYTES for name in ("users", "items", "values"))
        self.device.launch(
            livefactor_hogwild_kernel, events * WARP, slot.words, slot.floats, events, *places, self.users.live,
            self.items.live, self.mean, Rates.of(self.spec),
        )  # fmt: skip


class RowBlockModel(CudaModel):
    """Ordered micro-batches with one block per row. k must be 64."""

    def _set_up(self, spec: ModelSpec, *settings: Any) -> None:
        super()._set_up(spec, *settings)
        tables = self.users, self.items
        self._rule = RowBlocks(spec, self.device, *tables, self.pins, walk_entries_max=0, together=False)


class RowBlocks(Sgd):
    """The learning rule of a `RowBlockModel`."""

    _totals: Buffer | None = None

    def _micro_batches(
        self, update: Update, span: Span, plan: Plan, slot: Slot, tables: tuple[Any, Any], rates: Any
    ) -> None:
        device, size = self._device, 2 * span.batch * (K + 1)
        if self._totals is None or self._totals.array.size < size:
            self._totals = device.empty(size, np.float32)
        totals = self._totals.argument
        rows = min(span.batch, span.events)
        for m in range(span.batches):
            device.launch(
                livefactor_errors_kernel, rows * LANES, span, plan, slot.words, slot.floats, *tables, rates, m
            )
            device.launch(
                livefactor_row_block_kernel, rows * BLOCK_THREADS, span, plan, slot.words, *tables, totals, rates, m,
                sides=2,
            )  # fmt: skip
            device.launch(
                livefactor_row_step_kernel, rows * (K + 1), span, plan, *tables, totals, rates, m, sides=2
            )


assert (USERS, ITEMS) == (0, 1)
