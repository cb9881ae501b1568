"""The kernel of adversarial training, for any micro-batch (semantics: `sgd/adversarial.py`).

It is built like the kernel of ordered micro-batches (`sgd/cpu_micro_batch.py`). Here the sums of
items wait in scratch like those of users, because a pair of BPR adds the other item's old factors.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import VECTOR_BYTES, broadcast, store1, tree_sum
from livefactor_kernels.numbers.narrow import load_factors
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers import Method
from livefactor_kernels.optimizers.cpu import Model, l2_of, step_row
from livefactor_kernels.sgd.adversarial import bpr_pair, logistic_pair
from livefactor_kernels.sgd.cpu_micro_batch import Batch
from livefactor_kernels.simd.gradients import (
    CHUNK_EVENTS,
    END,
    Chains,
    add_block,
    finish,
    link,
    place_for,
    reset,
    set_word,
)
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import ONE, WORD_BYTES, ZERO, Rounding, dot, real, row_bytes, score, word
from livefactor_kernels.spec.model import LANES, Loss, ModelSpec
from livefactor_kernels.tables.cpu import Table

_BPR = int(Loss.BPR)
_F0, _F1 = np.float32(0.0), np.float32(1.0)
_TERMS = np.uint64(3)
"""Numbers that a pair leaves: the errors, the term of the user, and that of the item."""


class Scratch(NamedTuple):
    """Working memory of the kernel of one model, as addresses. It is not part of the state.

    Attributes:
        users, items: lists of occurrences.
        pairs: float32[B * slots, 3], what each pair leaves.
        counts: uint32[B], slots of each event.
        gradients: gradient rows of k_padded + 16 floats: B rows for users, B * slots for items, and
            one for a chunk.
        micro_batch: B.
    """

    users: Chains
    items: Chains
    pairs: np.uint64
    counts: np.uint64
    gradients: np.uint64
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
    pairs, counts = address((slots, 3), np.float32), address((events,), np.uint32)
    gradients = address((events + slots + 1, spec.k_padded + LANES), np.float32)
    return Scratch(chains[0], chains[1], pairs, counts, gradients, np.uint64(events)), arrays


@inlined
def _left(scratch: Any, slot: Any, number: Any) -> Any:
    """Number `number` of what a pair left."""
    return real(scratch.pairs, slot * _TERMS + number)


@inlined
def _leave(scratch: Any, slot: Any, terms: Any) -> None:
    at = scratch.pairs + slot * _TERMS * WORD_BYTES
    store1(at, terms[0])
    store1(at, terms[1], WORD_BYTES)
    store1(at, terms[2], WORD_BYTES + WORD_BYTES)


@inlined
def _score(model: Any, user: Any, item: Any) -> Any:
    return score(_F0, model.users, model.items, user, item, model.blocks)


@inlined
def _logistic(model: Any, user: Any, item: Any, value: Any, weight: Any, attack: Any) -> Any:
    """What a pair of a user and an item leaves."""
    users, items, blocks, limit = (
        model.users.factors,
        model.items.factors,
        model.blocks,
        model.rates.error_max,
    )
    x, y = user * row_bytes(blocks), item * row_bytes(blocks)
    s = _score(model, user, item)
    e = scalar.logistic_error(s, value, weight, limit)
    q = dot(users, x, items, y, blocks)
    x2, y2 = dot(users, x, users, x, blocks), dot(items, y, items, y, blocks)
    return logistic_pair(s, e, q, x2, y2, value, weight, limit, attack)


@inlined
def _bpr(model: Any, user: Any, positive: Any, negative: Any, weight: Any, attack: Any) -> Any:
    """What a pair of a user and two items leaves."""
    users, items, blocks, limit = (
        model.users.factors,
        model.items.factors,
        model.blocks,
        model.rates.error_max,
    )
    size = row_bytes(blocks)
    x, p, n = user * size, positive * size, negative * size
    s, s_negative = _score(model, user, positive), _score(model, user, negative)
    v = load_factors(items, p) - load_factors(items, n)
    q, v2 = load_factors(users, x) * v, v * v
    for c in range(ONE, blocks):
        at = c * VECTOR_BYTES
        v = load_factors(items, p + at) - load_factors(items, n + at)
        q, v2 = q + load_factors(users, x + at) * v, v2 + v * v
    x2 = dot(users, x, users, x, blocks)
    e = scalar.bpr_error(s, s_negative, weight, limit)
    return bpr_pair(s, s_negative, e, tree_sum(q), x2, tree_sum(v2), weight, limit, attack)


@inlined
def _take_pairs(model: Any, batch: Any, scratch: Any, record: Any, attack: Any, loss: Any) -> Any:
    """Computes what the pairs of a micro-batch leave, and links the occurrences of its rows.

    `record` is its values and weights. Returns the numbers of user rows and item rows.
    scratch.counts[t] becomes the number of slots of event t. 0 means that the event changes
    nothing.
    """
    width, used_users, used_items = batch.width, ZERO, ZERO
    values, weights = record
    for t in range(batch.events):
        user, positive = word(batch.users, t), word(batch.items, t)
        value = values[batch.start + t] if values.size else _F1
        weight = weights[batch.start + t] if weights.size else _F1
        count = ZERO if loss != _BPR and value == _F0 else width
        slot = t * (width + ONE)
        if loss == _BPR and width == ZERO:
            # The only item has no other item to be contrasted with.
            set_word(scratch.counts, t, ZERO)
            continue
        if loss != _BPR:
            _leave(scratch, slot, _logistic(model, user, positive, value, weight, attack))
        set_word(scratch.counts, t, count + ONE)
        used_users = link(scratch.users, used_users, user, t)
        used_items = link(scratch.items, used_items, positive, slot)
        for d in range(count):
            item = word(batch.negatives, t * width + d)
            if loss == _BPR:
                _leave(scratch, slot + d + ONE, _bpr(model, user, positive, item, weight, attack))
            else:
                _leave(scratch, slot + d + ONE, _logistic(model, user, item, _F0, weight, attack))
            used_items = link(scratch.items, used_items, item, slot + d + ONE)
    return used_users, used_items


class Places(NamedTuple):
    """The places of the rows of an occurrence in bytes: its own, and of the other side.

    `second` is the other item of a pair of BPR.
    """

    own: Any
    other: Any
    second: Any


@inlined
def _add_user(target: Any, fresh: Any, model: Any, at: Any, e: Any, l2: Any, loss: Any) -> None:
    """Adds an occurrence of a user. With BPR the other row is the difference of two items."""
    for c in range(model.blocks):
        step = c * VECTOR_BYTES
        other = load_factors(model.items.factors, at.other + step)
        if loss == _BPR:
            other = other - load_factors(model.items.factors, at.second + step)
        own = load_factors(model.users.factors, at.own + step)
        add_block(target, c, fresh, scalar.pull(e, other, l2, own))


@inlined
def _add_item(target: Any, fresh: Any, model: Any, at: Any, e: Any, l2: Any, m: Any, loss: Any) -> None:
    """Adds an occurrence of an item. With BPR it moves away from the second item by `m`."""
    for c in range(model.blocks):
        step = c * VECTOR_BYTES
        own = load_factors(model.items.factors, at.own + step)
        term = scalar.pull(e, load_factors(model.users.factors, at.other + step), l2, own)
        if loss == _BPR:
            term = term + m * (own - load_factors(model.items.factors, at.second + step))
        add_block(target, c, fresh, term)


@inlined
def _user_gradient(model: Any, batch: Any, scratch: Any, q: Any, total: Any, chunk: Any, loss: Any) -> None:
    """Sums the occurrences of user number q of the micro-batch in the gradient row `total`."""
    users, blocks, rates = model.users, model.blocks, model.rates
    size, slots, user = row_bytes(blocks), batch.width + ONE, word(scratch.users.row, q)
    bias = real(users.bias, user)
    l2, bias_l2 = l2_of(users, user, rates.l2, model.method), l2_of(users, user, rates.bias_l2, model.method)
    number, events, t = ZERO, ZERO, word(scratch.users.first, q)
    while t != END:
        positive = word(batch.items, t) * size
        for s in range(ONE if loss == _BPR else ZERO, word(scratch.counts, t)):
            target, fresh = place_for(total, chunk, number, blocks), number % CHUNK_EVENTS == ZERO
            slot = t * slots + s
            e, term = _left(scratch, slot, ZERO), _left(scratch, slot, ONE)
            drawn = positive if s == ZERO else word(batch.negatives, t * batch.width + s - ONE) * size
            at = Places(user * size, positive if loss == _BPR else drawn, drawn)
            _add_user(target, fresh, model, at, e, l2 + term, loss)
            of_bias = broadcast(_F0 if loss == _BPR else scalar.bias_pull(e, bias_l2, bias))
            add_block(target, blocks, fresh, of_bias)
            number += ONE
        events += ONE
        t = word(scratch.users.next, t)
    finish(total, chunk, number, events, rates.hot_events, blocks)


@inlined
def _item_gradient(model: Any, batch: Any, scratch: Any, q: Any, total: Any, chunk: Any, loss: Any) -> None:
    """Sums the occurrences of item number q of the micro-batch in the gradient row `total`."""
    items, blocks, rates = model.items, model.blocks, model.rates
    size, slots, item = row_bytes(blocks), batch.width + ONE, word(scratch.items.row, q)
    bias = real(items.bias, item)
    l2, bias_l2 = l2_of(items, item, rates.l2, model.method), l2_of(items, item, rates.bias_l2, model.method)
    number, events, o, last_event = ZERO, ZERO, word(scratch.items.first, q), END
    while o != END:
        t = o // slots
        positive = o == t * slots
        # A BPR positive has one occurrence per negative of its event.
        for d in range(batch.width if loss == _BPR and positive else ONE):
            target, fresh = place_for(total, chunk, number, blocks), number % CHUNK_EVENTS == ZERO
            slot = o + d + ONE if loss == _BPR and positive else o
            e, term = _left(scratch, slot, ZERO), _left(scratch, slot, ONE + ONE)
            second = (
                word(batch.negatives, t * batch.width + d)
                if positive and batch.width
                else word(batch.items, t)
            )
            at = Places(item * size, word(batch.users, t) * size, second * size)
            if loss == _BPR:
                e = e if positive else -e
                _add_item(target, fresh, model, at, e, l2, term, loss)
            else:
                _add_item(target, fresh, model, at, e, l2 + term, _F0, loss)
            add_block(target, blocks, fresh, broadcast(scalar.bias_pull(e, bias_l2, bias)))
            number += ONE
        if t != last_event:
            events += ONE
        last_event = t
        o = word(scratch.items.next, o)
    finish(total, chunk, number, events, rates.hot_events, blocks)


@inlined
def _sum_and_step(model: Any, batch: Any, scratch: Any, used: Any, rounding: Any, loss: Any) -> None:
    """Sums all rows of the micro-batch, then steps them. `used` are the numbers of user rows and
    item rows.
    """
    used_users, used_items = used
    stride = row_bytes(model.blocks + ONE)
    of_items = scratch.gradients + scratch.micro_batch * stride
    chunk = of_items + scratch.micro_batch * (batch.width + ONE) * stride
    for q in range(used_users):
        _user_gradient(model, batch, scratch, q, scratch.gradients + q * stride, chunk, loss)
    for q in range(used_items):
        _item_gradient(model, batch, scratch, q, of_items + q * stride, chunk, loss)
    for q in range(used_items):
        step_row(model, model.items, word(scratch.items.row, q), of_items + q * stride, True, rounding)
    for q in range(used_users):
        total = scratch.gradients + q * stride
        step_row(model, model.users, word(scratch.users.row, q), total, loss != _BPR, rounding)


@cache
def adversarial_kernel(blocks: int, loss: int, method: Method) -> Any:
    """A kernel for rows of `blocks` vectors.

    Its arguments are those of the kernel of micro-batches. `attack` is (adversarial_weight,
    adversarial_share), float32.
    """
    BLOCKS, LOSS, METHOD = np.uint64(blocks), int(loss), method

    @compiled
    def livefactor_adversarial_kernel(
        users: Any, items: Any, user_rows: Any, item_rows: Any, n: Any, values: Any, weights: Any, revision: Any,
        negatives: Any, width: Any, rates: Any, key: Any, scratch: Any, attack: Any,
    ) -> None:  # fmt: skip
        model, micro_batch = Model(users, items, BLOCKS, METHOD, rates), scratch.micro_batch
        for start in range(ZERO, n, micro_batch):
            at = start * WORD_BYTES
            count = min(micro_batch, n - start)
            batch = Batch(user_rows + at, item_rows + at, negatives + at * width, width, count, start)
            used = _take_pairs(model, batch, scratch, (values, weights), attack, LOSS)
            _sum_and_step(model, batch, scratch, used, Rounding(key, revision, start // micro_batch), LOSS)
            reset(scratch.users, used[0])
            reset(scratch.items, used[1])

    return livefactor_adversarial_kernel
