"""Rule SOLVE on the GPU (semantics: `solve/__init__.py`).

    named    finds the events of a micro-batch that are the first ones of their row, if the row
             is due
    solve    a block per row. Its events pass through shared memory in tiles, in the order of the
             ring, and one thread sums each element of the matrix. Then come the sweeps,
             coordinate by coordinate, in which all threads update the right side.
    gram     a thread per element: the changes of the rows, in the order of their first events

So the order of every sum is that of the semantics, for any launch. The matrix is in shared memory
if it fits (k up to 100), else in scratch with fewer blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import float32

from livefactor_kernels.device.machine import Device
from livefactor_kernels.device.staging import Slot
from livefactor_kernels.device.warp import BLOCK_THREADS, add64, cuda, kernel, mul64
from livefactor_kernels.history.cuda import (
    HistoryRows,
    Piece,
    Recorder,
    begins_row,
    end_of_events,
    event_of,
    pieces_of,
    row_of,
)
from livefactor_kernels.numbers.lanes import clamp
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.pins.cuda import DeviceSections, Pins, fetch_sections
from livefactor_kernels.solve import GRAM, RIDGE_MIN, SolveRates
from livefactor_kernels.spec.model import Loss, ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.cuda import CudaTable
from livefactor_kernels.update import Update

_SHARED_COORDINATES = 101
"""Maximum number of coordinates of a system in shared memory.

The matrix has 40 KiB then, and the tiles still fit.
"""
_TILE_FLOATS = 512
_MATRICES_BYTES = 64 << 20
_REPLAYED = np.int64(2**32 - 1)
"""Number of fresh events of a row that has only replayed events.

No row has so many events, so the row does not count as a new one.
"""
_F0, _F1 = np.float32(0.0), np.float32(1.0)


class Batch(NamedTuple):
    """The rows of a micro-batch.

    Attributes:
        counts: uint32[2 * B], by side and event. For the first event of a row that is due, it is
            the number of the row's fresh events, or _REPLAYED if there are none. For other events
            it is 0.
        old: float32[B * k_padded], by first event: the factors of a row before it is solved, zeros
            if it had no event.
        size: B.
    """

    counts: Any
    old: Any
    size: int


@kernel
def livefactor_named_kernel(
    user_keys: Any,
    item_keys: Any,
    items: Any,
    batch: Any,
    item_events: Any,
    start: Any,
    fresh: Any,
    stop: Any,
) -> None:
    """Writes batch.counts of the micro-batch [start, stop).

    The events [start, fresh) are recorded already. A thread processes an entry. The second
    dimension of the grid is the side.
    """
    i, side = start + cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, cuda.blockIdx.y
    if i >= stop:
        return
    keys = user_keys if side == USERS else item_keys
    count = np.int64(0)
    if begins_row(keys, i, start):
        count = end_of_events(keys, i, stop, fresh) - i
        if count == 0:
            count = _REPLAYED
        elif side == ITEMS:
            after = np.int64(items.seen_count[row_of(keys[i])])
            before = after - count
            if before >= item_events and before // item_events == after // item_events:
                count = np.int64(0)
    batch.counts[side * batch.size + event_of(keys[i]) - start] = np.uint32(count)


@inlined
def element(e: Any, m: Any) -> Any:
    """Row and column of element e of a lower triangle.

    Line r of m + 1 elements has row r, and then row m - 1 - r from its start. If m is odd, the
    middle row occurs twice. The second time the column is -1.
    """
    r, c = e // (m + 1), e % (m + 1)
    if c <= r:
        return r, c
    return m - 1 - r, (c - r - 1 if 2 * r != m - 1 else -1)


class Events(NamedTuple):
    """Events of a row: `count` entries of the rings, from entry `at` on."""

    ring: Any
    at: Any
    count: Any


class System(NamedTuple):
    """The system of a row: matrix float32[m * m], right side float32[m], k factors, m unknowns."""

    matrix: Any
    right: Any
    k: Any
    m: Any


class OldRow(NamedTuple):
    """The place of a row's old factors: `values` from `at` on. They are 0 if the row `is_new`."""

    values: Any
    at: Any
    is_new: Any


@inlined
def _load_tile(tile: Any, events: Any, others: Any, kp: Any, mean: Any, k: Any, m: Any) -> None:
    """Loads events: rows, rows times weights, and targets."""
    (y, weighted, targets), (own, at, n) = tile, events
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    for e in range(thread, n * k, threads):
        j, p = e // k, e % k
        value = others.factors[np.int64(own.seen_rows[at + j]) * kp + p]
        y[j * m + p] = value
        weighted[j * m + p] = value * own.seen_weights[at + j]
    for j in range(thread, n, threads):
        if m > k:
            y[j * m + k] = _F1
            weighted[j * m + k] = own.seen_weights[at + j]
            targets[j] = (own.seen_values[at + j] - mean) - others.bias[np.int64(own.seen_rows[at + j])]
        else:
            targets[j] = _F1 if own.seen_values[at + j] > _F0 else _F0


@inlined
def _begin(system: Any, gram: Any, events: Any, others: Any, rates: Any) -> None:
    """Initialises the matrix with a0 G and the ridge, and the right side with zeros."""
    (matrix, right, k, m), (own, at, count) = system, events
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    total = _F0
    for j in range(count):
        total = total + own.seen_weights[at + j]
    ridge = max(rates.l2 * (total + rates.unobserved * others), RIDGE_MIN)
    bias_ridge = max(rates.bias_l2 * total, RIDGE_MIN)
    for e in range(thread, (m + 1) // 2 * (m + 1), threads):
        p, q = element(e, m)
        if q >= 0:
            value = _F0
            if m == k:
                value = np.float32(mul64(np.float64(rates.unobserved), gram[p * (k + 1) + q]))
            if p == q:
                value = value + (ridge if p < k else bias_ridge)
            matrix[p * m + q] = value
    for p in range(thread, m, threads):
        right[p] = _F0


@inlined
def _add_tile(matrix: Any, right: Any, tile: Any, n: Any, is_last: Any, m: Any) -> None:
    """Adds n events to the lower triangle and to the right side.

    With the last tile it mirrors the triangle.
    """
    y, weighted, targets = tile
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    for e in range(thread, (m + 1) // 2 * (m + 1), threads):
        p, q = element(e, m)
        if q >= 0:
            total = matrix[p * m + q]
            for j in range(n):
                total = total + weighted[j * m + p] * y[j * m + q]
            matrix[p * m + q] = total
            if is_last:
                matrix[q * m + p] = total
    for p in range(thread, m, threads):
        total = right[p]
        for j in range(n):
            total = total + weighted[j * m + p] * targets[j]
        right[p] = total


@inlined
def _turn(matrix: Any, right: Any, x: Any, p: Any, limit: Any, m: Any) -> Any:
    """Sets coordinate p from the right side. Returns its change."""
    new = clamp(x[p] + right[p] / matrix[p * m + p], limit)
    change = new - x[p]
    x[p] = new
    return change


@inlined
def _sweep(matrix: Any, right: Any, x: Any, changes: Any, rates: Any, m: Any) -> None:
    """Runs Gauss-Seidel sweeps from x.

    One thread owns coordinate p of x and of the right side. The owner of the next p stores its
    change in one of two places of `changes`, alternately. So there is one barrier per coordinate.
    """
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    for q in range(thread, m, threads):
        value = right[q]
        for p in range(m):
            value = value - x[p] * matrix[p * m + q]
        right[q] = value
    # All threads have read x.
    cuda.syncthreads()
    if thread == 0:
        changes[0] = _turn(matrix, right, x, 0, rates.factor_max, m)
    cuda.syncthreads()
    steps = rates.sweeps * m
    for step in range(steps):
        p, following = step % m, (step + 1) % m
        change = changes[step % 2]
        for q in range(thread, m, threads):
            right[q] = right[q] - change * matrix[p * m + q]
            if q == following and step + 1 < steps:
                changes[(step + 1) % 2] = _turn(matrix, right, x, q, rates.factor_max, m)
        cuda.syncthreads()


@inlined
def _load_present(own: Any, row: Any, kp: Any, x: Any, k: Any, m: Any) -> None:
    """Loads the present row to x, with the bias last."""
    for p in range(cuda.threadIdx.x, m, cuda.blockDim.x):
        x[p] = own.factors[row * kp + p] if p < k else own.bias[row]


@inlined
def _store_solution(own: Any, row: Any, kp: Any, x: Any, old: Any, k: Any, m: Any) -> None:
    """Stores x in the row, and the old factors in `old`."""
    for p in range(cuda.threadIdx.x, m, cuda.blockDim.x):
        if p < k:
            old.values[old.at + p] = _F0 if old.is_new else own.factors[row * kp + p]
            own.factors[row * kp + p] = x[p]
        else:
            own.bias[row] = x[p]


def _tile_events(coordinates: int) -> int:
    return max(1, _TILE_FLOATS // coordinates)


def shared_floats(coordinates: int) -> int:
    """Shared memory of a block, in float32: a tile, two vectors, two changes, and a fitting
    matrix.
    """
    tile = _tile_events(coordinates)
    matrix = coordinates**2 if coordinates <= _SHARED_COORDINATES else 0
    return tile * (2 * coordinates + 1) + 2 * coordinates + 2 + matrix


@cache
def solve_kernel(k: int, has_bias: bool) -> Any:
    """A kernel that solves the rows of one side of a micro-batch, a block per row."""
    K, M = int(k), int(k) + int(has_bias)
    SHARED, TILE = M <= _SHARED_COORDINATES, _tile_events(M)
    TILED = TILE * M
    VECTORS = 2 * TILED + TILE

    @kernel
    def livefactor_solve_kernel(
        words: Any, rows_at: Any, own: Any, ring: Any, others: Any, batch: Any, gram: Any, matrices: Any, rates: Any,
        floats: Any, mean_at: Any, others_count: Any, side: Any, events: Any, kp: Any,
    ) -> None:  # fmt: skip
        """Solves the rows words[rows_at : rows_at + events]. `gram` is that of the other side."""
        # The launch sets its size (`shared_floats`).
        memory = cuda.shared.array(0, float32)
        tile = (memory[:TILED], memory[TILED : 2 * TILED], memory[2 * TILED : 2 * TILED + TILE])
        x, right = memory[VECTORS : VECTORS + M], memory[VECTORS + M : VECTORS + 2 * M]
        changes = memory[VECTORS + 2 * M : VECTORS + 2 * M + 2]
        matrix = memory[VECTORS + 2 * M + 2 :]
        if not SHARED:
            matrix = matrices[cuda.blockIdx.x * (M * M) : (cuda.blockIdx.x + 1) * (M * M)]
        mean = floats[mean_at] if M > K else _F0
        for i in range(cuda.blockIdx.x, events, cuda.gridDim.x):
            count = np.int64(batch.counts[side * batch.size + i])
            if count == 0:
                continue
            row = np.int64(words[rows_at + i])
            seen = np.int64(ring.seen_count[row])
            length, at = min(seen, ring.length), row * ring.length
            _load_present(own, row, kp, x, K, M)
            system, history = System(matrix, right, K, M), Events(ring, at, length)
            _begin(system, gram, history, others_count, rates)
            for first in range(0, length, TILE):
                n = min(TILE, length - first)
                _load_tile(tile, Events(ring, at + first, n), others, kp, mean, K, M)
                cuda.syncthreads()
                _add_tile(matrix, right, tile, n, first + n == length, M)
                cuda.syncthreads()
            _sweep(matrix, right, x, changes, rates, M)
            _store_solution(own, row, kp, x, OldRow(batch.old, i * kp, seen == count), K, M)
            cuda.syncthreads()

    return livefactor_solve_kernel


@kernel
def livefactor_gram_kernel(
    words: Any,
    rows_at: Any,
    own: Any,
    ring: Any,
    batch: Any,
    gram: Any,
    side: Any,
    events: Any,
    k: Any,
    kp: Any,
) -> None:
    """Adds the changes of a micro-batch's rows to gram float64[(k + 1) ** 2]. A thread per
    element.
    """
    i = cuda.grid(1)
    p, q = i // (k + 1), i % (k + 1)
    if p > k or q > p:
        return
    total = gram[p * (k + 1) + q]
    for t in range(events):
        count = np.int64(batch.counts[side * batch.size + t])
        if count == 0:
            continue
        row = np.int64(words[rows_at + t])
        was = _F0 if np.int64(ring.seen_count[row]) == count else _F1
        new_p = own.factors[row * kp + p] if p < k else _F1
        new_q = own.factors[row * kp + q] if q < k else _F1
        old_p = batch.old[t * kp + p] if p < k else was
        old_q = batch.old[t * kp + q] if q < k else was
        total = add64(total, mul64(np.float64(new_p), np.float64(new_q)))
        total = add64(total, -mul64(np.float64(old_p), np.float64(old_q)))
    gram[p * (k + 1) + q] = total
    gram[q * (k + 1) + p] = total


class Solver:
    """Learns from records. It allocates all its memory at its creation.

    Its state is a Gram matrix float64[(k + 1) ** 2] per side, on the device.
    """

    records = True

    def __init__(
        self, spec: ModelSpec, device: Device, users: CudaTable, items: CudaTable, recorder: Recorder, pins: Pins
    ) -> None:  # fmt: skip
        """Allocates memory and selects the kernels.

        Raises:
            MemoryError: the device has too little memory.
        """
        self._spec, self._device, self._recorder, self._pins = spec, device, recorder, pins
        self._tables = users, items
        rates = SolveRates.of(spec)
        wholes = {name: int(getattr(rates, name)) for name in ("sweeps", "item_events", "k", "has_bias")}
        # Kernels count in int64.
        self._rates = rates._replace(**wholes)  # type: ignore[arg-type]
        self._kernel = solve_kernel(spec.k, spec.loss == Loss.SQUARED)
        self._gram = tuple(device.empty((spec.k + 1) ** 2, np.float64) for _ in (USERS, ITEMS))
        with device.working():
            for buffer in self._gram:
                buffer.array.fill(0)
        self.pinned: DeviceSections = {GRAM: self._gram}
        self._hold()

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`. The arrays are copies. The caller holds the lock of the
        model.
        """
        return fetch_sections(self._device, self.pinned)()

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`. The caller holds the lock of the model."""
        with self._device.working():
            for buffer, side in zip(self._gram, np.split(sections[GRAM], 2), strict=True):
                buffer.array[:] = self._device.xp.asarray(side)

    def _hold(self) -> None:
        spec, size = self._spec, self._spec.micro_batch
        coordinates = spec.k + int(spec.loss == Loss.SQUARED)
        matrix = coordinates**2
        shared = coordinates <= _SHARED_COORDINATES
        self._blocks_max = size if shared else max(1, min(size, _MATRICES_BYTES // (4 * matrix)))
        self._shared_bytes = 4 * shared_floats(coordinates)
        self._matrices = self._device.empty(1 if shared else self._blocks_max * matrix, np.float32)
        self._memory = (
            self._device.empty(2 * size, np.uint32),
            self._device.empty(size * spec.k_padded, np.float32),
        )
        counts, old = self._memory
        self._batch = Batch(counts.argument, old.argument, size)

    def hold(self, update: Update, counts: tuple[int, int]) -> None:
        """Nothing, because all memory is allocated already."""

    def propose(self, update: Update) -> dict[str, np.ndarray]:
        """No columns, because the rule draws no negatives."""
        return {}

    def learn(self, update: Update, slot: Slot, places: dict[str, int]) -> None:
        """Puts the learning from a record on the stream (`cuda.LearningRule.learn`)."""
        recorder, size = self._recorder, self._spec.micro_batch
        counts, events = (update.user_count, update.item_count), update.user_rows.size
        self._pins.save_named(slot, (places["users_at"], places["items_at"]), events)
        for piece in pieces_of(events, size, places):
            recorder.order(piece, slot)
            for start in range(0, piece.events, size):
                stop = min(start + size, piece.events)
                fresh = min(max(start, update.fresh - piece.first), stop)
                recorder.record(piece, slot, start, fresh, stop)
                keys = (buffer.argument for buffer in recorder.keys)
                numbers = self._rates.item_events, start, fresh, stop
                self._device.launch(
                    livefactor_named_kernel,
                    stop - start,
                    *keys,
                    recorder.items,
                    self._batch,
                    *numbers,
                    sides=2,
                )
                for side in (USERS, ITEMS):
                    self._solve(side, piece, slot, start, stop, counts[1 - side])

    def _solve(self, side: int, piece: Piece, slot: Slot, start: int, stop: int, others: int) -> None:
        """Solves the rows of a side of the micro-batch [start, stop), and updates the Gram
        matrix.
        """
        own, other = self._tables[side].live, self._tables[1 - side].live
        ring: HistoryRows = (self._recorder.users, self._recorder.items)[side]
        rows_at = (piece.users_at, piece.items_at)[side] + piece.first + start
        mean_at = piece.means_at + (piece.first + start) // self._spec.micro_batch
        kp, events = self._spec.k_padded, stop - start
        self._device.launch(
            self._kernel, min(events, self._blocks_max) * BLOCK_THREADS, slot.words, rows_at, own, ring, other,
            self._batch, self._gram[1 - side].argument, self._matrices.argument, self._rates, slot.floats, mean_at,
            np.float32(others), side, events, kp, shared_bytes=self._shared_bytes,
        )  # fmt: skip
        if self._rates.unobserved > 0:
            k, gram = self._spec.k, self._gram[side].argument
            arguments = slot.words, rows_at, own, ring, self._batch, gram, side, events, k, kp
            self._device.launch(livefactor_gram_kernel, (k + 1) ** 2, *arguments)
