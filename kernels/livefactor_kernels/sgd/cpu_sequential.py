"""Kernels of B = 1, exact sequential steps in arrival order: `positive_kernel` (squared loss; logistic
without negatives where clumps gain nothing) and `sampled_kernel` (logistic, BPR).

What an event needs is prefetched `AHEAD` events earlier: the arithmetic of an event takes less time than one
miss of the cache. Where factors are narrow, an event's number in the call is its number in its record: a call
takes one record then.

With a sigmoid between an event's dot products and its steps, more waits for it than a CPU looks ahead. So
`sampled_kernel` takes a clump of consecutive events that share no row at once: all scores, then all errors
as lanes of a vector, then the steps in order. No event of a clump reads what another one writes, so the bits
are those of one after the other.

The factories bake k, loss and optimiser into the code as integers, which are part of the key of its cache
(`numbers/compiled.py`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import LANES, VECTOR_BYTES, inlined, load16, store1, store16, store_u32
from livefactor_kernels.numbers.narrow import dtype_of, load_factors
from livefactor_kernels.simd.steps import (
    FLOAT32,
    ONE,
    WORD_BYTES,
    ZERO,
    Rounding,
    prefetch_row,
    real,
    row_bytes,
    row_word,
    score,
    step_bias,
    step_block,
    word,
)
from livefactor_kernels.spec.model import Loss

AHEAD = np.uint64(12)
SAMPLED_AHEAD = np.uint64(4)  # beside a clump; of many rows, more events would not fit the first cache
SAMPLED_NEGATIVES_MAX = 16
"""Negatives an event may have in `sampled_kernel`: with the positive they are one chunk of occurrences."""
DRAWN_ANY = 2
"""A kernel's number of negatives that is not baked in: with none and with one their loops fall away."""
CLUMP_EVENTS_MAX = np.uint64(6)
SLOT_LANES = 2 * LANES
"""Slots of a clump, in whole vectors: at most `LANES`, or those of one event."""

_SQUARED, _LOGISTIC, _BPR = int(Loss.SQUARED), int(Loss.LOGISTIC), int(Loss.BPR)
_F0, _F1 = np.float32(0.0), np.float32(1.0)
_TWO = np.uint64(2)
_LANES = np.uint64(LANES)
_TARGETS, _WEIGHTS = np.uint64(4 * SLOT_LANES), np.uint64(8 * SLOT_LANES)  # bytes into `lanes`


@cache
def positive_kernel(blocks: int, loss: int, adagrad: int) -> Any:
    """Kernel of squared or logistic loss without negatives, one event after the other, for rows of `blocks`
    vectors."""
    BLOCKS, LOSS, ADAGRAD = np.uint64(blocks), int(loss), int(adagrad)

    @compiled
    def livefactor_positive_kernel(
        users: Any,
        items: Any,
        user_rows: Any,
        item_rows: Any,
        values: Any,
        weights: Any,
        mean_state: Any,
        rates: Any,
        rounding_key: Any,
        revision: Any,
    ) -> None:
        n, rounding = np.uint64(user_rows.size), Rounding(rounding_key, revision)
        total, count = mean_state[ZERO], mean_state[ONE]
        mean = scalar.mean_of(total, count)
        for i in range(n):
            ahead = min(i + AHEAD, n - ONE)
            prefetch_row(users, np.uint64(user_rows[ahead]), BLOCKS, ADAGRAD)
            prefetch_row(items, np.uint64(item_rows[ahead]), BLOCKS, ADAGRAD)
            user, item = np.uint64(user_rows[i]), np.uint64(item_rows[i])
            value = values[i] if values.size else _F1
            weight = weights[i] if weights.size else _F1
            s = score(mean, users, items, user, item, BLOCKS)
            if LOSS == _SQUARED:
                e = scalar.squared_error(s, value, weight, rates.error_max)
                total += scalar.fixed_point(value)
                count += 1
                mean = scalar.mean_of(total, count)
            else:
                e = scalar.logistic_error(s, value, weight, rates.error_max)
            x_start, y_start = user * row_bytes(BLOCKS), item * row_bytes(BLOCKS)
            x_word, y_word = row_word(users, user, rounding, i), row_word(items, item, rounding, i)
            for c in range(BLOCKS):
                at = c * VECTOR_BYTES
                x, y = load_factors(users.factors, x_start + at), load_factors(items.factors, y_start + at)
                g, g_item = scalar.pull(e, y, rates.l2, x), scalar.pull(e, x, rates.l2, y)
                step_block(users, x_start, at, x, g, ADAGRAD, rates, x_word)
                step_block(items, y_start, at, y, g_item, ADAGRAD, rates, y_word)
            x_bias, y_bias = real(users.bias, user), real(items.bias, item)
            step_bias(users, user, x_bias, scalar.bias_pull(e, rates.bias_l2, x_bias), ADAGRAD, rates)
            step_bias(items, item, y_bias, scalar.bias_pull(e, rates.bias_l2, y_bias), ADAGRAD, rates)
        mean_state[ZERO], mean_state[ONE] = total, count

    return livefactor_positive_kernel


@inlined
def _share_rows(user_rows: Any, item_rows: Any, negatives: Any, width: Any, a: Any, b: Any) -> Any:
    """Whether events a and b name one row; drawn negatives count, even if the event does not take them."""
    item_a, item_b = word(item_rows, a), word(item_rows, b)
    share = (word(user_rows, a) == word(user_rows, b)) | (item_a == item_b)
    for d in range(width):
        of_a, of_b = word(negatives, a * width + d), word(negatives, b * width + d)
        share |= (of_a == item_b) | (of_b == item_a)
        for other in range(width):
            share |= of_a == word(negatives, b * width + other)
    return share


@inlined
def _clump(user_rows: Any, item_rows: Any, negatives: Any, width: Any, start: Any, most: Any) -> Any:
    """How many events from `start` on, at most `most`, share no row."""
    size, later = most, ONE
    while later < size:
        share = False
        for before in range(start, start + later):
            share |= _share_rows(user_rows, item_rows, negatives, width, before, start + later)
        size = later if share else size
        later += ONE
    return size


@inlined
def _set_slot(lanes: Any, slot: Any, s: Any, target: Any, weight: Any) -> None:
    """A slot's score and what it is judged by: its label or value, with BPR the positive's score."""
    at = slot * WORD_BYTES
    store1(lanes, s, at)
    store1(lanes, target, _TARGETS + at)
    store1(lanes, weight, _WEIGHTS + at)


@inlined
def _take_errors(lanes: Any, slots: Any, loss: Any, rates: Any) -> None:
    """Errors of the first `slots` slots in place of their scores. Other lanes of the last vector are worked on,
    too: they hold what earlier events left, all of it finite."""
    for first in range(ZERO, slots, _LANES):
        at = first * WORD_BYTES
        s, target, weight = load16(lanes, at), load16(lanes, _TARGETS + at), load16(lanes, _WEIGHTS + at)
        if loss == _BPR:
            store16(lanes, scalar.bpr_error(target, s, weight, rates.error_max), at)
        else:
            store16(lanes, scalar.logistic_error(s, target, weight, rates.error_max), at)


@inlined
def _set_slots(
    users: Any,
    items: Any,
    user: Any,
    positive: Any,
    negatives: Any,
    count: Any,
    value: Any,
    weight: Any,
    lanes: Any,
    first: Any,
    blocks: Any,
    loss: Any,
) -> None:
    """Fill an event's slots from the state as it is: `first` for the positive, then one for each of the `count`
    negatives, whose rows are the uint32 at address `negatives`."""
    s = score(_F0, users, items, user, positive, blocks)
    _set_slot(lanes, first, s, value, weight)
    target = s if loss == _BPR else _F0
    for d in range(count):
        s_negative = score(_F0, users, items, user, word(negatives, d), blocks)
        _set_slot(lanes, first + d + ONE, s_negative, target, weight)


@inlined
def _keep_words(
    users: Any, items: Any, user: Any, positive: Any, negatives: Any, count: Any, rounding: Any, step: Any,
    words: Any,
) -> None:  # fmt: skip
    """Write the random words of an event's rows, where factors are narrow, to the uint32 at address `words`: the
    user's, the positive's, then the negatives'."""
    if dtype_of(users.factors) != FLOAT32:
        store_u32(words, row_word(users, user, rounding, step))
        store_u32(words, row_word(items, positive, rounding, step), WORD_BYTES)
        for d in range(count):
            store_u32(words, row_word(items, word(negatives, d), rounding, step), (d + _TWO) * WORD_BYTES)


@inlined
def _has_repeats(negatives: Any, count: Any) -> bool:
    found = False
    for d in range(ONE, count):
        for before in range(d):
            found |= word(negatives, before) == word(negatives, d)
    return found


@inlined
def _is_first(negatives: Any, d: Any) -> bool:
    first = True
    for before in range(d):
        first &= word(negatives, before) != word(negatives, d)
    return first


@inlined
def _step_repeated(
    items: Any,
    negatives: Any,
    count: Any,
    errors: Any,
    sign: Any,
    at: Any,
    x: Any,
    blocks: Any,
    adagrad: Any,
    rates: Any,
    words: Any,
) -> None:
    """Step one block, `at` bytes into their rows, of negatives of which some are drawn more than once.

    x is the user's old block. A row takes the sum of its occurrences in one step, at its first one.
    """
    for d in range(count):
        if _is_first(negatives, d):
            start = word(negatives, d) * row_bytes(blocks)
            y = load_factors(items.factors, start + at)
            g = scalar.pull(sign * real(errors, d + ONE), x, rates.l2, y)
            for later in range(d + ONE, count):
                if word(negatives, later) == word(negatives, d):
                    g = g + scalar.pull(sign * real(errors, later + ONE), x, rates.l2, y)
            step_block(items, start, at, y, g, adagrad, rates, word(words, d + _TWO))


@inlined
def _step_negative_biases(
    items: Any, negatives: Any, count: Any, repeats: Any, errors: Any, sign: Any, adagrad: Any, rates: Any
) -> None:
    for d in range(count):
        if repeats and not _is_first(negatives, d):
            continue
        row = word(negatives, d)
        bias = real(items.bias, row)
        g = scalar.bias_pull(sign * real(errors, d + ONE), rates.bias_l2, bias)
        if repeats:
            for later in range(d + ONE, count):
                if word(negatives, later) == word(negatives, d):
                    g = g + scalar.bias_pull(sign * real(errors, later + ONE), rates.bias_l2, bias)
        step_bias(items, row, bias, g, adagrad, rates)


@inlined
def _step_logistic_event(
    users: Any,
    items: Any,
    user: Any,
    positive: Any,
    negatives: Any,
    count: Any,
    repeats: Any,
    errors: Any,
    blocks: Any,
    adagrad: Any,
    rates: Any,
    words: Any,
) -> None:
    """Step all rows of a logistic event from its errors."""
    size = row_bytes(blocks)
    x_start, y_start = user * size, positive * size
    for c in range(blocks):
        at = c * VECTOR_BYTES
        x, y = load_factors(users.factors, x_start + at), load_factors(items.factors, y_start + at)
        g = scalar.pull(real(errors, ZERO), y, rates.l2, x)
        g_positive = scalar.pull(real(errors, ZERO), x, rates.l2, y)
        step_block(items, y_start, at, y, g_positive, adagrad, rates, word(words, ONE))
        for d in range(count):
            start, e = word(negatives, d) * size, real(errors, d + ONE)
            other = load_factors(items.factors, start + at)
            g = g + scalar.pull(e, other, rates.l2, x)
            if not repeats:
                g_other = scalar.pull(e, x, rates.l2, other)
                step_block(items, start, at, other, g_other, adagrad, rates, word(words, d + _TWO))
        if repeats:
            _step_repeated(items, negatives, count, errors, _F1, at, x, blocks, adagrad, rates, words)
        step_block(users, x_start, at, x, g, adagrad, rates, word(words, ZERO))
    bias = real(users.bias, user)
    g_bias = scalar.bias_pull(real(errors, ZERO), rates.bias_l2, bias)
    for d in range(count):
        g_bias = g_bias + scalar.bias_pull(real(errors, d + ONE), rates.bias_l2, bias)
    step_bias(users, user, bias, g_bias, adagrad, rates)
    bias = real(items.bias, positive)
    step_bias(
        items, positive, bias, scalar.bias_pull(real(errors, ZERO), rates.bias_l2, bias), adagrad, rates
    )
    _step_negative_biases(items, negatives, count, repeats, errors, _F1, adagrad, rates)


@inlined
def _step_bpr_event(
    users: Any,
    items: Any,
    user: Any,
    positive: Any,
    negatives: Any,
    count: Any,
    repeats: Any,
    errors: Any,
    blocks: Any,
    adagrad: Any,
    rates: Any,
    words: Any,
) -> None:
    """Step all rows of a BPR event (at least one negative) from its errors; the user's bias has no part in
    it."""
    size = row_bytes(blocks)
    x_start, y_start = user * size, positive * size
    for c in range(blocks):
        at = c * VECTOR_BYTES
        x, y = load_factors(users.factors, x_start + at), load_factors(items.factors, y_start + at)
        g = g_positive = x
        for d in range(count):
            start, e = word(negatives, d) * size, real(errors, d + ONE)
            other = load_factors(items.factors, start + at)
            user_term = scalar.pull(e, y - other, rates.l2, x)
            positive_term = scalar.pull(e, x, rates.l2, y)
            g = user_term if d == ZERO else g + user_term
            g_positive = positive_term if d == ZERO else g_positive + positive_term
            if not repeats:
                g_other = scalar.pull(-e, x, rates.l2, other)
                step_block(items, start, at, other, g_other, adagrad, rates, word(words, d + _TWO))
        if repeats:
            _step_repeated(items, negatives, count, errors, -_F1, at, x, blocks, adagrad, rates, words)
        step_block(users, x_start, at, x, g, adagrad, rates, word(words, ZERO))
        step_block(items, y_start, at, y, g_positive, adagrad, rates, word(words, ONE))
    bias = real(items.bias, positive)
    g_bias = scalar.bias_pull(real(errors, ONE), rates.bias_l2, bias)
    for d in range(ONE, count):
        g_bias = g_bias + scalar.bias_pull(real(errors, d + ONE), rates.bias_l2, bias)
    step_bias(items, positive, bias, g_bias, adagrad, rates)
    _step_negative_biases(items, negatives, count, repeats, errors, -_F1, adagrad, rates)


@inlined
def _step_event(
    users: Any,
    items: Any,
    user: Any,
    positive: Any,
    negatives: Any,
    count: Any,
    errors: Any,
    blocks: Any,
    loss: Any,
    adagrad: Any,
    rates: Any,
    rounding: Any,
    i: Any,
    words: Any,
) -> None:
    """Step all rows of event i from its errors."""
    repeats = _has_repeats(negatives, count)
    _keep_words(users, items, user, positive, negatives, count, rounding, i, words)
    if loss == _BPR:
        _step_bpr_event(
            users, items, user, positive, negatives, count, repeats, errors, blocks, adagrad, rates, words
        )
    else:
        _step_logistic_event(
            users, items, user, positive, negatives, count, repeats, errors, blocks, adagrad, rates, words
        )


@cache
def sampled_kernel(blocks: int, loss: int, adagrad: int, drawn: int) -> Any:
    """Kernel of logistic loss or BPR with up to `SAMPLED_NEGATIVES_MAX` negatives an event, drawn beforehand.

    drawn: how many negatives the spec has, up to `DRAWN_ANY`. `user_rows`, `item_rows`, `negatives` are addresses
    of uint32[n], [n], [n, width]; to work in, `lanes` is that of float32[3, `SLOT_LANES`] (finite, at a multiple
    of 64) and `words` that of uint32[2 + width].
    """
    BLOCKS, LOSS, ADAGRAD = np.uint64(blocks), int(loss), int(adagrad)
    DRAWN = int(drawn)

    @compiled
    def livefactor_sampled_kernel(
        users: Any,
        items: Any,
        user_rows: Any,
        item_rows: Any,
        n: Any,
        values: Any,
        weights: Any,
        negatives: Any,
        width: Any,
        lanes: Any,
        words: Any,
        rates: Any,
        rounding_key: Any,
        revision: Any,
    ) -> None:
        rounding = Rounding(rounding_key, revision)
        alone = (
            DRAWN > 0 and width == ZERO
        )  # one item alive: there is no other to draw, or to compare it with
        if LOSS == _BPR and alone:
            return
        if DRAWN < DRAWN_ANY:
            width = np.uint64(DRAWN)
        slots = width + ONE
        clump_max = ONE if alone else min(max(_LANES // slots, ONE), CLUMP_EVENTS_MAX)
        lead = clump_max + SAMPLED_AHEAD
        start = ZERO
        while start < n:
            size = _clump(user_rows, item_rows, negatives, width, start, min(n - start, clump_max))
            for i in range(start, start + size):
                ahead = min(i + lead, n - ONE)
                prefetch_row(users, word(user_rows, ahead), BLOCKS, ADAGRAD)
                prefetch_row(items, word(item_rows, ahead), BLOCKS, ADAGRAD)
                if not alone:
                    for d in range(width):
                        prefetch_row(items, word(negatives, ahead * width + d), BLOCKS, ADAGRAD)
                user, positive = word(user_rows, i), word(item_rows, i)
                value = values[i] if values.size else _F1
                weight = weights[i] if weights.size else _F1
                drawn, first = negatives + i * width * WORD_BYTES, (i - start) * slots
                judged = value, weight, lanes, first
                if DRAWN > 0 and LOSS == _LOGISTIC and (alone or value == _F0):  # the constant drops loops
                    _set_slots(users, items, user, positive, drawn, ZERO, *judged, BLOCKS, LOSS)
                else:
                    _set_slots(users, items, user, positive, drawn, width, *judged, BLOCKS, LOSS)
            _take_errors(lanes, size * slots, LOSS, rates)
            for i in range(start, start + size):
                user, positive = word(user_rows, i), word(item_rows, i)
                value = values[i] if values.size else _F1
                drawn, errors = negatives + i * width * WORD_BYTES, lanes + (i - start) * slots * WORD_BYTES
                if DRAWN > 0 and LOSS == _LOGISTIC and (alone or value == _F0):
                    _step_event(
                        users, items, user, positive, drawn, ZERO, errors, BLOCKS, LOSS, ADAGRAD, rates,
                        rounding, i, words,
                    )  # fmt: skip
                else:
                    _step_event(
                        users, items, user, positive, drawn, width, errors, BLOCKS, LOSS, ADAGRAD, rates,
                        rounding, i, words,
                    )  # fmt: skip
            start += size

    return livefactor_sampled_kernel
