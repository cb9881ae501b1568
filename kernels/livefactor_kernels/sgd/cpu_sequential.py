"""The kernels of B = 1: exact sequential steps in the order of arrival.

`positive_kernel` is for squared loss, and for logistic loss without negatives if clumps gain
nothing. `sampled_kernel` is for logistic loss and BPR.

The kernels prefetch the rows of an event `AHEAD` events earlier, because the arithmetic of an event
takes less time than one cache miss. With narrow factors a call takes one record, so that the number
of an event in the call is its number in the record.

A sigmoid between the dot products and the steps of an event stalls a CPU for longer than its
look-ahead. So `sampled_kernel` processes a clump of consecutive events that share no row: all
scores, then all errors in the lanes of a vector, then the steps in order. No event of a clump reads
a row that another one writes. So the bits are those of single events.

The factories compile k, loss and optimiser into the code as integers. They are part of the key of
the cache (`numbers/compiled.py`).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import LANES, VECTOR_BYTES, load16, store1, store16, store_u32
from livefactor_kernels.numbers.narrow import dtype_of, load_factors
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers.cpu import Block, step_plain_bias, step_plain_factors
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
    word,
)
from livefactor_kernels.spec.model import Loss

AHEAD = np.uint64(12)
# Events in addition to a clump. The rows of more events would not fit the first cache.
SAMPLED_AHEAD = np.uint64(4)
SAMPLED_NEGATIVES_MAX = 16
"""Maximum number of negatives per event in `sampled_kernel`.

Together with the positive they fit in one chunk of occurrences.
"""
NEGATIVES_ANY = 2
"""The number of negatives of a kernel that takes it as an argument.

For zero and one negatives there are kernels of their own without the loops.
"""
CLUMP_EVENTS_MAX = np.uint64(6)
SLOT_LANES = 2 * LANES
"""Slots of a clump in whole vectors: at most `LANES`, or those of one event."""

_SQUARED, _LOGISTIC, _BPR = int(Loss.SQUARED), int(Loss.LOGISTIC), int(Loss.BPR)
_F0, _F1 = np.float32(0.0), np.float32(1.0)
_TWO = np.uint64(2)
_LANES = np.uint64(LANES)
# Places in `lanes`, in bytes.
_TARGETS, _WEIGHTS = np.uint64(4 * SLOT_LANES), np.uint64(8 * SLOT_LANES)


class Record(NamedTuple):
    """The columns of a record, as the kernels of rule SGD take them.

    Attributes:
        user_rows, item_rows: addresses of rows, uint32[n].
        events: n, the number of events.
        values, weights: float32[n], or empty if all are 1.
        revision: revision of the record.
    """

    user_rows: Any
    item_rows: Any
    events: Any
    values: Any
    weights: Any
    revision: Any


class Sides(NamedTuple):
    """Both tables: `Rows`."""

    users: Any
    items: Any


class Code(NamedTuple):
    """The constants of a kernel.

    blocks: vectors of a row. loss: the number of a `Loss`. adagrad: whether AdaGrad steps the rows.
    """

    blocks: Any
    loss: Any
    adagrad: Any


class Event(NamedTuple):
    """An event's rows, and the places of its numbers.

    user, positive: row numbers. negatives: address of row numbers uint32[count]. errors: address of
    float32[1 + count], the positive's first. words: address of uint32[2 + count], the random words
    of the rows' steps.
    """

    user: Any
    positive: Any
    negatives: Any
    count: Any
    errors: Any
    words: Any


@cache
def positive_kernel(blocks: int, loss: int, adagrad: int) -> Any:
    """A kernel of squared or logistic loss without negatives, for rows of `blocks` vectors.

    Its arguments from `user_rows` to `revision` are those of `Record`. `key` is the key of
    `ROUNDING_DOMAIN`.
    """
    BLOCKS, LOSS, ADAGRAD = np.uint64(blocks), int(loss), int(adagrad)

    @compiled
    def livefactor_positive_kernel(
        users: Any, items: Any, user_rows: Any, item_rows: Any, n: Any, values: Any, weights: Any, revision: Any,
        mean_state: Any, rates: Any, key: Any,
    ) -> None:  # fmt: skip
        total, count = mean_state[ZERO], mean_state[ONE]
        mean = scalar.mean_of(total, count)
        for i in range(n):
            ahead = min(i + AHEAD, n - ONE)
            prefetch_row(users, word(user_rows, ahead), BLOCKS, ADAGRAD)
            prefetch_row(items, word(item_rows, ahead), BLOCKS, ADAGRAD)
            user, item = word(user_rows, i), word(item_rows, i)
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
            rounding = Rounding(key, revision, i)
            x_word, y_word = row_word(users, user, rounding), row_word(items, item, rounding)
            for c in range(BLOCKS):
                at = c * VECTOR_BYTES
                x, y = load_factors(users.factors, x_start + at), load_factors(items.factors, y_start + at)
                g, g_item = scalar.pull(e, y, rates.l2, x), scalar.pull(e, x, rates.l2, y)
                step_plain_factors(users, Block(x_start, at), x, g, ADAGRAD, rates, x_word)
                step_plain_factors(items, Block(y_start, at), y, g_item, ADAGRAD, rates, y_word)
            x_bias, y_bias = real(users.bias, user), real(items.bias, item)
            step_plain_bias(users, user, x_bias, scalar.bias_pull(e, rates.bias_l2, x_bias), ADAGRAD, rates)
            step_plain_bias(items, item, y_bias, scalar.bias_pull(e, rates.bias_l2, y_bias), ADAGRAD, rates)
        mean_state[ZERO], mean_state[ONE] = total, count

    return livefactor_positive_kernel


@inlined
def _share_rows(user_rows: Any, item_rows: Any, negatives: Any, width: Any, a: Any, b: Any) -> Any:
    """Whether events a and b share a row. Drawn negatives count even if the event does not use
    them.
    """
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
    """Number of events from `start` on, at most `most`, that share no row."""
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
    """Stores the score of a slot and its target: its label or value, or with BPR the positive's
    score.
    """
    at = slot * WORD_BYTES
    store1(lanes, s, at)
    store1(lanes, target, _TARGETS + at)
    store1(lanes, weight, _WEIGHTS + at)


@inlined
def _take_errors(lanes: Any, slots: Any, loss: Any, rates: Any) -> None:
    """Replaces the scores of the first `slots` slots by their errors.

    It computes all lanes of the last vector. The other lanes have finite values of earlier events.
    """
    for first in range(ZERO, slots, _LANES):
        at = first * WORD_BYTES
        s, target, weight = load16(lanes, at), load16(lanes, _TARGETS + at), load16(lanes, _WEIGHTS + at)
        if loss == _BPR:
            store16(lanes, scalar.bpr_error(target, s, weight, rates.error_max), at)
        else:
            store16(lanes, scalar.logistic_error(s, target, weight, rates.error_max), at)


@inlined
def _set_slots(sides: Any, event: Any, value: Any, weight: Any, lanes: Any, code: Any) -> None:
    """Fills the slots of an event in `lanes` from the present state.

    The first slot, at `event.errors`, is for the positive. Those of the negatives follow.
    """
    first = (event.errors - lanes) // WORD_BYTES
    s = score(_F0, sides.users, sides.items, event.user, event.positive, code.blocks)
    _set_slot(lanes, first, s, value, weight)
    target = s if code.loss == _BPR else _F0
    for d in range(event.count):
        negative = word(event.negatives, d)
        s_negative = score(_F0, sides.users, sides.items, event.user, negative, code.blocks)
        _set_slot(lanes, first + d + ONE, s_negative, target, weight)


@inlined
def _store_words(sides: Any, event: Any, rounding: Any) -> None:
    """Writes the random words of an event's rows: user, positive, negatives.

    Only narrow factors need them.
    """
    users, items, words = sides.users, sides.items, event.words
    if dtype_of(users.factors) != FLOAT32:
        store_u32(words, row_word(users, event.user, rounding))
        store_u32(words, row_word(items, event.positive, rounding), WORD_BYTES)
        for d in range(event.count):
            random = row_word(items, word(event.negatives, d), rounding)
            store_u32(words, random, (d + _TWO) * WORD_BYTES)


@inlined
def _has_repeats(negatives: Any, count: Any) -> bool:
    repeats = False
    for d in range(ONE, count):
        for before in range(d):
            repeats |= word(negatives, before) == word(negatives, d)
    return repeats


@inlined
def _is_first(negatives: Any, d: Any) -> bool:
    first = True
    for before in range(d):
        first &= word(negatives, before) != word(negatives, d)
    return first


@inlined
def _step_repeats(items: Any, event: Any, sign: Any, at: Any, x: Any, code: Any, rates: Any) -> None:
    """Steps one block of the negatives of an event, some of which occur more than once.

    The block is `at` bytes into the rows. x is the user's old block. A row takes the sum of its
    occurrences in one step, at the first one.
    """
    negatives, errors = event.negatives, event.errors
    for d in range(event.count):
        if _is_first(negatives, d):
            start = word(negatives, d) * row_bytes(code.blocks)
            y = load_factors(items.factors, start + at)
            g = scalar.pull(sign * real(errors, d + ONE), x, rates.l2, y)
            for later in range(d + ONE, event.count):
                if word(negatives, later) == word(negatives, d):
                    g = g + scalar.pull(sign * real(errors, later + ONE), x, rates.l2, y)
            step_plain_factors(
                items, Block(start, at), y, g, code.adagrad, rates, word(event.words, d + _TWO)
            )


@inlined
def _step_negative_biases(items: Any, event: Any, repeats: Any, sign: Any, code: Any, rates: Any) -> None:
    negatives, errors = event.negatives, event.errors
    for d in range(event.count):
        if repeats and not _is_first(negatives, d):
            continue
        row = word(negatives, d)
        bias = real(items.bias, row)
        g = scalar.bias_pull(sign * real(errors, d + ONE), rates.bias_l2, bias)
        if repeats:
            for later in range(d + ONE, event.count):
                if word(negatives, later) == word(negatives, d):
                    g = g + scalar.bias_pull(sign * real(errors, later + ONE), rates.bias_l2, bias)
        step_plain_bias(items, row, bias, g, code.adagrad, rates)


@inlined
def _step_logistic_event(sides: Any, event: Any, repeats: Any, code: Any, rates: Any) -> None:
    """Steps all rows of a logistic event from its errors."""
    users, items = sides
    user, positive, negatives, count, errors, words = event
    size, adagrad = row_bytes(code.blocks), code.adagrad
    x_start, y_start = user * size, positive * size
    for c in range(code.blocks):
        at = c * VECTOR_BYTES
        x, y = load_factors(users.factors, x_start + at), load_factors(items.factors, y_start + at)
        g = scalar.pull(real(errors, ZERO), y, rates.l2, x)
        g_positive = scalar.pull(real(errors, ZERO), x, rates.l2, y)
        step_plain_factors(items, Block(y_start, at), y, g_positive, adagrad, rates, word(words, ONE))
        for d in range(count):
            start, e = word(negatives, d) * size, real(errors, d + ONE)
            other = load_factors(items.factors, start + at)
            g = g + scalar.pull(e, other, rates.l2, x)
            if not repeats:
                g_other = scalar.pull(e, x, rates.l2, other)
                step_plain_factors(
                    items, Block(start, at), other, g_other, adagrad, rates, word(words, d + _TWO)
                )
        if repeats:
            _step_repeats(items, event, _F1, at, x, code, rates)
        step_plain_factors(users, Block(x_start, at), x, g, adagrad, rates, word(words, ZERO))
    bias = real(users.bias, user)
    g_bias = scalar.bias_pull(real(errors, ZERO), rates.bias_l2, bias)
    for d in range(count):
        g_bias = g_bias + scalar.bias_pull(real(errors, d + ONE), rates.bias_l2, bias)
    step_plain_bias(users, user, bias, g_bias, adagrad, rates)
    bias = real(items.bias, positive)
    g_bias = scalar.bias_pull(real(errors, ZERO), rates.bias_l2, bias)
    step_plain_bias(items, positive, bias, g_bias, adagrad, rates)
    _step_negative_biases(items, event, repeats, _F1, code, rates)


@inlined
def _step_bpr_event(sides: Any, event: Any, repeats: Any, code: Any, rates: Any) -> None:
    """Steps all rows of a BPR event, which has at least one negative, from its errors.

    The user's bias stays.
    """
    users, items = sides
    user, positive, negatives, count, errors, words = event
    size, adagrad = row_bytes(code.blocks), code.adagrad
    x_start, y_start = user * size, positive * size
    for c in range(code.blocks):
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
                step_plain_factors(
                    items, Block(start, at), other, g_other, adagrad, rates, word(words, d + _TWO)
                )
        if repeats:
            _step_repeats(items, event, -_F1, at, x, code, rates)
        step_plain_factors(users, Block(x_start, at), x, g, adagrad, rates, word(words, ZERO))
        step_plain_factors(items, Block(y_start, at), y, g_positive, adagrad, rates, word(words, ONE))
    bias = real(items.bias, positive)
    g_bias = scalar.bias_pull(real(errors, ONE), rates.bias_l2, bias)
    for d in range(ONE, count):
        g_bias = g_bias + scalar.bias_pull(real(errors, d + ONE), rates.bias_l2, bias)
    step_plain_bias(items, positive, bias, g_bias, adagrad, rates)
    _step_negative_biases(items, event, repeats, -_F1, code, rates)


@inlined
def _step_event(sides: Any, event: Any, code: Any, rates: Any, rounding: Any) -> None:
    """Steps all rows of an event from its errors."""
    repeats = _has_repeats(event.negatives, event.count)
    _store_words(sides, event, rounding)
    if code.loss == _BPR:
        _step_bpr_event(sides, event, repeats, code, rates)
    else:
        _step_logistic_event(sides, event, repeats, code, rates)


@cache
def sampled_kernel(blocks: int, loss: int, adagrad: int, negatives: int) -> Any:
    """A kernel of logistic loss or BPR with up to `SAMPLED_NEGATIVES_MAX` drawn negatives per
    event.

    `negatives` is the spec's number of negatives, up to `NEGATIVES_ANY`. The kernel's arguments
    from `user_rows` to `width` are those of `Record`. `key` is the key of `ROUNDING_DOMAIN`. As
    working memory, `lanes` is the address of float32[3, `SLOT_LANES`] (finite, at a multiple of
    64), and `words` is that of uint32[2 + width].
    """
    BLOCKS, LOSS, ADAGRAD = np.uint64(blocks), int(loss), int(adagrad)
    NEGATIVES, CODE = int(negatives), Code(BLOCKS, LOSS, ADAGRAD)

    @compiled
    def livefactor_sampled_kernel(
        users: Any, items: Any, user_rows: Any, item_rows: Any, n: Any, values: Any, weights: Any, revision: Any,
        negatives: Any, width: Any, rates: Any, key: Any, lanes: Any, words: Any,
    ) -> None:  # fmt: skip
        sides = Sides(users, items)
        # The only item has no other item to be contrasted with.
        alone = NEGATIVES > 0 and width == ZERO
        if LOSS == _BPR and alone:
            return
        if NEGATIVES < NEGATIVES_ANY:
            width = np.uint64(NEGATIVES)
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
                own, errors = negatives + i * width * WORD_BYTES, lanes + (i - start) * slots * WORD_BYTES
                # The constant ZERO removes the loops over negatives.
                if NEGATIVES > 0 and LOSS == _LOGISTIC and (alone or value == _F0):
                    event = Event(user, positive, own, ZERO, errors, words)
                    _set_slots(sides, event, value, weight, lanes, CODE)
                else:
                    event = Event(user, positive, own, width, errors, words)
                    _set_slots(sides, event, value, weight, lanes, CODE)
            _take_errors(lanes, size * slots, LOSS, rates)
            for i in range(start, start + size):
                user, positive = word(user_rows, i), word(item_rows, i)
                value = values[i] if values.size else _F1
                own, errors = negatives + i * width * WORD_BYTES, lanes + (i - start) * slots * WORD_BYTES
                rounding = Rounding(key, revision, i)
                if NEGATIVES > 0 and LOSS == _LOGISTIC and (alone or value == _F0):
                    event = Event(user, positive, own, ZERO, errors, words)
                    _step_event(sides, event, CODE, rates, rounding)
                else:
                    event = Event(user, positive, own, width, errors, words)
                    _step_event(sides, event, CODE, rates, rounding)
            start += size

    return livefactor_sampled_kernel
