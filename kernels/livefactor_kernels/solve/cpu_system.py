"""The systems of equations of rule SOLVE on the CPU (semantics: `solve/__init__.py`).

A system is built in blocks of events, so that the rows of a block stay in the first cache. Four
rows of one vector each of the matrix are in registers while the kernel loops over the events of a
block. Each coordinate of a sweep waits for the one before it. So up to `SYSTEMS` systems are swept
side by side, and a processor computes one while another one waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import (
    LANES,
    VECTOR_BYTES,
    address_of,
    broadcast,
    clamp,
    load1,
    load16,
    prefetch,
    store1,
    store16,
)
from livefactor_kernels.numbers.parts import inlined, part
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import real, word
from livefactor_kernels.simd.transpose import mirror16, transpose16
from livefactor_kernels.solve import RIDGE_MIN, SolveRates, width
from livefactor_kernels.spec.model import ModelSpec

SYSTEMS = 4
"""Maximum number of systems that are solved side by side."""

BLOCK_EVENTS = 64
"""Events of a block. Their rows take 32 KiB for k = 64, with and without weights."""

_AHEAD = np.uint64(8)
"""Events between the prefetch of a row and its use."""

_0, _1, _4, _16 = np.uint64(0), np.uint64(1), np.uint64(4), np.uint64(LANES)
_BLOCK = np.uint64(BLOCK_EVENTS)
_F0, _F1 = np.float32(0.0), np.float32(1.0)


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
    """Working memory of `SYSTEMS` systems. m is a multiple of 16, and all arrays begin at multiples
    of 64 bytes.

    Attributes:
        y, weighted: float32[BLOCK_EVENTS, m], rows of events without and with their weights.
        targets: float32[BLOCK_EVENTS].
        matrix: float32[SYSTEMS, m, m].
        right, x: float32[SYSTEMS * m].
        everywhere: a0 G, float32[m, m]. Only the lower triangle is read without a prior.
        towards: z of a row with a start, float32[m].
    """

    y: np.ndarray
    weighted: np.ndarray
    targets: np.ndarray
    matrix: np.ndarray
    right: np.ndarray
    x: np.ndarray
    everywhere: np.ndarray
    towards: np.ndarray

    @staticmethod
    def of(spec: ModelSpec) -> Scratch:
        """For the systems of a spec."""
        m = width(spec)
        block, system = (BLOCK_EVENTS, m), (SYSTEMS * m,)
        shapes = block, block, (BLOCK_EVENTS,), (SYSTEMS, m, m), system, system, (m, m), (m,)
        return Scratch(*(reserve(shape, np.float32) for shape in shapes))


@inlined
def _gather(scratch: Any, others: Any, events: Any, start: Any, stop: Any, problem: Any) -> None:
    """Stores the rows of events [start, stop), and their targets, in scratch."""
    kp, m, rates = np.uint64(others.factors.shape[1]), np.uint64(scratch.y.shape[1]), problem.rates
    y, weighted, targets = address_of(scratch.y), address_of(scratch.weighted), address_of(scratch.targets)
    factors, last = address_of(others.factors), events.count - _1
    for j in range(start, stop):
        ahead = word(events.rows, min(j + _AHEAD, last)) * kp * _4
        for c in range(kp // _16):
            prefetch(factors + ahead, c * VECTOR_BYTES)
        row, weight = word(events.rows, j), real(events.weights, j)
        value, place = real(events.values, j), (j - start) * m * _4
        for c in range(kp // _16):
            at = c * VECTOR_BYTES
            vector = load16(factors + row * kp * _4, at)
            store16(y, vector, place + at)
            store16(weighted, vector * weight, place + at)
        target = _F1 if value > _F0 else _F0
        if rates.has_bias:
            # The vector of the bias is 1 and zeros.
            store1(y, _F1, place + kp * _4)
            store1(weighted, weight, place + kp * _4)
            target = (value - problem.mean) - others.bias[row]
        store1(targets, target, (j - start) * _4)


@inlined
def _add_to_right(scratch: Any, right: Any, count: Any) -> None:
    """Adds the events of a block to the right side of a system."""
    m = np.uint64(scratch.y.shape[1])
    weighted, targets = address_of(scratch.weighted), address_of(scratch.targets)
    for c in range(m // _16):
        at = c * VECTOR_BYTES
        total = load16(right, at)
        for j in range(count):
            total = total + load16(weighted, j * m * _4 + at) * load1(targets, j * _4)
        store16(right, total, at)


@inlined
def _add_to_tile(scratch: Any, matrix: Any, count: Any, p: Any, at: Any) -> None:
    """Adds the events of a block to rows p..p+3 of a matrix, for the vector at `at` bytes."""
    size = np.uint64(scratch.y.shape[1]) * _4
    y, weighted = address_of(scratch.y), address_of(scratch.weighted)
    start = p * size + at
    a0, a1 = load16(matrix, start), load16(matrix, start + size)
    a2, a3 = load16(matrix, start + size + size), load16(matrix, start + size + size + size)
    column = p * _4
    for j in range(count):
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
def _begin(scratch: Any, matrix: Any, right: Any, total: Any, problem: Any, kp: Any) -> Any:
    """Sets a matrix to a0 G with the ridge, and the right side to 0. `total` is sum_j w_j.

    Returns the ridge of the factors.
    """
    m, rates, everywhere = np.uint64(scratch.y.shape[1]), problem.rates, address_of(scratch.everywhere)
    for at in range(_0, m * m * _4, VECTOR_BYTES):
        store16(matrix, load16(everywhere, at), at)
    for at in range(_0, m * _4, VECTOR_BYTES):
        store16(right, broadcast(_F0), at)
    ridge = max(rates.l2 * (total + rates.unobserved * problem.other_count), RIDGE_MIN)
    for p in range(kp):
        diagonal = (p * m + p) * _4
        store1(matrix, load1(matrix, diagonal) + ridge, diagonal)
    if rates.has_bias:
        at = (kp * m + kp) * _4
        store1(matrix, load1(matrix, at) + max(rates.bias_l2 * total, RIDGE_MIN), at)
    return ridge


@inlined
def _pull(scratch: Any, right: Any, towards: Any, ridge: Any, kp: Any, rates: Any) -> None:
    """Adds M z of `solve/prior/__init__.py` to the right side. `towards` is the address of z."""
    m, everywhere = np.uint64(scratch.y.shape[1]), address_of(scratch.everywhere)
    for at in range(_0, kp * _4, VECTOR_BYTES):
        pull = broadcast(_F0)
        for q in range(rates.k):
            pull = pull + load16(everywhere, q * m * _4 + at) * load1(towards, q * _4)
        store16(right, load16(right, at) + (pull + load16(towards, at) * ridge), at)


@inlined
def mirror(matrix: Any, m: Any) -> None:
    """Copies the lower triangle of a matrix float32[m, m] to its upper one."""
    line = m * _4
    for p in range(_0, m, _16):
        for q in range(_0, p, _16):
            transpose16(matrix + p * line + q * _4, matrix + q * line + p * _4, line)
        mirror16(matrix + p * line + p * _4, line)


@inlined
def _subtract_present(right: Any, matrix: Any, x: Any, m: Any, kp: Any, rates: Any) -> None:
    """Subtracts the matrix times the present row x from the right side."""
    for c in range(m // _16):
        at = c * VECTOR_BYTES
        rest = load16(right, at)
        for p in range(rates.k):
            rest = rest - load16(matrix, p * m * _4 + at) * load1(x, p * _4)
        if rates.has_bias:
            rest = rest - load16(matrix, kp * m * _4 + at) * load1(x, kp * _4)
        store16(right, rest, at)


@inlined
def has_start(own: Any, row: Any) -> Any:
    """Whether a row of `own` has a start (`tables/start.py`)."""
    return own.start_events.size != 0 and own.start_events[row] > _F0


@inlined
def is_pulled(own: Any, row: Any) -> Any:
    """Whether a row of `own` has a start, or a prior (`solve/features/__init__.py`)."""
    return own.start_events.size != 0 and own.start_events[row] != _F0


@part
def livefactor_system_kernel(
    number: Any, own: Any, row: Any, others: Any, problem: Any, events: Any, towards: Any, scratch: Any
) -> None:
    """Makes system `number` of scratch for a row of `own` and its events.

    `towards` is the address of z of `solve/prior/__init__.py`, float32[k_padded], 0 without one.
    A row with a start, or a user with a bag, has its own z.
    """
    kp, m, rates = np.uint64(others.factors.shape[1]), np.uint64(scratch.y.shape[1]), problem.rates
    matrix = address_of(scratch.matrix) + number * m * m * _4
    right, x = address_of(scratch.right) + number * m * _4, address_of(scratch.x) + number * m * _4
    total = rates.ridge_events
    for event in range(events.count):
        total += real(events.weights, event)
    ridge = _begin(scratch, matrix, right, total, problem, kp)
    last = kp + _1 if rates.has_bias else rates.k
    for start in range(_0, events.count, _BLOCK):
        stop = min(start + _BLOCK, events.count)
        _gather(scratch, others, events, start, stop, problem)
        _add_to_right(scratch, right, stop - start)
        for first in range(_0, last, _4):
            for c in range(first // _16 + _1):
                _add_to_tile(scratch, matrix, stop - start, first, c * VECTOR_BYTES)
    if is_pulled(own, row):
        towards, pulling = address_of(scratch.towards), abs(own.start_events[row])
        share, start = pulling / (pulling + total), own.start[row]
        for p in range(kp):
            store1(towards, share * start[p], p * _4)
    if towards:
        _pull(scratch, right, towards, ridge, kp, rates)
    mirror(matrix, m)
    # The rows of readers do not begin at multiples of 64 bytes.
    present = address_of(own.factors) + row * kp * _4
    for p in range(kp):
        store1(x, load1(present, p * _4), p * _4)
    if rates.has_bias:
        store1(x, own.bias[row], kp * _4)
    _subtract_present(right, matrix, x, m, kp, rates)


@inlined
def _step(matrix: Any, right: Any, x: Any, p: Any, m: Any, limit: Any) -> None:
    """Solves coordinate p of a system for the other coordinates."""
    line = p * m * _4
    old = load1(x, p * _4)
    new = clamp(old + load1(right, p * _4) / load1(matrix, line + p * _4), limit)
    step = new - old
    store1(x, new, p * _4)
    for at in range(_0, m * _4, VECTOR_BYTES):
        store16(right, load16(right, at) - load16(matrix, line + at) * step, at)


@part
def livefactor_sweep_kernel(scratch: Any, systems: Any, kp: Any, rates: Any, sweeps: Any) -> None:
    """Runs Gauss-Seidel sweeps over the first `systems` systems.

    scratch.x has the result of system s from s * m on, with the bias at kp.
    """
    m = np.uint64(scratch.y.shape[1])
    matrix, right, x = address_of(scratch.matrix), address_of(scratch.right), address_of(scratch.x)
    coordinates = rates.k + (_1 if rates.has_bias else _0)
    for _ in range(sweeps):
        for n in range(coordinates):
            p = n if n < rates.k else kp
            for s in range(systems):
                place = s * m * _4
                _step(matrix + place * m, right + place, x + place, p, m, rates.factor_max)


@compiled
def livefactor_fold_kernel(
    own: Any, row: Any, others: Any, problem: Any, events: Any, scratch: Any, sweeps: Any
) -> None:
    """Solves a row of `own` for its events. The result is in scratch.x, with the bias at kp."""
    livefactor_system_kernel(_0, own, row, others, problem, events, _0, scratch)
    kp = np.uint64(others.factors.shape[1])
    livefactor_sweep_kernel(scratch, _1, kp, problem.rates, sweeps)
