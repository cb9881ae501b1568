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
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, broadcast, inlined, store1
from livefactor_kernels.numbers.narrow import load_factors
from livefactor_kernels.numbers.random import dropout_word
from livefactor_kernels.optimizers import Method
from livefactor_kernels.optimizers.cpu import l2_of, prefetch_state, step_row
from livefactor_kernels.sgd.cpu_dropout import add_dropped, dropped_score, kept
from livefactor_kernels.simd.gradients import (
    CHUNK_EVENTS,
    END,
    Chains,
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
        dropped: uint32[B], random words for the dropout of the events.
    """

    users: Chains
    items: Chains
    errors: np.uint64
    counts: np.uint64
    gradients: np.uint64
    dropped: np.uint64


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
    dropped = address((events,), np.uint32)
    return Scratch(chains[0], chains[1], errors, counts, gradients, dropped), arrays


@inlined
def _add_bpr_user(
    target: Any, fresh: Any, e: Any, items: Any, y_start: Any, other_start: Any, users: Any, x_start: Any,
    blocks: Any, weights: Any, dropped: Any, method: Any, rates: Any,
) -> None:  # fmt: skip
    """Adds a BPR user's (e * (y_p - y_n)) + (lambda * x) to a gradient row.

    The bias's lane is unused. `users` and `items` are factors, and the starts are places of rows.
    """
    for c in range(blocks):
        at = c * VECTOR_BYTES
        difference = load_factors(items, y_start + at) - load_factors(items, other_start + at)
        if method.drops:
            difference = difference * kept(dropped, c, rates)
        add_block(target, c, fresh, scalar.pull(e, difference, weights.l2, load_factors(users, x_start + at)))
    add_block(target, blocks, fresh, broadcast(_F0))


@inlined
def _add(
    target: Any, fresh: Any, e: Any, other: Any, other_start: Any, own: Any, own_start: Any, bias: Any,
    blocks: Any, weights: Any, dropped: Any, method: Any, rates: Any,
) -> None:  # fmt: skip
    """Adds an occurrence to a gradient row. `dropped` is the word of its event, if there is
    dropout.
    """
    if method.drops:
        add_dropped(
            target, fresh, e, other, other_start, own, own_start, bias, blocks, weights, dropped, rates
        )
    else:
        add_occurrence(target, fresh, e, other, other_start, own, own_start, bias, blocks, weights)


@inlined
def _word_of(scratch: Any, t: Any, method: Any) -> Any:
    """The random word for the dropout of event t. 0 without dropout."""
    return word(scratch.dropped, t) if method.drops else ZERO


@inlined
def _weights_of(rows: Any, row: Any, method: Any, rates: Any) -> Any:
    """Weights of L2 for the occurrences of a row."""
    return Weights(l2_of(rows, row, rates.l2, method), l2_of(rows, row, rates.bias_l2, method))


@inlined
def _user_gradient(
    users: Any,
    items: Any,
    user: Any,
    q: Any,
    batch: Any,
    scratch: Any,
    total: Any,
    chunk: Any,
    blocks: Any,
    loss: Any,
    method: Any,
    rates: Any,
) -> None:
    """Sums the occurrences of user number q of the micro-batch in the gradient row `total`."""
    size, slots = row_bytes(blocks), batch.width + ONE
    x_start, bias = user * size, real(users.bias, user)
    weights = _weights_of(users, user, method, rates)
    number, events, t = ZERO, ZERO, word(scratch.users.first, q)
    while t != END:
        y_start, dropped = word(batch.items, t) * size, _word_of(scratch, t, method)
        for s in range(ONE if loss == _BPR else ZERO, word(scratch.counts, t)):
            target, fresh = place_for(total, chunk, number, blocks), number % CHUNK_EVENTS == ZERO
            e = real(scratch.errors, t * slots + s)
            start = y_start if s == ZERO else word(batch.negatives, t * batch.width + s - ONE) * size
            if loss == _BPR:
                _add_bpr_user(
                    target, fresh, e, items.factors, y_start, start, users.factors, x_start, blocks, weights, dropped,
                    method, rates,
                )  # fmt: skip
            else:
                _add(
                    target, fresh, e, items.factors, start, users.factors, x_start, bias, blocks, weights, dropped,
                    method, rates,
                )  # fmt: skip
            number += ONE
        events += ONE
        t = word(scratch.users.next, t)
    finish(total, chunk, number, events, rates.hot_events, blocks)


@inlined
def _item_gradient(
    users: Any,
    items: Any,
    item: Any,
    q: Any,
    batch: Any,
    scratch: Any,
    total: Any,
    chunk: Any,
    blocks: Any,
    loss: Any,
    method: Any,
    rates: Any,
) -> None:
    """Sums the occurrences of item number q of the micro-batch in the gradient row `total`."""
    size, slots = row_bytes(blocks), batch.width + ONE
    y_start, bias = item * size, real(items.bias, item)
    weights = _weights_of(items, item, method, rates)
    number, events, o, last_event = ZERO, ZERO, word(scratch.items.first, q), END
    while o != END:
        t = o // slots
        positive = o == t * slots
        x_start, dropped = word(batch.users, t) * size, _word_of(scratch, t, method)
        # A BPR positive has one occurrence per negative of its event.
        for d in range(batch.width if loss == _BPR and positive else ONE):
            target, fresh = place_for(total, chunk, number, blocks), number % CHUNK_EVENTS == ZERO
            e = real(scratch.errors, o + d + ONE) if loss == _BPR and positive else real(scratch.errors, o)
            if loss == _BPR and not positive:
                e = -e
            _add(
                target, fresh, e, users.factors, x_start, items.factors, y_start, bias, blocks, weights, dropped,
                method, rates,
            )  # fmt: skip
            number += ONE
        if t != last_event:
            events += ONE
        last_event = t
        o = word(scratch.items.next, o)
    finish(total, chunk, number, events, rates.hot_events, blocks)


class Batch(NamedTuple):
    """Columns of one micro-batch, as addresses.

    They are the rows of users and of items (uint32) and of negatives (uint32[n, width]).
    """

    users: np.uint64
    items: np.uint64
    negatives: np.uint64
    width: np.uint64
    events: np.uint64


@inlined
def _score(
    mean: Any,
    users: Any,
    items: Any,
    user: Any,
    item: Any,
    blocks: Any,
    dropped: Any,
    method: Any,
    rates: Any,
) -> Any:
    if method.drops:
        return dropped_score(mean, users, items, user, item, blocks, dropped, rates)
    return score(mean, users, items, user, item, blocks)


@inlined
def _event_errors(
    users: Any,
    items: Any,
    user: Any,
    positive: Any,
    negatives: Any,
    count: Any,
    value: Any,
    weight: Any,
    errors: Any,
    blocks: Any,
    loss: Any,
    dropped: Any,
    method: Any,
    rates: Any,
) -> None:
    """Computes the errors of an event's slots from the present state.

    It writes float32 to the address `errors`: first the positive's error (not with BPR), then those
    of the `count` negatives, whose rows are uint32 at the address `negatives`.
    """
    s = _score(_F0, users, items, user, positive, blocks, dropped, method, rates)
    if loss != _BPR:
        store1(errors, scalar.logistic_error(s, value, weight, rates.error_max))
    for d in range(count):
        item = word(negatives, d)
        s_negative = _score(_F0, users, items, user, item, blocks, dropped, method, rates)
        if loss == _BPR:
            e = scalar.bpr_error(s, s_negative, weight, rates.error_max)
        else:
            e = scalar.logistic_error(s_negative, _F0, weight, rates.error_max)
        store1(errors, e, (d + ONE) * WORD_BYTES)


@inlined
def _take_errors(
    users: Any,
    items: Any,
    batch: Any,
    values: Any,
    weights: Any,
    start: Any,
    mean: Any,
    scratch: Any,
    blocks: Any,
    loss: Any,
    method: Any,
    rates: Any,
    rounding: Any,
) -> Any:
    """Computes the errors of all slots of a micro-batch, and links the occurrences of its rows.

    All errors use the state at the start of the micro-batch. Returns the numbers of user rows and
    item rows. scratch.counts[t] becomes the number of slots of event t. 0 means that the event
    changes nothing.
    """
    width, used_users, used_items = batch.width, ZERO, ZERO
    for t in range(batch.events):
        ahead = min(t + _AHEAD, batch.events - ONE)
        prefetch_state(users, word(batch.users, ahead), blocks, method)
        prefetch_state(items, word(batch.items, ahead), blocks, method)
        for d in range(width):
            prefetch_state(items, word(batch.negatives, ahead * width + d), blocks, method)
        user, positive = word(batch.users, t), word(batch.items, t)
        value = values[start + t] if values.size else _F1
        weight = weights[start + t] if weights.size else _F1
        count = ZERO if loss == _LOGISTIC and value == _F0 else width
        slot = t * (width + ONE)
        errors, negatives = scratch.errors + slot * WORD_BYTES, batch.negatives + t * width * WORD_BYTES
        dropped = ZERO
        if method.drops:
            dropped = dropout_word(rates.dropout_key, rounding.revision, start + t)
            set_word(scratch.dropped, t, dropped)
        if loss == _SQUARED:
            s = _score(mean, users, items, user, positive, blocks, dropped, method, rates)
            store1(errors, scalar.squared_error(s, value, weight, rates.error_max))
        else:
            _event_errors(
                users, items, user, positive, negatives, count, value, weight, errors, blocks, loss, dropped, method,
                rates,
            )  # fmt: skip
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
    users: Any,
    items: Any,
    batch: Any,
    used_users: Any,
    used_items: Any,
    scratch: Any,
    item_total: Any,
    blocks: Any,
    loss: Any,
    method: Any,
    rates: Any,
    rounding: Any,
    step: Any,
) -> None:
    """Sums and steps every row of the micro-batch.

    The order is: sums of users to scratch, sum and step of each item, steps of users.
    """
    stride = row_bytes(blocks + ONE)
    chunk = item_total + stride
    for q in range(used_users):
        total = scratch.gradients + q * stride
        _user_gradient(
            users, items, word(scratch.users.row, q), q, batch, scratch, total, chunk, blocks, loss, method, rates
        )  # fmt: skip
    for q in range(used_items):
        item = word(scratch.items.row, q)
        _item_gradient(users, items, item, q, batch, scratch, item_total, chunk, blocks, loss, method, rates)
        step_row(items, item, item_total, True, blocks, method, rates, rounding, step)
    for q in range(used_users):
        total = scratch.gradients + q * stride
        user = word(scratch.users.row, q)
        step_row(users, user, total, loss != _BPR, blocks, method, rates, rounding, step)


@cache
def micro_batch_kernel(blocks: int, loss: int, method: Method) -> Any:
    """A kernel for rows of `blocks` vectors.

    Its arguments `user_rows`, `item_rows` and `negatives` are addresses of uint32[n], uint32[n] and
    uint32[n, width]. The first `fresh` of n events are added to the mean.
    """
    BLOCKS, LOSS, METHOD = np.uint64(blocks), int(loss), method

    @compiled
    def livefactor_micro_batch_kernel(
        users: Any,
        items: Any,
        user_rows: Any,
        item_rows: Any,
        n: Any,
        values: Any,
        weights: Any,
        negatives: Any,
        width: Any,
        mean_state: Any,
        rates: Any,
        rounding_key: Any,
        revision: Any,
        scratch: Any,
        micro_batch: Any,
        fresh: Any,
    ) -> None:
        rounding = Rounding(rounding_key, revision)
        item_total = scratch.gradients + micro_batch * row_bytes(BLOCKS + ONE)
        for start in range(ZERO, n, micro_batch):
            at = start * WORD_BYTES
            count = min(micro_batch, n - start)
            batch = Batch(user_rows + at, item_rows + at, negatives + at * width, width, count)
            mean = scalar.mean_of(mean_state[ZERO], mean_state[ONE])
            used_users, used_items = _take_errors(
                users, items, batch, values, weights, start, mean, scratch, BLOCKS, LOSS, METHOD, rates, rounding
            )  # fmt: skip
            _sum_and_step(
                users, items, batch, used_users, used_items, scratch, item_total, BLOCKS, LOSS, METHOD, rates,
                rounding, start // micro_batch,
            )  # fmt: skip
            reset(scratch.users, used_users)
            reset(scratch.items, used_items)
            if LOSS == _SQUARED:
                for t in range(start, min(start + count, fresh)):
                    mean_state[ZERO] += scalar.fixed_point(values[t] if values.size else _F1)
                    mean_state[ONE] += np.int64(1)

    return livefactor_micro_batch_kernel
