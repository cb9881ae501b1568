"""Rule SOFTMAX on the GPU (semantics: `softmax/__init__.py`).

    users      a half-warp per user: its events in order, each with the negatives of its group, and
               its steps. It stores the errors of each event, and the user's factors at it.
    negatives  a thread per negative and factor: the sum over the events of its group
    items      a half-warp per item: the sum over its events, then over its occurrences as a
               negative, and its step

Items do not change before the third launch, and users are independent. So a micro-batch takes three
launches. The negatives depend only on the events. So the host proposes them (`proposal.py`), and
sends them with the columns of the record. The negatives of a piece are sorted once by (micro-batch,
row, place), so that each item's negatives are consecutive, like its events.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import float32

from livefactor_kernels.device.machine import Device
from livefactor_kernels.device.plan import value_of, weight_of
from livefactor_kernels.device.staging import Slot
from livefactor_kernels.device.warp import cuda, half_of, half_sum, kernel, lane
from livefactor_kernels.history.cuda import (
    EVENT_BITS,
    PIECE_EVENTS,
    begins_row,
    end_of_row,
    event_of,
    first_of_row,
    livefactor_order_kernel,
    pieces_of,
    row_of,
)
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.lanes import clamp, inlined
from livefactor_kernels.numbers.sums import CHUNK
from livefactor_kernels.optimizers import Method, StepRates
from livefactor_kernels.optimizers.cuda import step_one, step_row
from livefactor_kernels.pins.cuda import DeviceSections, Pins
from livefactor_kernels.sgd.cuda_micro_batch import dot, load_row
from livefactor_kernels.softmax import GAP_MAX
from livefactor_kernels.softmax.cuda_shared import (
    BATCHES_MAX,
    NEGATIVES_OF_PIECE,
    PLACE_BITS,
    livefactor_order_negatives_kernel,
    place_of,
    shared_row_of,
)
from livefactor_kernels.softmax.proposal import Proposer
from livefactor_kernels.spec.model import LANES, ModelSpec, OptimizerKind
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.tables.cuda import CudaTable
from livefactor_kernels.tables.state import Stateless
from livefactor_kernels.update import Rates, Update

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


class Kept(NamedTuple):
    """Results of a micro-batch that later kernels use, all float32.

    Attributes:
        own: own[t] is the error of event t's item.
        errors: errors[t * width + n] is the error of negative n.
        x: x[t * k_padded + j] are the factors of the user at event t.
        sums, bias: of the negative in place p = group * width + n: sums[p * k_padded + j], bias[p].
        counted: counted[group] is the number of its events that count.
    """

    own: Any
    errors: Any
    x: Any
    sums: Any
    bias: Any
    counted: Any


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


@inlined
def _take_errors(
    piece: Any, batch: Any, words: Any, floats: Any, items: Any, kept: Any, t: Any, x: Any, y: Any, blocks: Any,
    rates: Any,
) -> Any:  # fmt: skip
    """Computes the errors of event t, whose user's factors are x. Returns the error of its item.

    A lane processes every sixteenth negative. `y` is working memory.
    """
    group = (t - batch.start) // batch.group_events
    m, rows_at, rarity_at = (
        _m_of(batch, group),
        batch.rows_at + group * batch.width,
        batch.rarity_at + group * batch.width,
    )
    at, own = (t - batch.start) * batch.width, np.int64(words[piece.items_at + piece.first + t])
    load_row(items.factors, own, y, blocks)
    s_own = items.bias[own] + dot(x, y, blocks)
    for n in range(m):
        row = np.int64(words[rows_at + n])
        load_row(items.factors, row, y, blocks)
        s = items.bias[row] + dot(x, y, blocks)
        if n % LANES == lane():
            kept.errors[at + n] = s
    total = _F0
    for n in range(lane(), m, LANES):
        z = scalar.exp(clamp(kept.errors[at + n] - s_own, GAP_MAX)) * floats[rarity_at + n]
        if np.int64(words[rows_at + n]) == own:
            z = _F0
        kept.errors[at + n] = z
        total = total + z
    total = half_sum(total)
    scale = weight_of(piece, floats, t) / (floats[batch.own_at + piece.first + t] + total)
    for n in range(lane(), m, LANES):
        kept.errors[at + n] = clamp(kept.errors[at + n] * scale, rates.error_max)
    own_error = -clamp(total * scale, rates.error_max)
    if lane() == 0:
        kept.own[t - batch.start] = own_error
    return own_error


@inlined
def _pull_user(
    piece: Any, batch: Any, words: Any, items: Any, kept: Any, t: Any, x: Any, y: Any, g: Any, own_error: Any,
    blocks: Any, rates: Any,
) -> None:  # fmt: skip
    """Computes the gradient g of event t's user."""
    group = (t - batch.start) // batch.group_events
    m, rows_at, at = _m_of(batch, group), batch.rows_at + group * batch.width, (t - batch.start) * batch.width
    load_row(items.factors, np.int64(words[piece.items_at + piece.first + t]), y, blocks)
    for c in range(blocks):
        g[c] = own_error * y[c]
    for first in range(0, m, LANES):
        mine = kept.errors[at + first + lane()] if first + lane() < m else _F0
        for n in range(first, min(first + LANES, m)):
            e = half_of(mine, n - first)
            load_row(items.factors, np.int64(words[rows_at + n]), y, blocks)
            for c in range(blocks):
                g[c] = g[c] + e * y[c]
    for c in range(blocks):
        g[c] = g[c] + rates.l2 * x[c]


@inlined
def _add_events(
    piece: Any, batch: Any, keys: Any, floats: Any, items: Any, kept: Any, row: Any, first: Any, y: Any, chunk: Any,
    total: Any, blocks: Any, rates: Any,
) -> Any:  # fmt: skip
    """Adds an item's own events to `total`, from its sorted entry `first` on.

    Returns (sum of the bias's gradient, number of events).
    """
    bias, number, i = items.bias[row], 0, np.int64(first)
    chunk_bias, total_bias = _F0, _F0
    while i < batch.stop and row_of(keys[i]) == row:
        t = event_of(keys[i])
        i += 1
        if not _counts(piece, floats, t):
            continue
        e, place = kept.own[t - batch.start], (t - batch.start) * (blocks * LANES) + lane()
        fresh = number % CHUNK == 0
        if fresh and number > 0:
            for c in range(blocks):
                total[c] = chunk[c] if number == CHUNK else total[c] + chunk[c]
            total_bias = chunk_bias if number == CHUNK else total_bias + chunk_bias
        for c in range(blocks):
            term = scalar.pull(e, kept.x[place + c * LANES], rates.l2, y[c])
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
def _step_by_columns(
    rows: Any, row: Any, x: Any, g: Any, g_bias: Any, with_bias: Any, scale: Any, blocks: Any, method: Any, rates: Any
) -> None:  # fmt: skip
    """Steps a row by its gradient times `scale`. `x` gets its new factors."""
    at, adagrad = row * (blocks * LANES) + lane(), method.optimizer == _ADAGRAD
    for c in range(blocks):
        place = at + c * LANES
        step_one(
            rows.factors, rows.factor_g, place, g[c] * scale, rates.rate, adagrad, rates, _NO_WORD, _NO_WORD
        )
        x[c] = rows.factors[place]
    if with_bias and lane() == 0:
        step_one(
            rows.bias, rows.bias_g, row, g_bias * scale, rates.bias_rate, adagrad, rates, _NO_WORD, _NO_WORD
        )


@inlined
def _step_whole(
    rows: Any, row: Any, x: Any, g: Any, g_bias: Any, with_bias: Any, scale: Any, blocks: Any, method: Any, rates: Any
) -> None:  # fmt: skip
    """Like `_step_by_columns`, for steps that need the whole gradient. It overwrites the
    gradient.
    """
    for c in range(blocks):
        g[c] = g[c] * scale
    step_row(rows, row, g, g_bias * scale, with_bias, _NO_WORD, blocks, method, rates)
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
        kept: Any,
        rates: Any,
    ) -> None:
        """A half-warp per entry. The first entry of a user processes all its entries."""
        x, y = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        g = cuda.local.array(BLOCKS, float32)
        i = batch.start + cuda.grid(1) // LANES
        if i >= batch.stop or not begins_row(keys, i, batch.start):
            return
        user, end = row_of(keys[i]), end_of_row(keys, i, batch.stop)
        load_row(users.factors, user, x, BLOCKS)
        while i < end:
            t = event_of(keys[i])
            i += 1
            if not _counts(piece, floats, t):
                continue
            for c in range(BLOCKS):
                kept.x[(t - batch.start) * KP + c * LANES + lane()] = x[c]
            own_error = _take_errors(piece, batch, words, floats, items, kept, t, x, y, BLOCKS, rates)
            _pull_user(piece, batch, words, items, kept, t, x, y, g, own_error, BLOCKS, rates)
            scale = scalar.hot_scale(rates.hot_events, 1)
            step(users, user, x, g, _F0, False, scale, BLOCKS, METHOD, rates)

    @kernel
    def livefactor_softmax_negatives_kernel(piece: Any, batch: Any, floats: Any, kept: Any) -> None:
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
            term = kept.errors[place * batch.width + n]
            if column < KP:
                term = term * kept.x[place * KP + column]
            if number % CHUNK == 0 and number > 0:
                total = chunk if number == CHUNK else total + chunk
            chunk = term if number % CHUNK == 0 else chunk + term
            number += 1
        total = chunk if number <= CHUNK else total + chunk
        if column < KP:
            kept.sums[p * KP + column] = total
        else:
            kept.bias[p] = total
            kept.counted[group] = np.float32(number)

    @kernel
    def livefactor_softmax_items_kernel(
        piece: Any, batch: Any, keys: Any, shared: Any, floats: Any, items: Any, kept: Any, rates: Any
    ) -> None:
        """A half-warp per entry and, after them, per sorted negative. The first one of an item
        steps it.
        """
        y, chunk = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        total = cuda.local.array(BLOCKS, float32)
        events, i = batch.stop - batch.start, cuda.grid(1) // LANES
        if i >= events + batch.shared_stop - batch.shared_start:
            return
        if i < events:
            first = np.int64(batch.start + i)
            if not begins_row(keys, first, batch.start):
                return
            row = row_of(keys[first])
            other = first_of_row(shared, batch.shared_start, batch.shared_stop, row, PLACE_BITS)
        else:
            other = np.int64(batch.shared_start + i - events)
            row = shared_row_of(shared[other])
            if other > batch.shared_start and shared_row_of(shared[other - 1]) == row:
                return
            first = first_of_row(keys, batch.start, batch.stop, row, EVENT_BITS)
            if first < batch.stop and row_of(keys[first]) == row:
                # The entry of an event steps this item.
                return
        load_row(items.factors, row, y, BLOCKS)
        bias, number = _add_events(
            piece, batch, keys, floats, items, kept, row, first, y, chunk, total, BLOCKS, rates
        )
        named = number
        while other < batch.shared_stop and shared_row_of(shared[other]) == row:
            p = place_of(shared[other])
            other += 1
            if kept.counted[p // batch.width] == _F0:
                continue
            for c in range(BLOCKS):
                term = kept.sums[p * KP + c * LANES + lane()]
                total[c] = term if number == 0 else total[c] + term
            bias = kept.bias[p] if number == 0 else bias + kept.bias[p]
            number += 1
        if number == 0:
            return
        scale = scalar.hot_scale(rates.hot_events, named)
        step(items, row, y, total, bias, True, scale, BLOCKS, METHOD, rates)

    return Kernels(
        livefactor_softmax_users_kernel, livefactor_softmax_negatives_kernel, livefactor_softmax_items_kernel
    )


class Softmax(Stateless):
    """Learns from records. It allocates the memory for a record at its creation."""

    records = False

    def __init__(
        self, spec: ModelSpec, device: Device, users: CudaTable, items: CudaTable, pins: Pins
    ) -> None:
        """Allocates memory and selects the kernels.

        Raises:
            MemoryError: the device has too little memory.
        """
        self._spec, self._device, self._pins, self._tables = spec, device, pins, (users, items)
        self.pinned: DeviceSections = {}
        method = Method.of(spec)
        self._rates: Any = Rates.of(spec) if method.is_plain else StepRates.of(spec)
        self.proposer = Proposer(spec, items.capacity)
        self._kernels = softmax_kernels(spec.k_padded // LANES, method)
        size, m, kp = spec.micro_batch, spec.negatives_of_event, spec.k_padded
        groups, shared = size // spec.group_events, spec.drawn(size)
        sizes = size, size * m, size * kp, shared * kp, shared, groups
        self._memory = [device.empty(count, np.float32) for count in sizes]
        self._kept = Kept(*(buffer.argument for buffer in self._memory))
        self._keys = device.empty(PIECE_EVENTS, np.int64), device.empty(PIECE_EVENTS, np.int64)
        self._shared = device.empty(self._batches_of_piece * shared, np.int64)
        # The first sort allocates the memory of later ones.
        with device.learning():
            for buffer in (*self._keys, self._shared):
                buffer.array.fill(0)
                buffer.array.sort()

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`. The proposals follow from the item rows.

        The caller holds the lock of the model.
        """
        if self.proposer.counts:
            items = self._tables[ITEMS]
            counts = self._device.fetch([items.matrix("seen_count", 0, items.allocated)])()[0]
            self.proposer.reload(counts[:, 0])

    def propose(self, update: Update) -> dict[str, np.ndarray]:
        """The negatives of a record, as columns for the transfer."""
        shared = self.proposer.propose(update)
        return {"negatives": shared.rows.ravel(), "rarity": shared.rarity.ravel(), "own": shared.own}

    def hold(self, update: Update, counts: tuple[int, int]) -> None:
        """Nothing, because all memory is allocated already."""

    def learn(self, update: Update, slot: Slot, places: dict[str, int]) -> None:
        """Puts the learning from a record on the stream (`cuda.LearningRule.learn`)."""
        device, spec = self._device, self._spec
        width, of_batch = spec.negatives_of_event, spec.drawn(spec.micro_batch)
        events = update.user_rows.size
        self._pins.save_named(slot, (places["users_at"], places["items_at"]), events)
        for frozen in self._pins.frozen:
            frozen.sides[ITEMS].save(slot.words, places["negatives_at"], spec.drawn(events))
        for piece in pieces_of(events, spec.micro_batch, places, self._batches_of_piece):
            device.launch(livefactor_order_kernel, piece.events, piece, slot.words, *self._arguments)
            for buffer in self._keys:
                buffer.array[: piece.events].sort()
            at, entries = spec.drawn(piece.first), spec.drawn(piece.events)
            count = piece.events if spec.negatives == 0 else entries
            numbers = places["negatives_at"] + at, of_batch, count, entries
            device.launch(
                livefactor_order_negatives_kernel, entries, slot.words, *numbers, self._shared.argument
            )
            self._shared.array[:entries].sort()
            for start in range(0, piece.events, spec.micro_batch):
                stop = min(start + spec.micro_batch, piece.events)
                groups = -(-(stop - start) // spec.group_events)
                last_m = stop - start - (groups - 1) * spec.group_events if spec.negatives == 0 else width
                first = spec.drawn(start)
                batch = Batch(
                    start,
                    stop,
                    spec.group_events,
                    width,
                    last_m,
                    places["negatives_at"] + at + first,
                    places["rarity_at"] + at + first,
                    places["own_at"],
                    first,
                    first + (groups - 1) * width + last_m,
                )
                self._micro_batch(piece, slot, batch)

    @property
    def _batches_of_piece(self) -> int:
        """Maximum number of micro-batches per piece, because of their negatives."""
        return max(1, min(BATCHES_MAX, NEGATIVES_OF_PIECE // self._spec.drawn(self._spec.micro_batch)))

    @property
    def _arguments(self) -> tuple[Any, Any]:
        users, items = self._keys
        return users.argument, items.argument

    def _micro_batch(self, piece: Any, slot: Slot, batch: Batch) -> None:
        users, items = (table.stepped for table in self._tables)
        user_keys, item_keys = self._arguments
        events, columns = batch.stop - batch.start, (slot.words, slot.floats)
        launch, kept, rates = self._device.launch, self._kept, self._rates
        launch(
            self._kernels.users, events * LANES, piece, batch, user_keys, *columns, users, items, kept, rates
        )
        shared = batch.shared_stop - batch.shared_start
        launch(self._kernels.negatives, shared * (self._spec.k_padded + 1), piece, batch, slot.floats, kept)
        keys = item_keys, self._shared.argument
        launch(
            self._kernels.items,
            (events + shared) * LANES,
            piece,
            batch,
            *keys,
            slot.floats,
            items,
            kept,
            rates,
        )
