"""Kernel of ordered micro-batches (any B, any loss): errors first, then every row's sum in the order of the semantics, then its step.

The occurrences of a row are a linked list in order of (event, slot), built while the errors are taken; so a row named by half of the
batch costs no more per occurrence than one named twice. Users' gradients wait in scratch until the items, which need the users' old
factors, have stepped. Scratch is sized by the micro-batch, but for two arrays `place` of one word a row, of which only used words are
touched and set back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import register_jitable

from . import scalar
from .cpu_sequential import event_errors
from .lanes import VECTOR_BYTES, broadcast, load1, load16, store16
from .reference import CHUNK
from .spec import LANES, Loss, ModelSpec
from .steps import FLOAT_BYTES, ONE, ZERO, prefetch_row, row_bytes, score, step_bias, step_block
from .tables import Table, reserve

_CHUNK = np.uint64(CHUNK)
_END = np.uint32(0xFFFFFFFF)
_AHEAD = np.uint64(8)
_SQUARED, _LOGISTIC, _BPR = int(Loss.SQUARED), int(Loss.LOGISTIC), int(Loss.BPR)
_F0, _F1 = np.float32(0.0), np.float32(1.0)


class Chains(NamedTuple):
    """Occurrences by row of one side, as linked lists of occurrence numbers (uint32 throughout).

    place[row]: 1 + the row's number among the rows used, 0 if unused. row, first, last: by that number. next: by occurrence.
    """

    place: np.ndarray
    row: np.ndarray
    first: np.ndarray
    last: np.ndarray
    next: np.ndarray

    @staticmethod
    def of(table: Table, occurrences: int) -> Chains:
        """Chains for a table and up to `occurrences` occurrences a micro-batch."""
        sizes = (table.capacity, occurrences, occurrences, occurrences, occurrences)
        return Chains(*(reserve((size,), np.uint32) for size in sizes))


class Scratch(NamedTuple):
    """Working memory of the kernel, for one model: reused over calls, never part of the state.

    errors float32[B * slots]; counts uint32[B]: slots of each event; gradients: address of B rows for the users' gradients, then one for an item's, then one for a chunk;
    a gradient row is k_padded floats and 16 more, of which the first is the bias's.
    """

    users: Chains
    items: Chains
    errors: np.ndarray
    counts: np.ndarray
    gradients: np.uint64

    @staticmethod
    def of(spec: ModelSpec, users: Table, items: Table) -> tuple[Scratch, np.ndarray]:
        """Scratch of a model, and the array that must outlive it (its address is in it)."""
        events = spec.micro_batch
        memory = reserve((events + 2, spec.k_padded + LANES), np.float32)
        slots = events * (1 + spec.negatives)
        scratch = Scratch(
            Chains.of(users, events), Chains.of(items, slots), reserve((slots,), np.float32),
            reserve((events,), np.uint32), np.uint64(memory.ctypes.data),
        )
        return scratch, memory


@register_jitable  # type: ignore[misc]
def _link(chains: Any, used: Any, row: Any, occurrence: Any) -> Any:
    """Append an occurrence to its row's list; the number of rows used after it."""
    place = np.uint64(chains.place[row])
    chains.next[occurrence] = _END
    if place == ZERO:
        chains.row[used], chains.first[used] = row, occurrence
        place = used + ONE
        chains.place[row] = place
        used = place
    else:
        chains.next[np.uint64(chains.last[place - ONE])] = occurrence
    chains.last[place - ONE] = occurrence
    return used


@register_jitable  # type: ignore[misc]
def _reset(chains: Any, used: Any) -> None:
    for q in range(used):
        chains.place[np.uint64(chains.row[q])] = 0


@register_jitable  # type: ignore[misc]
def _add(target: Any, c: Any, fresh: Any, term: Any) -> None:
    """Add 16 lanes to block c of a gradient row, or start it with them."""
    address = target + c * VECTOR_BYTES
    store16(address, term if fresh else load16(address) + term)


@register_jitable  # type: ignore[misc]
def _target(total: Any, chunk: Any, number: Any, blocks: Any) -> Any:
    """Where a row's occurrence `number` adds: the first chunk straight to `total`, later ones to `chunk`, folded when full."""
    if number < _CHUNK:
        return total
    if number % _CHUNK == ZERO and number > _CHUNK:
        _fold(total, chunk, blocks)
    return chunk


@register_jitable  # type: ignore[misc]
def _fold(total: Any, chunk: Any, blocks: Any) -> None:
    for c in range(blocks + ONE):
        at = c * VECTOR_BYTES
        store16(total + at, load16(total + at) + load16(chunk + at))


@register_jitable  # type: ignore[misc]
def _finish(total: Any, chunk: Any, number: Any, events: Any, hot: Any, blocks: Any) -> None:
    """Complete a row's sum of `number` occurrences, and scale it down if more than `hot` events name the row."""
    if number > _CHUNK:
        _fold(total, chunk, blocks)
    scale = scalar.hot_scale(hot, events)
    if scale != _F1:
        for c in range(blocks + ONE):
            at = c * VECTOR_BYTES
            store16(total + at, load16(total + at) * scale)


@register_jitable  # type: ignore[misc]
def _step_row(rows: Any, row: Any, gradient: Any, with_bias: Any, blocks: Any, adagrad: Any, rates: Any) -> None:
    """Step one row by its gradient row."""
    for c in range(blocks):
        at = c * VECTOR_BYTES
        offset = row * row_bytes(blocks) + at
        step_block(rows, offset, load16(rows.factors + offset), load16(gradient + at), adagrad, rates)
    if with_bias:
        bias = load1(rows.bias + row * FLOAT_BYTES)
        step_bias(rows, row, bias, load1(gradient + row_bytes(blocks)), adagrad, rates)


@register_jitable  # type: ignore[misc]
def _add_occurrence(target: Any, fresh: Any, e: Any, other: Any, own: Any, bias: Any, blocks: Any, rates: Any) -> None:
    """Add (e * other) + (lambda * own), and the bias's e + (lambda_b * bias), to a gradient row."""
    for c in range(blocks):
        at = c * VECTOR_BYTES
        _add(target, c, fresh, scalar.pull(e, load16(other + at), rates.l2, load16(own + at)))
    _add(target, blocks, fresh, broadcast(scalar.bias_pull(e, rates.bias_l2, bias)))


@register_jitable  # type: ignore[misc]
def _add_bpr_user(target: Any, fresh: Any, e: Any, y: Any, other: Any, x: Any, blocks: Any, rates: Any) -> None:
    """Add a BPR user's (e * (y_p - y_n)) + (lambda * x) to a gradient row; its bias's lane is unused."""
    for c in range(blocks):
        at = c * VECTOR_BYTES
        difference = load16(y + at) - load16(other + at)
        _add(target, c, fresh, scalar.pull(e, difference, rates.l2, load16(x + at)))
    _add(target, blocks, fresh, broadcast(_F0))


@register_jitable  # type: ignore[misc]
def _user_gradient(
    users: Any, items: Any, user: Any, first: Any, chains: Any, batch: Any, errors: Any, total: Any, chunk: Any,
    blocks: Any, loss: Any, rates: Any,
) -> None:
    """Sum one user's occurrences of a micro-batch to the gradient row `total`."""
    item_rows, negatives, counts = batch
    size, slots = row_bytes(blocks), np.uint64(negatives.shape[1]) + ONE
    x, bias = users.factors + user * size, load1(users.bias + user * FLOAT_BYTES)
    number, events, event = ZERO, ZERO, first
    while event != _END:
        t = np.uint64(event)
        y = items.factors + np.uint64(item_rows[t]) * size
        for s in range(ONE if loss == _BPR else ZERO, np.uint64(counts[t])):
            target, fresh = _target(total, chunk, number, blocks), number % _CHUNK == ZERO
            e = errors[t * slots + s]
            other = y if s == ZERO else items.factors + np.uint64(negatives[t, s - ONE]) * size
            if loss == _BPR:
                _add_bpr_user(target, fresh, e, y, other, x, blocks, rates)
            else:
                _add_occurrence(target, fresh, e, other, x, bias, blocks, rates)
            number += ONE
        events += ONE
        event = chains.next[t]
    _finish(total, chunk, number, events, rates.hot_events, blocks)


@register_jitable  # type: ignore[misc]
def _item_gradient(
    users: Any, items: Any, item: Any, first: Any, chains: Any, user_rows: Any, width: Any, errors: Any, total: Any,
    chunk: Any, blocks: Any, loss: Any, rates: Any,
) -> None:
    """Sum one item's occurrences of a micro-batch to the gradient row `total`."""
    size, slots = row_bytes(blocks), width + ONE
    y, bias = items.factors + item * size, load1(items.bias + item * FLOAT_BYTES)
    number, events, occurrence, last_event = ZERO, ZERO, first, np.uint64(_END)
    while occurrence != _END:
        o = np.uint64(occurrence)
        t = o // slots
        x = users.factors + np.uint64(user_rows[t]) * size
        # A BPR positive occurs once for each negative of its event.
        times = width if loss == _BPR and o == t * slots else ONE
        for d in range(times):
            target, fresh = _target(total, chunk, number, blocks), number % _CHUNK == ZERO
            e = errors[o]
            if loss == _BPR:
                e = errors[o + d + ONE] if o == t * slots else -e
            _add_occurrence(target, fresh, e, x, y, bias, blocks, rates)
            number += ONE
        if t != last_event:
            events += ONE
        last_event = t
        occurrence = chains.next[o]
    _finish(total, chunk, number, events, rates.hot_events, blocks)


@register_jitable  # type: ignore[misc]
def _take_errors(
    users: Any, items: Any, user_rows: Any, item_rows: Any, values: Any, weights: Any, negatives: Any, mean: Any,
    scratch: Any, blocks: Any, loss: Any, adagrad: Any, rates: Any,
) -> Any:
    """Errors of all slots of a micro-batch from the state at its start, and the lists of its rows' occurrences.

    Returns the numbers of users' and items' rows used. scratch.counts[t] becomes the slots of event t (0: it changes nothing).
    """
    n, width = np.uint64(user_rows.size), np.uint64(negatives.shape[1])
    used_users, used_items = ZERO, ZERO
    for t in range(n):
        ahead = min(t + _AHEAD, n - ONE)
        prefetch_row(users, np.uint64(user_rows[ahead]), blocks, adagrad)
        prefetch_row(items, np.uint64(item_rows[ahead]), blocks, adagrad)
        for d in range(width):
            prefetch_row(items, np.uint64(negatives[ahead, d]), blocks, adagrad)
        user, positive = np.uint64(user_rows[t]), np.uint64(item_rows[t])
        value = values[t] if values.size else _F1
        weight = weights[t] if weights.size else _F1
        count = ZERO if loss == _LOGISTIC and value == _F0 else width
        slot = t * (width + ONE)
        errors = scratch.errors[slot : slot + width + ONE]
        if loss == _SQUARED:
            s = score(mean, users, items, user, positive, blocks)
            errors[ZERO] = scalar.squared_error(s, value, weight, rates.error_max)
        else:
            event_errors(users, items, user, positive, negatives[t], count, value, weight, errors, blocks, loss, rates)
        if loss == _BPR and width == ZERO:
            scratch.counts[t] = ZERO  # one item alive: nothing to compare it with
            continue
        scratch.counts[t] = count + ONE
        used_users = _link(scratch.users, used_users, user, t)
        used_items = _link(scratch.items, used_items, positive, slot)
        for d in range(count):
            used_items = _link(scratch.items, used_items, np.uint64(negatives[t, d]), slot + d + ONE)
    return used_users, used_items


@register_jitable  # type: ignore[misc]
def _sum_and_step(
    users: Any, items: Any, user_rows: Any, item_rows: Any, negatives: Any, used_users: Any, used_items: Any,
    scratch: Any, micro_batch: Any, blocks: Any, loss: Any, adagrad: Any, rates: Any,
) -> None:
    """Every row's gradient and step: users' sums to scratch, then the items (sum, step), then the users' steps."""
    stride = row_bytes(blocks + ONE)
    item_total = scratch.gradients + micro_batch * stride
    chunk = item_total + stride
    batch = (item_rows, negatives, scratch.counts)
    for q in range(used_users):
        user, total = np.uint64(scratch.users.row[q]), scratch.gradients + q * stride
        _user_gradient(
            users, items, user, scratch.users.first[q], scratch.users, batch, scratch.errors, total, chunk, blocks,
            loss, rates,
        )
    width = np.uint64(negatives.shape[1])
    for q in range(used_items):
        item = np.uint64(scratch.items.row[q])
        _item_gradient(
            users, items, item, scratch.items.first[q], scratch.items, user_rows, width, scratch.errors, item_total,
            chunk, blocks, loss, rates,
        )
        _step_row(items, item, item_total, True, blocks, adagrad, rates)
    for q in range(used_users):
        user, total = np.uint64(scratch.users.row[q]), scratch.gradients + q * stride
        _step_row(users, user, total, loss != _BPR, blocks, adagrad, rates)


def micro_batch_kernel(blocks: int, loss: int, adagrad: int, stamp: int) -> Callable[..., int]:
    """Kernel for rows of `blocks` vectors: `kernel(users, items, columns..., negatives, mean_state, rates, scratch, B)`."""
    BLOCKS, LOSS, ADAGRAD, STAMP = np.uint64(blocks), int(loss), int(adagrad), int(stamp)

    @njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[misc]
    def livefactor_micro_batch_kernel(
        users: Any, items: Any, user_rows: Any, item_rows: Any, values: Any, weights: Any, negatives: Any,
        mean_state: Any, rates: Any, scratch: Any, micro_batch: Any,
    ) -> int:
        n = np.uint64(user_rows.size)
        for start in range(ZERO, n, micro_batch):
            stop = min(start + micro_batch, n)
            batch_users, batch_items, batch_negatives = (
                user_rows[start:stop], item_rows[start:stop], negatives[start:stop])
            batch_values = values[start:stop] if values.size else values
            batch_weights = weights[start:stop] if weights.size else weights
            mean = scalar.mean_of(mean_state[ZERO], mean_state[ONE])
            used_users, used_items = _take_errors(
                users, items, batch_users, batch_items, batch_values, batch_weights, batch_negatives, mean, scratch,
                BLOCKS, LOSS, ADAGRAD, rates,
            )
            _sum_and_step(
                users, items, batch_users, batch_items, batch_negatives, used_users, used_items, scratch, micro_batch,
                BLOCKS, LOSS, ADAGRAD, rates,
            )
            _reset(scratch.users, used_users)
            _reset(scratch.items, used_items)
            if LOSS == _SQUARED:
                for t in range(start, stop):
                    mean_state[ZERO] += scalar.fixed_point(values[t] if values.size else _F1)
                mean_state[ONE] += np.int64(stop - start)
        return STAMP

    return livefactor_micro_batch_kernel  # type: ignore[no-any-return]
