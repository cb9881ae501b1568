"""The kernel of ordered micro-batches, for any B and any loss.

It computes the errors, then the sum of each row in the order of the semantics, then the steps. The
occurrences of a row are a linked list in the order of (event, slot). The kernel builds the lists
while it computes the errors. So an occurrence of a row in half of the batch costs no more than one
of a row with two events. The gradients of users wait in scratch until the items have stepped,
because items need the users' old factors. The size of the scratch depends on the micro-batch. Only
the two arrays `place` have one word per row. The kernel touches only the words that it uses, and
resets them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, broadcast, store1
from livefactor_kernels.numbers.narrow import load_factors
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import dropout_word
from livefactor_kernels.optimizers import Method
from livefactor_kernels.optimizers.cpu import Model, l2_of, prefetch_state, step_row
from livefactor_kernels.sgd.cpu_dropout import add_dropped, dropped_score, keep_scales
from livefactor_kernels.sgd.cpu_sequential import Record
from livefactor_kernels.simd.gradients import (
    CHUNK_EVENTS,
    END,
    Chains,
    Occurrence,
    add_block,
    add_occurrence,
    finish,
    link,
    place_for,
    reset,
    set_word,
)
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import ONE, WORD_BYTES, ZERO, Rounding, real, row_bytes, score, word
from livefactor_kernels.spec.model import LANES, Loss, ModelSpec
from livefactor_kernels.tables.cpu import Table

_AHEAD = np.uint64(8)
_SQUARED, _LOGISTIC, _BPR = int(Loss.SQUARED), int(Loss.LOGISTIC), int(Loss.BPR)
_F0, _F1 = np.float32(0.0), np.float32(1.0)


class Weights(NamedTuple):
    """Weights of L2 for the occurrences of a row, float32."""

    l2: Any
    bias_l2: Any


class Scratch(NamedTuple):
    """Working memory of the kernel of one model, as addresses. It is not part of the state.

    Attributes:
        users, items: lists of occurrences.
        errors: float32[B * slots].
        counts: uint32[B], slots of each event.
        gradients: gradient rows of k_padded + 16 floats, the first of the 16 for the bias: B rows
            for users, one for an item, one for a chunk.
        dropout_words: uint32[B], random words for the dropout of the events.
        micro_batch: B.
    """

    users: Chains
    items: Chains
    errors: np.uint64
    counts: np.uint64
    gradients: np.uint64
    dropout_words: np.uint64
    micro_batch: np.uint64


def make_scratch(spec: ModelSpec, users: Table, items: Table) -> tuple[Scratch, list[np.ndarray]]:
    """The scratch of a model, and its arrays, which the caller keeps alive."""
    events, slots = spec.micro_batch, spec.micro_batch * (1 + spec.negatives)
    arrays: list[np.ndarray] = []

    def address(shape: tuple[int, ...], dtype: type) -> np.uint64:
        arrays.append(reserve(shape, dtype))
        return np.uint64(arrays[-1].ctypes.data)

    chains = [
        Chains(address((table.capacity,), np.uint32), *(address((count,), np.uint32) for _ in range(4)))
        for table, count in ((users, events), (items, slots))
    ]
    errors, counts = address((slots,), np.float32), address((events,), np.uint32)
    gradients = address((events + 2, spec.k_padded + LANES), np.float32)
    dropout = address((events,), np.uint32)
    size = np.uint64(events)
    return Scratch(chains[0], chains[1], errors, counts, gradients, dropout, size), arrays


@inlined
def _add_bpr_user(
    target: Any, fresh: Any, occurrence: Any, positive_start: Any, dropout: Any, model: Any
) -> None:
    """Adds a BPR user's (e * (y_p - y_n)) + (lambda * x) to a gradient row.

    The other row of `occurrence` is the negative. `positive_start` is the place of the positive's
    row. The bias's lane is unused.
    """
    items, weights = occurrence.other, occurrence.weights
    for c in range(model.blocks):
        at = c * VECTOR_BYTES
        y, other = load_factors(items, positive_start + at), load_factors(items, occurrence.other_start + at)
        difference = y - other
        if model.method.drops:
            difference = difference * keep_scales(dropout, c, model.rates)
        x = load_factors(occurrence.own, occurrence.own_start + at)
        add_block(target, c, fresh, scalar.pull(occurrence.e, difference, weights.l2, x))
    add_block(target, model.blocks, fresh, broadcast(_F0))


@inlined
def _add(target: Any, fresh: Any, occurrence: Any, dropout: Any, model: Any) -> None:
    """Adds an occurrence to a gradient row. `dropout` is the word of its event, if there is
    dropout.
    """
    if model.method.drops:
        add_dropped(target, fresh, occurrence, dropout, model.blocks, model.rates)
    else:
        add_occurrence(target, fresh, occurrence, model.blocks)


@inlined
def _word_of(scratch: Any, t: Any, method: Any) -> Any:
    """The random word for the dropout of event t. 0 without dropout."""
    return word(scratch.dropout_words, t) if method.drops else ZERO


@inlined
def _weights_of(rows: Any, row: Any, method: Any, rates: Any) -> Any:
    """Weights of L2 for the occurrences of a row."""
    return Weights(l2_of(rows, row, rates.l2, method), l2_of(rows, row, rates.bias_l2, method))


@inlined
def _user_gradient(model: Any, batch: Any, scratch: Any, q: Any, total: Any, chunk: Any, loss: Any) -> None:
    """Sums the occurrences of user number q of the micro-batch in the gradient row `total`."""
    users, items, blocks = model.users, model.items, model.blocks
    size, slots, user = row_bytes(blocks), batch.width + ONE, word(scratch.users.row, q)
    x_start, bias = user * size, real(users.bias, user)
    weights = _weights_of(users, user, model.method, model.rates)
    number, events, t = ZERO, ZERO, word(scratch.users.first, q)
    while t != END:
        y_start, dropout = word(batch.items, t) * size, _word_of(scratch, t, model.method)
        for s in range(ONE if loss == _BPR else ZERO, word(scratch.counts, t)):
            target, fresh = place_for(total, chunk, number, blocks), number % CHUNK_EVENTS == ZERO
            e = real(scratch.errors, t * slots + s)
            start = y_start if s == ZERO else word(batch.negatives, t * batch.width + s - ONE) * size
            occurrence = Occurrence(e, items.factors, start, users.factors, x_start, bias, weights)
            if loss == _BPR:
                _add_bpr_user(target, fresh, occurrence, y_start, dropout, model)
            else:
                _add(target, fresh, occurrence, dropout, model)
            number += ONE
        events += ONE
        t = word(scratch.users.next, t)
    finish(total, chunk, number, events, model.rates.hot_events, blocks)


@inlined
def _item_gradient(model: Any, batch: Any, scratch: Any, q: Any, total: Any, chunk: Any, loss: Any) -> None:
    """Sums the occurrences of item number q of the micro-batch in the gradient row `total`."""
    users, items, blocks = model.users, model.items, model.blocks
    size, slots, item = row_bytes(blocks), batch.width + ONE, word(scratch.items.row, q)
    y_start, bias = item * size, real(items.bias, item)
    weights = _weights_of(items, item, model.method, model.rates)
    number, events, o, last_event = ZERO, ZERO, word(scratch.items.first, q), END
    while o != END:
        t = o // slots
        positive = o == t * slots
        x_start, dropout = word(batch.users, t) * size, _word_of(scratch, t, model.method)
        # A BPR positive has one occurrence per negative of its event.
        for d in range(batch.width if loss == _BPR and positive else ONE):
            target, fresh = place_for(total, chunk, number, blocks), number % CHUNK_EVENTS == ZERO
            e = real(scratch.errors, o + d + ONE) if loss == _BPR and positive else real(scratch.errors, o)
            if loss == _BPR and not positive:
                e = -e
            occurrence = Occurrence(e, users.factors, x_start, items.factors, y_start, bias, weights)
            _add(target, fresh, occurrence, dropout, model)
            number += ONE
        if t != last_event:
            events += ONE
        last_event = t
        o = word(scratch.items.next, o)
    finish(total, chunk, number, events, model.rates.hot_events, blocks)


class Batch(NamedTuple):
    """The columns of one micro-batch.

    Attributes:
        users, items: addresses of rows, uint32[events].
        negatives: address of rows, uint32[events, width].
        width: number of negatives per event.
        events: number of events.
        start: number of the first event in the record.
    """

    users: Any
    items: Any
    negatives: Any
    width: Any
    events: Any
    start: Any


class Event(NamedTuple):
    """One event.

    Attributes:
        user, positive: rows.
        negatives: address of the rows of its negatives, uint32[count].
        count: number of its negatives.
        value, weight: float32.
        dropout: random word for its dropout.
    """

    user: Any
    positive: Any
    negatives: Any
    count: Any
    value: Any
    weight: Any
    dropout: Any


@inlined
def _score(model: Any, mean: Any, event: Any, item: Any) -> Any:
    """Score (float32) of an event's user and an item."""
    if model.method.drops:
        return dropped_score(model, mean, event.user, item, event.dropout)
    return score(mean, model.users, model.items, event.user, item, model.blocks)


@inlined
def _event_errors(model: Any, event: Any, errors: Any, loss: Any) -> None:
    """Computes the errors of an event's slots from the present state.

    It writes float32 to the address `errors`: first the positive's error (not with BPR), then those
    of the negatives.
    """
    limit = model.rates.error_max
    s = _score(model, _F0, event, event.positive)
    if loss != _BPR:
        store1(errors, scalar.logistic_error(s, event.value, event.weight, limit))
    for d in range(event.count):
        s_negative = _score(model, _F0, event, word(event.negatives, d))
        if loss == _BPR:
            e = scalar.bpr_error(s, s_negative, event.weight, limit)
        else:
            e = scalar.logistic_error(s_negative, _F0, event.weight, limit)
        store1(errors, e, (d + ONE) * WORD_BYTES)


@inlined
def _prefetch_event(model: Any, batch: Any, t: Any) -> None:
    users, items, blocks, method = model.users, model.items, model.blocks, model.method
    prefetch_state(users, word(batch.users, t), blocks, method)
    prefetch_state(items, word(batch.items, t), blocks, method)
    for d in range(batch.width):
        prefetch_state(items, word(batch.negatives, t * batch.width + d), blocks, method)


@inlined
def _take_errors(
    model: Any, batch: Any, scratch: Any, record: Any, mean: Any, rounding: Any, loss: Any
) -> Any:
    """Computes the errors of all slots of a micro-batch, and links the occurrences of its rows.

    All errors use the state at the start of the micro-batch. Returns the numbers of user rows and
    item rows. scratch.counts[t] becomes the number of slots of event t. 0 means that the event
    changes nothing.
    """
    width, used_users, used_items = batch.width, ZERO, ZERO
    values, weights = record.values, record.weights
    for t in range(batch.events):
        _prefetch_event(model, batch, min(t + _AHEAD, batch.events - ONE))
        user, positive = word(batch.users, t), word(batch.items, t)
        value = values[batch.start + t] if values.size else _F1
        weight = weights[batch.start + t] if weights.size else _F1
        count = ZERO if loss == _LOGISTIC and value == _F0 else width
        slot = t * (width + ONE)
        errors, negatives = scratch.errors + slot * WORD_BYTES, batch.negatives + t * width * WORD_BYTES
        dropout = ZERO
        if model.method.drops:
            dropout = dropout_word(model.rates.dropout_key, rounding.revision, batch.start + t)
            set_word(scratch.dropout_words, t, dropout)
        event = Event(user, positive, negatives, count, value, weight, dropout)
        if loss == _SQUARED:
            s = _score(model, mean, event, positive)
            store1(errors, scalar.squared_error(s, value, weight, model.rates.error_max))
        else:
            _event_errors(model, event, errors, loss)
        if loss == _BPR and width == ZERO:
            # The only item has no other item to be contrasted with.
            set_word(scratch.counts, t, ZERO)
            continue
        set_word(scratch.counts, t, count + ONE)
        used_users = link(scratch.users, used_users, user, t)
        used_items = link(scratch.items, used_items, positive, slot)
        for d in range(count):
            used_items = link(scratch.items, used_items, word(negatives, d), slot + d + ONE)
    return used_users, used_items


@inlined
def _sum_and_step(
    model: Any, batch: Any, scratch: Any, used: Any, item_total: Any, rounding: Any, loss: Any
) -> None:
    """Sums and steps every row of the micro-batch. `used` are the numbers of user rows and item
    rows.

    The order is: sums of users to scratch, sum and step of each item, steps of users.
    """
    used_users, used_items = used
    stride = row_bytes(model.blocks + ONE)
    chunk = item_total + stride
    for q in range(used_users):
        _user_gradient(model, batch, scratch, q, scratch.gradients + q * stride, chunk, loss)
    for q in range(used_items):
        _item_gradient(model, batch, scratch, q, item_total, chunk, loss)
        step_row(model, model.items, word(scratch.items.row, q), item_total, True, rounding)
    for q in range(used_users):
        total = scratch.gradients + q * stride
        step_row(model, model.users, word(scratch.users.row, q), total, loss != _BPR, rounding)


@cache
def micro_batch_kernel(blocks: int, loss: int, method: Method) -> Any:
    """A kernel for rows of `blocks` vectors.

    Its arguments from `user_rows` to `revision` are those of `Record`. `negatives` is the address
    of item rows uint32[n, width], and `key` is the key of `ROUNDING_DOMAIN`. The first `fresh`
    events are added to the mean.
    """
    BLOCKS, LOSS, METHOD = np.uint64(blocks), int(loss), method

    @compiled
    def livefactor_micro_batch_kernel(
        users: Any, items: Any, user_rows: Any, item_rows: Any, n: Any, values: Any, weights: Any, revision: Any,
        negatives: Any, width: Any, mean_state: Any, rates: Any, key: Any, scratch: Any, fresh: Any,
    ) -> None:  # fmt: skip
        model, micro_batch = Model(users, items, BLOCKS, METHOD, rates), scratch.micro_batch
        record = Record(user_rows, item_rows, n, values, weights, revision)
        item_total = scratch.gradients + micro_batch * row_bytes(BLOCKS + ONE)
        for start in range(ZERO, n, micro_batch):
            at = start * WORD_BYTES
            count = min(micro_batch, n - start)
            batch = Batch(user_rows + at, item_rows + at, negatives + at * width, width, count, start)
            rounding = Rounding(key, revision, start // micro_batch)
            mean = scalar.mean_of(mean_state[ZERO], mean_state[ONE])
            used = _take_errors(model, batch, scratch, record, mean, rounding, LOSS)
            _sum_and_step(model, batch, scratch, used, item_total, rounding, LOSS)
            reset(scratch.users, used[0])
            reset(scratch.items, used[1])
            if LOSS == _SQUARED:
                for t in range(start, min(start + count, fresh)):
                    mean_state[ZERO] += scalar.fixed_point(values[t] if values.size else _F1)
                    mean_state[ONE] += np.int64(1)

    return livefactor_micro_batch_kernel
