"""Rule SOLVE on the CPU (semantics: `solve/__init__.py`).

Four rows of one vector each of a system's matrix are in registers while the kernel loops over the
remembered events. Scratch has the row of each event, and the row times the event's weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.history.cpu import Recorder
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import (
    LANES,
    VECTOR_BYTES,
    address_of,
    broadcast,
    clamp,
    inlined,
    load1,
    load16,
    store16,
)
from livefactor_kernels.simd.helper import Helper
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import real, word
from livefactor_kernels.solve import GRAM, RIDGE_MIN, SolveRates, Unobserved, width
from livefactor_kernels.solve.prior.learning import Prior
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.pages import Room, memory_of, remembered_events
from livefactor_kernels.update import Update, writable

_0, _1, _4, _16 = np.uint64(0), np.uint64(1), np.uint64(4), np.uint64(LANES)
_F0, _F1 = np.float32(0.0), np.float32(1.0)
HELPER_ADDITIONS = 512
"""Minimum number of additions to counts for the second thread.

Fewer additions take less time than the thread needs to wake.
"""


class Side(NamedTuple):
    """The rows of one side: factors float32[cap, k_padded], and bias float32[cap]."""

    factors: np.ndarray
    bias: np.ndarray

    @staticmethod
    def of(table: Table) -> Side:
        """The rows of a table, whose arrays never move."""
        return Side(table.factors, table.bias)


class Events(NamedTuple):
    """The remembered events of a row, in the order of its ring.

    Attributes:
        rows: address of rows of the other side, uint32[count].
        values, weights: addresses of float32[count].
        count: number of events.
    """

    rows: Any
    values: Any
    weights: Any
    count: Any


class Problem(NamedTuple):
    """The numbers with which all rows of one side are solved.

    Attributes:
        mean: mean of the values, float32.
        other_count: N, the number of other rows, float32.
        rates: the rates of the spec.
    """

    mean: np.float32
    other_count: np.float32
    rates: SolveRates


class Scratch(NamedTuple):
    """Working memory of a system. m is a multiple of 16, and all arrays begin at multiples of 64
    bytes.

    Attributes:
        y, weighted: float32[H, m], rows of the events without and with their weights.
        matrix: float32[m, m].
        right, x: float32[m].
        everywhere: a0 G, float32[m, m].
        towards: z of `solve/prior/__init__.py`, float32[m]; empty without embeddings.
        pull: M z, float32[m].
    """

    y: np.ndarray
    weighted: np.ndarray
    matrix: np.ndarray
    right: np.ndarray
    x: np.ndarray
    everywhere: np.ndarray
    towards: np.ndarray
    pull: np.ndarray

    @staticmethod
    def of(spec: ModelSpec) -> Scratch:
        """For the longest history of a spec."""
        return Scratch.for_events(spec, max(spec.history.users, spec.history.items))

    @staticmethod
    def for_events(spec: ModelSpec, events: int) -> Scratch:
        """For rows with at most `events` events."""
        m = width(spec)
        shapes = (events, m), (events, m), (m, m), (m,), (m,), (m, m), (0,), (0,)
        return Scratch(*(reserve(shape, np.float32) for shape in shapes))

    def with_prior(self) -> Scratch:
        """The same memory, and memory for a prior of the row."""
        towards, pull = (reserve(self.x.shape, np.float32) for _ in range(2))
        return self._replace(towards=towards, pull=pull)


class Touched(NamedTuple):
    """The distinct rows of a micro-batch.

    Attributes:
        rows: uint32[B].
        before: number of events before it, uint32[B].
        old: old factors, float32[B, k_padded].
        towards: z of each row, float32[B, k_padded]; float32[0, k_padded] without embeddings.
        times: number of occurrences of each row, uint32[cap]; 0 between micro-batches.
    """

    rows: np.ndarray
    before: np.ndarray
    old: np.ndarray
    towards: np.ndarray
    times: np.ndarray

    @staticmethod
    def of(spec: ModelSpec, table: Table) -> Touched:
        """For the micro-batches of a spec."""
        size = spec.micro_batch
        rows, before = np.empty(size, np.uint32), np.empty(size, np.uint32)
        old = np.empty((size, spec.k_padded), np.float32)
        described = size if table.side == ITEMS and spec.embeddings.dimension else 0
        towards = np.zeros((described, spec.k_padded), np.float32)
        return Touched(rows, before, old, towards, reserve((table.capacity,), np.uint32))


@inlined
def _gather_event(scratch: Any, j: Any, others: Any, row: Any, weight: Any, target: Any, rates: Any) -> None:
    """Stores the row of event j in scratch, without and with its weight.

    It also adds the event to the right side.
    """
    kp, m = np.uint64(others.factors.shape[1]), np.uint64(scratch.y.shape[1])
    y, weighted, right = address_of(scratch.y), address_of(scratch.weighted), address_of(scratch.right)
    start, source = j * m * _4, address_of(others.factors) + row * kp * _4
    for c in range(kp // _16):
        at = c * VECTOR_BYTES
        vector = load16(source, at)
        times = vector * weight
        store16(y, vector, start + at)
        store16(weighted, times, start + at)
        store16(right, load16(right, at) + times * target, at)
    if rates.has_bias:
        # The vector of the bias is 1 and zeros.
        scratch.y[j, kp], scratch.weighted[j, kp] = _F1, weight
        scratch.right[kp] += weight * target


@inlined
def _accumulate(scratch: Any, events: Any, p: Any, at: Any) -> None:
    """Adds all events to rows p..p+3 of the matrix, for the vector at `at` bytes."""
    size = np.uint64(scratch.y.shape[1]) * _4
    y, weighted, matrix = address_of(scratch.y), address_of(scratch.weighted), address_of(scratch.matrix)
    start = p * size + at
    a0, a1 = load16(matrix, start), load16(matrix, start + size)
    a2, a3 = load16(matrix, start + size + size), load16(matrix, start + size + size + size)
    column = p * _4
    for j in range(events):
        row = j * size
        vector, own = load16(y, row + at), row + column
        a0 = a0 + vector * load1(weighted, own)
        a1 = a1 + vector * load1(weighted, own + _4)
        a2 = a2 + vector * load1(weighted, own + _4 + _4)
        a3 = a3 + vector * load1(weighted, own + _4 + _4 + _4)
    store16(matrix, a0, start)
    store16(matrix, a1, start + size)
    store16(matrix, a2, start + size + size)
    store16(matrix, a3, start + size + size + size)


@inlined
def _build(scratch: Any, events: Any, total: Any, others: Any, kp: Any, rates: Any) -> None:
    """Computes the matrix of the events in scratch, both triangles."""
    m = np.uint64(scratch.matrix.shape[0])
    matrix = scratch.matrix
    for p in range(m):
        for q in range(m):
            matrix[p, q] = scratch.everywhere[p, q]
    ridge = max(rates.l2 * (total + rates.unobserved * others), RIDGE_MIN)
    for p in range(kp):
        matrix[p, p] += ridge
    last = rates.k
    if rates.has_bias:
        matrix[kp, kp] += max(rates.bias_l2 * total, RIDGE_MIN)
        last = kp + _1
    for p in range(_0, last, _4):
        for c in range(p // _16 + _1):
            _accumulate(scratch, events, p, c * VECTOR_BYTES)
    for p in range(last):
        for q in range(p):
            matrix[q, p] = matrix[p, q]


@inlined
def _pull(scratch: Any, total: Any, others: Any, rates: Any) -> None:
    """Adds M z to the right side."""
    pull, towards, right = scratch.pull, scratch.towards, scratch.right
    ridge = max(rates.l2 * (total + rates.unobserved * others), RIDGE_MIN)
    for p in range(rates.k):
        pull[p] = _F0
    for q in range(rates.k):
        for p in range(rates.k):
            pull[p] += scratch.everywhere[q, p] * towards[q]
    for p in range(rates.k):
        right[p] += pull[p] + ridge * towards[p]


@inlined
def _take(right: Any, matrix: Any, p: Any, m: Any, factor: Any) -> None:
    """Subtracts factor * (row p of the matrix) from `right`."""
    for c in range(m // _16):
        at = c * VECTOR_BYTES
        store16(right, load16(right, at) - load16(matrix, p * m * _4 + at) * factor, at)


@inlined
def _sweep(scratch: Any, kp: Any, sweeps: Any, rates: Any) -> None:
    """Runs Gauss-Seidel sweeps from scratch.x, which has the present row, with the bias at kp."""
    m = np.uint64(scratch.matrix.shape[0])
    right, matrix = address_of(scratch.right), address_of(scratch.matrix)
    x, r, a = scratch.x, scratch.right, scratch.matrix
    coordinates = rates.k + (_1 if rates.has_bias else _0)
    for n in range(coordinates):
        p = n if n < rates.k else kp
        _take(right, matrix, p, m, x[p])
    for _ in range(sweeps):
        for n in range(coordinates):
            p = n if n < rates.k else kp
            new = clamp(x[p] + r[p] / a[p, p], rates.factor_max)
            _take(right, matrix, p, m, new - x[p])
            x[p] = new


@compiled
def livefactor_fold_kernel(
    own: Any, row: Any, others: Any, problem: Any, events: Any, scratch: Any, sweeps: Any
) -> None:
    """Solves a row of `own` for its events. The result is in scratch.x, with the bias at kp."""
    rates, kp, m = problem.rates, np.uint64(others.factors.shape[1]), np.uint64(scratch.matrix.shape[0])
    total, x, right = _F0, scratch.x, address_of(scratch.right)
    for c in range(m // _16):
        store16(right, broadcast(_F0), c * VECTOR_BYTES)
    for j in range(events.count):
        other, value, weight = word(events.rows, j), real(events.values, j), real(events.weights, j)
        target = _F1 if value > _F0 else _F0
        if rates.has_bias:
            target = (value - problem.mean) - others.bias[other]
        _gather_event(scratch, j, others, other, weight, target, rates)
        total += weight
    if scratch.towards.size:
        _pull(scratch, total, problem.other_count, rates)
    _build(scratch, events.count, total, problem.other_count, kp, rates)
    for p in range(kp):
        x[p] = own.factors[row, p]
    if rates.has_bias:
        x[kp] = own.bias[row]
    _sweep(scratch, kp, sweeps, rates)


@compiled
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
        touched.before[i] = seen[row] - touched.times[row]
        touched.times[row] = np.uint32(0)
    return found


@compiled
def _select_due(touched: Any, found: Any, seen: Any, period: Any) -> Any:
    """Selects those of the first `found` rows that are due. Returns their number."""
    due = _0
    for i in range(found):
        before, after = np.uint64(touched.before[i]), np.uint64(seen[np.uint64(touched.rows[i])])
        if before == after or before < period or before // period < after // period:
            touched.rows[due], touched.before[due] = touched.rows[i], touched.before[i]
            due += _1
    return due


@compiled
def livefactor_solve_kernel(
    own: Any, fields: Any, others: Any, mean: Any, other_count: Any, rates: Any, touched: Any, found: Any,
    scratch: Any, room: Any,
) -> None:  # fmt: skip
    """Solves the first `found` touched rows. `mean`, `other_count` and `rates` are a `Problem`.

    touched.old gets their old factors, and zeros before a row's first event.
    """
    kp, problem = np.uint64(own.factors.shape[1]), Problem(mean, other_count, rates)
    memory = memory_of(fields)
    for i in range(found):
        row = np.uint64(touched.rows[i])
        rows, values, weights, count = remembered_events(memory, row, room)
        events = Events(rows, values, weights, count)
        if touched.towards.shape[0]:
            for p in range(kp):
                scratch.towards[p] = touched.towards[i, p]
        livefactor_fold_kernel(own, row, others, problem, events, scratch, rates.sweeps)
        is_new = touched.before[i] == 0
        for p in range(kp):
            touched.old[i, p] = _F0 if is_new else own.factors[row, p]
            own.factors[row, p] = scratch.x[p]
        if rates.has_bias:
            own.bias[row] = scratch.x[kp]


@compiled
def livefactor_gram_kernel(own: Any, touched: Any, found: Any, gram: Any, k: Any) -> None:
    """Adds the changes of the touched rows to gram float64[k + 1, k + 1]."""
    sums = gram[k]
    for i in range(found):
        row = np.uint64(touched.rows[i])
        new, old = own.factors[row], touched.old[i]
        for p in range(k):
            new_p, old_p, line = np.float64(new[p]), np.float64(old[p]), gram[p]
            for q in range(p + _1):
                line[q] = (line[q] + new_p * np.float64(new[q])) - old_p * np.float64(old[q])
            sums[p] = (sums[p] + new_p) - old_p
        sums[k] += 1.0 if touched.before[i] == 0 else 0.0
    for p in range(k + _1):
        for q in range(p):
            gram[q, p] = gram[p, q]


@compiled
def _weigh(gram: Any, unobserved: Any, everywhere: Any) -> None:
    """Sets everywhere = float32(a0 G)."""
    a0 = np.float64(unobserved)
    k = np.uint64(gram.shape[0]) - _1
    for p in range(k):
        for q in range(k):
            everywhere[p, q] = np.float32(a0 * gram[p, q])


@compiled
def livefactor_mean_kernel(values: Any, start: Any, stop: Any, mean_state: Any) -> None:
    """Adds values to the sums int64[2] of the mean."""
    for t in range(start, stop):
        mean_state[_0] += scalar.fixed_point(values[t])
        mean_state[_1] += 1


class Solver:
    """Learns from records.

    Attributes:
        gram: Gram matrices of users and items, float64[2, k + 1, k + 1].
    """

    records = True

    def __init__(
        self, spec: ModelSpec, users: Table, items: Table, mean_state: np.ndarray, recorder: Recorder,
        prior: Prior | None = None,
    ) -> None:  # fmt: skip
        """Compiles the kernels, or loads them from Numba's cache."""
        self._prior = prior
        self._spec, self._rates, self._mean_state = spec, SolveRates.of(spec), mean_state
        self._recorder, self._unobserved = recorder, Unobserved(spec)
        self._sides, self._pages = (Side.of(users), Side.of(items)), (recorder.users, recorder.items)
        self._touched = Touched.of(spec, users), Touched.of(spec, items)
        scratch = Scratch.of(spec)
        self._scratch = scratch, scratch if prior is None else scratch.with_prior()
        self._room = Room.of(max(spec.history.users, spec.history.items))
        self._helper = Helper("counts")
        self.gram = np.zeros((2, spec.k + 1, spec.k + 1))
        empty = np.empty(0, np.uint32)
        for side in (0, 1):
            self._solve(side, empty, 0, 0, 0, 0)
        if self._rates.has_bias:
            livefactor_mean_kernel(np.empty(0, np.float32), _0, _0, mean_state)

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`."""
        return {GRAM: self.gram.reshape(-1), **self._unobserved.sections()}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`."""
        self.gram[:] = np.reshape(sections[GRAM], self.gram.shape)
        self._rates = self._unobserved.load(self._rates, sections)

    def joins(self, updates: Sequence[Update]) -> bool:
        """True for one record, because micro-batches do not cross records."""
        return len(updates) == 1

    def prepare(self, updates: Sequence[Update]) -> np.ndarray:
        """The items without events that the map of embeddings will change."""
        if self._prior is None:
            return np.empty(0, np.uint32)
        return self._prior.begin(updates[-1].user_rows.size, updates[-1].item_count)

    def learn(self, update: Update) -> None:
        """Learns from one record."""
        size, events = self._spec.micro_batch, update.user_rows.size
        if self._prior is not None:
            self._prior.map_cold()
        self._rates = self._unobserved.after(self._rates, update)
        values = None if update.values is None else writable(update.values)
        for start in range(0, events, size):
            stop = min(start + size, events)
            fresh = min(max(start, update.fresh), stop)
            with self._recording(update, start, fresh):
                self._solve(0, update.user_rows, start, fresh, stop, update.item_count)
                self._solve(1, update.item_rows, start, fresh, stop, update.user_count)
            if self._rates.has_bias:
                livefactor_mean_kernel(values, np.uint64(start), np.uint64(fresh), self._mean_state)

    @contextmanager
    def _recording(self, update: Update, start: int, stop: int) -> Iterator[None]:
        """Records events. During the context, another thread adds them to the counts.

        No solve reads the counts.
        """
        additions = self._recorder.remember(update, start, stop)
        if additions < HELPER_ADDITIONS:
            self._recorder.count(additions)
            yield
            return
        with self._helper.running(self._recorder.count, additions):
            yield

    def _solve(self, side: int, rows: np.ndarray, start: int, fresh: int, stop: int, count: int) -> None:
        own, others, touched = self._sides[side], self._sides[1 - side], self._touched[side]
        pages = self._pages[side]
        places = np.uint64(start), np.uint64(fresh), np.uint64(stop)
        found = _distinct(rows, *places, pages.seen, touched)
        if side == 1:
            found = _select_due(touched, np.uint64(found), pages.seen, self._rates.item_events)
        rates, found = self._rates, np.uint64(found)
        if rates.unobserved > 0:
            _weigh(self.gram[1 - side], rates.unobserved, self._scratch[side].everywhere)
        mean = np.float32(scalar.mean_of(int(self._mean_state[0]), int(self._mean_state[1])))
        problem = Problem(mean, np.float32(count), rates)
        prior, solved = self._prior if side == ITEMS else None, touched.rows[: int(found)]
        if prior is not None:
            touched.towards[: len(solved), : self._spec.k] = prior.towards(solved)
        livefactor_solve_kernel(
            own, pages.fields, others, *problem, touched, found, self._scratch[side], self._room
        )
        if rates.unobserved > 0:
            livefactor_gram_kernel(own, touched, found, self.gram[side], rates.k)
        if prior is not None:
            prior.solved(solved, touched.old[: len(solved), : self._spec.k])
