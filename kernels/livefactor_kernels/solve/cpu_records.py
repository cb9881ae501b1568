"""The records of rule SOLVE on the CPU: one call learns many of them.

The order of the steps is that of `solve/__init__.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.history.cpu import livefactor_add_kernel, livefactor_record_kernel
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of, load16, store16
from livefactor_kernels.numbers.parts import inlined, part
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import WORD_BYTES, word
from livefactor_kernels.solve import SolveRates
from livefactor_kernels.solve.cpu_system import (
    SYSTEMS,
    Events,
    Problem,
    has_start,
    livefactor_sweep_kernel,
    livefactor_system_kernel,
    mirror,
)
from livefactor_kernels.spec.model import LANES, ModelSpec
from livefactor_kernels.tables import STARTS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.pages import memory_of, remembered_events

RECORD, SOLVE, SOLVE_ITEMS = 0, 1, 2
"""The next step: the events of a micro-batch are recorded, or its users or its items are solved."""
AT_RECORD, AT_EVENT, AT_STEP, AT_FOUND = 0, 1, 2, 3
"""Elements of the place of `livefactor_learn_kernel`."""

_0, _1, _2, _16 = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(LANES)
_SYSTEMS = np.uint64(SYSTEMS)
_NO_STARTS = np.empty((1, 0), np.float32)


class Side(NamedTuple):
    """The rows of one side.

    Attributes:
        factors: float32[cap, k_padded].
        bias: float32[cap].
        start, start_events: `tables/start.py`, float32[cap, k_padded] and float32[cap]; empty if
            the spec has none.
    """

    factors: np.ndarray
    bias: np.ndarray
    start: np.ndarray = _NO_STARTS
    start_events: np.ndarray = _NO_STARTS[0]

    @staticmethod
    def of(table: Table) -> Side:
        """The rows of a table, whose arrays never move."""
        arrays = table.padded()
        starts = [arrays[name] for name in STARTS if name in arrays]
        return Side(table.factors, table.bias, *starts)


class Touched(NamedTuple):
    """The distinct rows of a micro-batch.

    Attributes:
        rows: uint32[B].
        before: number of events before it, uint32[B].
        old: old factors, float32[B, k_padded].
        towards: z of each row (`solve/prior/__init__.py`), float32[B, k_padded];
            float32[0, k_padded] without a prior.
        times: number of occurrences of each row, uint32[cap]; 0 between micro-batches.
    """

    rows: np.ndarray
    before: np.ndarray
    old: np.ndarray
    towards: np.ndarray
    times: np.ndarray

    @staticmethod
    def of(spec: ModelSpec, table: Table, has_prior: bool) -> Touched:
        """For the micro-batches of a spec, whose rows of this side may have a prior."""
        size = spec.micro_batch
        rows, before = np.empty(size, np.uint32), np.empty(size, np.uint32)
        old = reserve((size, spec.k_padded), np.float32)
        towards = reserve((size if has_prior else 0, spec.k_padded), np.float32)
        return Touched(rows, before, old, towards, reserve((table.capacity,), np.uint32))


class Gram(NamedTuple):
    """The Gram matrices of users and items as kernels keep them.

    Attributes:
        matrix: float64[2, k_padded, k_padded]. The blocks of 16 x 16 above the diagonal are not
            kept.
        sums: sums of the rows, float64[2, k_padded].
        rows: number of rows with an event, float64[2].
        new, old: working memory, float64[k_padded] each.
    """

    matrix: np.ndarray
    sums: np.ndarray
    rows: np.ndarray
    new: np.ndarray
    old: np.ndarray

    @staticmethod
    def of(spec: ModelSpec) -> Gram:
        """Without rows."""
        kp = spec.k_padded
        return Gram(np.zeros((2, kp, kp)), np.zeros((2, kp)), np.zeros(2), np.zeros(kp), np.zeros(kp))


@inlined
def _distinct(rows: Any, start: Any, fresh: Any, stop: Any, seen: Any, touched: Any) -> Any:
    """Finds the distinct rows of events [start, stop) in order of first appearance.

    The events [start, fresh) are recorded already. Returns the number of rows.
    """
    found = _0
    for t in range(start, stop):
        row = np.uint64(rows[t])
        if touched.times[row] == 0:
            touched.rows[found] = rows[t]
            found += _1
        touched.times[row] += np.uint32(1)
    for t in range(fresh, stop):
        touched.times[np.uint64(rows[t])] -= np.uint32(1)
    for i in range(found):
        row = np.uint64(touched.rows[i])
        touched.before[i] = word(seen, row) - touched.times[row]
        touched.times[row] = np.uint32(0)
    return found


@inlined
def _select_due(touched: Any, found: Any, seen: Any, period: Any) -> Any:
    """Selects those of the first `found` rows that are due. Returns their number."""
    due = _0
    for i in range(found):
        before, after = np.uint64(touched.before[i]), word(seen, np.uint64(touched.rows[i]))
        if before == after or before < period or before // period < after // period:
            touched.rows[due], touched.before[due] = touched.rows[i], touched.before[i]
            due += _1
    return due


@part
def _solve_rows(
    own: Any, pages: Any, others: Any, problem: Any, touched: Any, found: Any, scratch: Any, room: Any
) -> None:
    """Solves the first `found` touched rows, `SYSTEMS` of them side by side.

    touched.old gets their old factors, and zeros before the first event of a row without a start.
    """
    kp, m, rates = np.uint64(own.factors.shape[1]), np.uint64(scratch.y.shape[1]), problem.rates
    factors, old, x = address_of(own.factors), address_of(touched.old), address_of(scratch.x)
    prior = address_of(touched.towards) if touched.towards.shape[0] else _0
    for first in range(_0, found, _SYSTEMS):
        last = min(first + _SYSTEMS, found)
        for i in range(first, last):
            row = np.uint64(touched.rows[i])
            events = Events(*remembered_events(pages, row, room))
            towards = prior + i * kp * WORD_BYTES if prior else _0
            livefactor_system_kernel(i - first, own, row, others, problem, events, towards, scratch)
        livefactor_sweep_kernel(scratch, last - first, kp, rates, rates.sweeps)
        for i in range(first, last):
            row, new = np.uint64(touched.rows[i]), (i - first) * m
            for p in range(_0, kp, _16):
                place = (row * kp + p) * WORD_BYTES
                store16(old, load16(factors, place), (i * kp + p) * WORD_BYTES)
                store16(factors, load16(x, (new + p) * WORD_BYTES), place)
            if touched.before[i] == 0 and not has_start(own, row):
                touched.old[i] = np.float32(0.0)
            if rates.has_bias:
                own.bias[row] = scratch.x[new + kp]


@part
def _change_gram(own: Any, touched: Any, found: Any, gram: Any, side: Any, k: Any) -> None:
    """Adds the changes of the touched rows to the Gram matrix of their side."""
    matrix, sums, new, old = gram.matrix[side], gram.sums[side], gram.new, gram.old
    for i in range(found):
        after, before = own.factors[np.uint64(touched.rows[i])], touched.old[i]
        for p in range(np.uint64(new.size)):
            new[p], old[p] = np.float64(after[p]), np.float64(before[p])
            sums[p] = (sums[p] + new[p]) - old[p]
        for p in range(k):
            new_p, old_p, line = new[p], old[p], matrix[p]
            for q in range((p // _16 + _1) * _16):
                line[q] = (line[q] + new_p * new[q]) - old_p * old[q]
        if touched.before[i] == 0 and not has_start(own, np.uint64(touched.rows[i])):
            gram.rows[side] += 1.0


@inlined
def _weigh(gram: Any, side: Any, unobserved: Any, everywhere: Any) -> None:
    """Sets the lower triangle of everywhere = float32(a0 G)."""
    a0, matrix = np.float64(unobserved), gram.matrix[side]
    for p in range(np.uint64(matrix.shape[0])):
        line, target = matrix[p], everywhere[p]
        for q in range((p // _16 + _1) * _16):
            target[q] = np.float32(a0 * line[q])


@inlined
def _solve_side(model: Any, side: Any, other_count: Any, unobserved: Any, found: Any, touched: Any) -> None:
    """Solves the touched rows of one side, and changes its Gram matrix."""
    rates, sums = model.rates, model.mean
    rates = SolveRates(
        unobserved, rates.l2, rates.bias_l2, rates.factor_max, rates.sweeps, rates.item_events, rates.k,
        rates.has_bias, rates.ridge_events,
    )  # fmt: skip
    if found and unobserved > np.float32(0.0):
        _weigh(model.gram, _1 - side, unobserved, model.scratch.everywhere)
        if touched.towards.shape[0] or model.users.start_events.size:
            everywhere = model.scratch.everywhere
            mirror(address_of(everywhere), np.uint64(everywhere.shape[0]))
    problem = Problem(scalar.mean_of(sums[_0], sums[_1]), np.float32(other_count), rates)
    own, others, pages = model.users, model.items, model.user_pages
    if side == _1:
        own, others, pages = model.items, model.users, model.item_pages
    _solve_rows(own, pages, others, problem, touched, found, model.scratch, model.room)
    if unobserved > np.float32(0.0):
        _change_gram(own, touched, found, model.gram, side, rates.k)


@compiled
def livefactor_mean_kernel(values: Any, start: Any, stop: Any, sums: Any) -> None:
    """Adds values to the sums int64[2] of the mean."""
    for t in range(start, stop):
        sums[_0] += scalar.fixed_point(values[t])
        sums[_1] += 1


class Model(NamedTuple):
    """What a call needs of a model."""

    users: Any
    items: Any
    user_pages: Any
    item_pages: Any
    gram: Any
    mean: Any
    scratch: Any
    room: Any
    rates: Any


@compiled
def livefactor_learn_kernel(
    users: Any, items: Any, user_pages: Any, item_pages: Any, visits: Any, followers: Any, additions: Any,
    gram: Any, mean: Any, touched_users: Any, touched_items: Any, scratch: Any, room: Any, rates: Any,
    user_rows: Any, item_rows: Any, values: Any, weights: Any, times: Any, fresh_events: Any, ends: Any,
    user_counts: Any, item_counts: Any, unobserved: Any, micro_batch: Any, additions_max: Any, place: Any,
) -> Any:  # fmt: skip
    """Learns records from `place` on: numbers of a record and of an event, and the next step.

    The events of record r end before `ends[r]`, int64[m]. The tables have `user_counts[r]` and
    `item_counts[r]` rows after it, int64[m], and `unobserved[r]` float32[m] is its a0. The columns
    are those of `history.cpu.Columns`. Events from `fresh_events` on are replayed. `place` is
    int64[4].

    It returns early if the caller has something to do. The next call goes on:

    - If a micro-batch has `additions_max` additions to counts or more, it returns their number, and
      the step is `SOLVE`. The next call solves the micro-batch and returns. The additions must be
      made before the call after it.
    - With a prior, the step is `SOLVE_ITEMS` before the touched items are solved.
      `touched_items` has their rows, and place[3] is their number. The caller sets their z. The
      next call solves them and returns.
    """
    user_memory, item_memory = memory_of(user_pages), memory_of(item_pages)
    model = Model(users, items, user_memory, item_memory, gram, mean, scratch, room, rates)
    while place[AT_RECORD] < ends.size:
        record = np.uint64(place[AT_RECORD])
        start, end, a0 = np.uint64(place[AT_EVENT]), np.uint64(ends[record]), unobserved[record]
        stop = min(start + micro_batch, end)
        fresh, step = min(max(start, fresh_events), stop), place[AT_STEP]
        if step == RECORD:
            listed = livefactor_record_kernel(
                user_pages, item_pages, visits, followers, additions, user_rows, item_rows, values, weights,
                times, start, fresh,
            )  # fmt: skip
            if listed >= additions_max:
                place[AT_STEP] = SOLVE
                return listed
            livefactor_add_kernel(followers, additions, listed)
        if step != SOLVE_ITEMS:
            found = _distinct(user_rows, start, fresh, stop, user_memory.seen, touched_users)
            _solve_side(model, _0, item_counts[record], a0, found, touched_users)
            found = _distinct(item_rows, start, fresh, stop, item_memory.seen, touched_items)
            place[AT_FOUND] = _select_due(touched_items, found, item_memory.seen, rates.item_events)
            if touched_items.towards.shape[0]:
                place[AT_STEP] = SOLVE_ITEMS
                return _0
        _solve_side(model, _1, user_counts[record], a0, np.uint64(place[AT_FOUND]), touched_items)
        if rates.has_bias:
            livefactor_mean_kernel(values, start, fresh, mean)
        place[AT_EVENT], place[AT_STEP] = stop, RECORD
        if stop == end:
            place[AT_RECORD] += 1
        if step != RECORD:
            return _0
    return _0


@compiled
def livefactor_store_gram_kernel(gram: Any, k: Any, section: Any) -> None:
    """Writes the matrices, the sums and the numbers of rows to float64[2, k + 1, k + 1]."""
    for side in range(2):
        target, matrix = section[side], gram.matrix[side]
        for p in range(k):
            for q in range(p + _1):
                target[p, q] = target[q, p] = matrix[p, q]
            target[k, p] = target[p, k] = gram.sums[side, p]
        target[k, k] = gram.rows[side]
