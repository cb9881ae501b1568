"""The adaptive learning rate on the GPU (semantics: `sgd/adaptive.py`).

It runs rule SGD twice, for the model and for its probe. The evidence of a record is computed before
the record is learned. A half-warp computes the evidence of an event. Then one thread adds the
evidence in the order of the events, so that the sums have the bits of the reference.

The sums stay on the device, and the host counts the events of the window. The sums are transferred
only at the end of a window. The host waits for them before it puts the next record on the stream.
They are complete after the evidence of the last record, before that record is learned. So the
device learns while the host decides, and records within a window do not wait. The kernels that
learn are those of a fixed rate. Their arguments are the rates and the rows of the model or of the
probe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import float32, float64

from livefactor_kernels.device.machine import Device
from livefactor_kernels.device.plan import Plan, Span, entries_per_event, value_of, weight_of
from livefactor_kernels.device.staging import Slot
from livefactor_kernels.device.warp import add64, cuda, half_of, kernel, lane, mul64
from livefactor_kernels.history.cuda import PIECE_EVENTS, pieces_of
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.numbers.random import NEGATIVE_DOMAIN, domain_key, draw_negative
from livefactor_kernels.pins.cuda import Pins
from livefactor_kernels.sgd.adaptive import EVENTS, MOVES, RATES, STATE_SIZE, STEP, SUM, at_step, end_window
from livefactor_kernels.sgd.cuda import Sgd
from livefactor_kernels.sgd.cuda_micro_batch import dot, load_row
from livefactor_kernels.spec.model import LANES, Loss, ModelSpec
from livefactor_kernels.tables import USERS
from livefactor_kernels.tables.cuda import CudaTable
from livefactor_kernels.update import Update

_SQUARED, _LOGISTIC, _BPR = (int(loss) for loss in (Loss.SQUARED, Loss.LOGISTIC, Loss.BPR))
_F0 = np.float32(0.0)
_TILE_EVENTS, _THREADS = 1024, 256


class ProbedRows(NamedTuple):
    """The rows of a side and of its probe, flat: float32[cap * k_padded] and float32[cap].

    row_probe float32[cap] has the number of changes after which the probe's row started.
    """

    factors: Any
    bias: Any
    factor_probe: Any
    bias_probe: Any
    row_probe: Any

    @staticmethod
    def of(table: CudaTable) -> ProbedRows:
        """The rows of a table."""
        return ProbedRows(*(table.arrays[name].buffer.argument for name in ProbedRows._fields))


class Events(NamedTuple):
    """The events of a piece.

    Attributes:
        piece: numbers of the piece.
        words, floats: columns of the record on the device.
        draws: (key, revision, number of items, negatives per event).
    """

    piece: Any
    words: Any
    floats: Any
    draws: Any


class Model(NamedTuple):
    """The model and its probe.

    Attributes:
        users, items: `ProbedRows`.
        moves: number of changes of the rates.
        limit: error_max.
        blocks, loss: constants of the kernel.
    """

    users: Any
    items: Any
    moves: Any
    limit: Any
    blocks: Any
    loss: Any


@inlined
def _load(rows: Any, row: Any, probing: Any, moves: Any, out: Any, blocks: Any) -> Any:
    """Loads this lane's factors of a row of the probe or of the model. Returns the bias.

    If the probe's row has not started again yet, it loads the model's row.
    """
    is_probes = probing and rows.row_probe[row] == moves
    load_row(rows.factor_probe if is_probes else rows.factors, row, out, blocks)
    return rows.bias_probe[row] if is_probes else rows.bias[row]


@inlined
def _loss(events: Any, model: Any, probing: Any, mean: Any, t: Any, scratch: Any) -> Any:
    """Sum (float64, in all lanes) of the squared errors of event t of the piece, by the probe or by
    the model.
    """
    (piece, words, floats, draws), (x, y) = events, scratch
    users, items, moves, limit, blocks, loss = model
    seed, revision, count, width = draws
    event = piece.first + t
    user, positive = np.int64(words[piece.users_at + event]), np.int64(words[piece.items_at + event])
    value, weight = value_of(piece, floats, t), weight_of(piece, floats, t)
    bias = _load(users, user, probing, moves, x, blocks)
    slots = width + 1
    if loss == _LOGISTIC and value == _F0:
        # An explicit negative is contrasted with no other items.
        slots = 1
    total, s_positive = np.float64(0.0), _F0
    for slot in range(slots):
        item = positive
        if slot > 0:
            place = np.uint64(event), np.uint64(slot - 1)
            item = np.int64(draw_negative(seed, revision, *place, np.uint64(positive), count))
        item_bias = _load(items, item, probing, moves, y, blocks)
        s = scalar.score(mean, bias, item_bias, dot(x, y, blocks))
        if slot == 0:
            s_positive = s
        if loss == _BPR:
            e = scalar.bpr_error(s_positive, s, weight, limit)
        elif loss == _SQUARED:
            e = scalar.squared_error(s, value, weight, limit)
        else:
            e = scalar.logistic_error(s, value if slot == 0 else _F0, weight, limit)
        if loss != _BPR or slot > 0:
            total = add64(total, mul64(np.float64(e), np.float64(e)))
    return total


@cache
def evidence_kernel(blocks: int, loss: int) -> Any:
    """A kernel for rows of `blocks` times 16 factors that computes the evidence of a piece.

    A half-warp computes one event.
    """
    BLOCKS, LOSS = int(blocks), int(loss)

    @kernel
    def livefactor_evidence_kernel(
        piece: Any, words: Any, floats: Any, users: Any, items: Any, moves: Any, seed: Any, revision: Any, count: Any,
        width: Any, limit: Any, evidence: Any,
    ) -> None:  # fmt: skip
        """Writes evidence float64[events]. Each event draws `width` of `count` items."""
        scratch = cuda.local.array(BLOCKS, float32), cuda.local.array(BLOCKS, float32)
        t = cuda.grid(1) // LANES
        if t >= piece.events:
            return
        mean, draws = floats[piece.means_at] if LOSS == _SQUARED else _F0, (seed, revision, count, width)
        events, model = Events(piece, words, floats, draws), Model(users, items, moves, limit, BLOCKS, LOSS)
        probe_loss = _loss(events, model, True, mean, t, scratch)
        model_loss = _loss(events, model, False, mean, t, scratch)
        if lane() == 0:
            evidence[t] = add64(probe_loss, -model_loss)

    return livefactor_evidence_kernel


@kernel
def livefactor_evidence_sums_kernel(evidence: Any, events: Any, sums: Any) -> None:
    """Adds d and d d of the events to sums float64[2], in order.

    One block runs it. All threads load, and the first thread adds.
    """
    tile = cuda.shared.array(_TILE_EVENTS, float64)
    thread = cuda.threadIdx.x
    total, squares = sums[0], sums[1]
    for first in range(0, events, _TILE_EVENTS):
        n = min(_TILE_EVENTS, events - first)
        for i in range(thread, n, cuda.blockDim.x):
            tile[i] = evidence[first + i]
        cuda.syncthreads()
        if thread == 0:
            for i in range(n):
                d = tile[i]
                total, squares = add64(total, d), add64(squares, mul64(d, d))
        cuda.syncthreads()
    if thread == 0:
        sums[0], sums[1] = total, squares


@kernel
def livefactor_begin_kernel(
    words: Any, users_at: Any, items_at: Any, negatives: Any, events: Any, draws: Any, users: Any, items: Any,
    moves: Any, blocks: Any,
) -> None:  # fmt: skip
    """Starts those of the probe's rows again that did not start after change `moves`.

    The rows are those of the events' users, of their items, and of the first `draws` negatives. A
    half-warp processes an entry. Half-warps with the same row write the same values.
    """
    i = cuda.grid(1) // LANES
    if i >= 2 * events + draws:
        return
    rows, row = items, np.int64(0)
    if i < events:
        rows, row = users, np.int64(words[users_at + i])
    elif i < 2 * events:
        row = np.int64(words[items_at + i - events])
    else:
        row = np.int64(negatives[i - 2 * events])
    # One lane decides for its half-warp, because another half-warp may write the word meanwhile.
    if half_of(rows.row_probe[row], 0) == moves:
        return
    at = row * (blocks * LANES) + lane()
    for c in range(blocks):
        rows.factor_probe[at + c * LANES] = rows.factors[at + c * LANES]
    if lane() == 0:
        rows.bias_probe[row] = rows.bias[row]
        rows.row_probe[row] = moves


class AdaptiveSgd(Sgd):
    """Learns from records. It allocates the memory for a record at its creation."""

    def __init__(
        self, spec: ModelSpec, device: Device, users: CudaTable, items: CudaTable, pins: Pins, walk_entries_max: int,
        together: bool,
    ) -> None:  # fmt: skip
        """See `Sgd.__init__`."""
        super().__init__(spec, device, users, items, pins, walk_entries_max, together)
        self._rows = ProbedRows.of(users), ProbedRows.of(items)
        of_users, of_items = (
            own._replace(factors=rows.factor_probe, bias=rows.bias_probe)
            for own, rows in zip(self._model, self._rows, strict=True)
        )
        self._probe = of_users, of_items
        self._evidence, self._sums = device.empty(PIECE_EVENTS, np.float64), device.empty(2, np.float64)
        self._evidence_kernel = evidence_kernel(spec.k_padded // LANES, int(spec.loss))
        self._state = np.zeros(STATE_SIZE)
        self._window_sums: Callable[[], list[np.ndarray]] | None = None
        self.load({RATES: self._state.copy()})

    def sections(self) -> dict[str, np.ndarray]:
        """See `tables.state.Part.sections`. It copies the state and waits for the device.

        The caller holds the lock of the model.
        """
        self._settle()
        self._state[SUM:] = self._device.fetch([self._sums.array])()[0]
        return {RATES: self._state.copy()}

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`. The caller holds the lock of the model."""
        self._window_sums = None
        self._state[:] = sections[RATES]
        with self._device.working():
            self._sums.array[:] = self._device.xp.asarray(self._state[SUM:])
        self._take_rates()

    def _take_rates(self) -> None:
        step = int(self._state[STEP])
        self._rates, self._probe_rates = (self.rates_of(at_step(self._spec, q)) for q in (step, step + 1))

    def _settle(self) -> None:
        """After the end of a window: waits for the sums, changes the rates, and starts the next
        window.
        """
        if self._window_sums is None:
            return
        self._state[SUM:] = self._window_sums()[0]
        self._window_sums = None
        end_window(self._state)
        self._take_rates()
        with self._device.working():
            self._sums.array.fill(0)

    def learn(self, update: Update, slot: Slot, places: dict[str, int]) -> None:
        """See `Sgd.learn`. It computes the evidence of the record first."""
        self._settle()
        width = self._width(update)
        changes = entries_per_event(self._spec, width)[USERS] > 0
        if changes:
            self._add_evidence(update, width, slot, places)
        self._state[EVENTS] += update.fresh
        if self._state[EVENTS] >= self._spec.adaptive_rate.window:
            self._window_sums = self._device.fetch([self._sums.array])
        if changes:
            super().learn(update, slot, places)
        elif update.user_rows.size:
            # With BPR the first item has no other item to be contrasted with.
            rows_at = places["users_at"], places["items_at"]
            self._pins.save_named(slot, rows_at, update.user_rows.size)
            self._begin(slot, rows_at, update.user_rows.size, 0)

    def _add_evidence(self, update: Update, width: int, slot: Slot, places: dict[str, int]) -> None:
        device, evidence = self._device, self._evidence.argument
        seed = domain_key(self._spec.seed, NEGATIVE_DOMAIN)
        draws = seed, np.uint64(update.revision), np.uint64(update.item_count), width
        numbers = np.float32(self._state[MOVES]), *draws, np.float32(self._spec.limits.error_max)
        for piece in pieces_of(update.fresh, PIECE_EVENTS, places):
            columns = piece, slot.words, slot.floats, *self._rows
            device.launch(self._evidence_kernel, piece.events * LANES, *columns, *numbers, evidence)
            sums = evidence, piece.events, self._sums.argument
            device.launch_block(livefactor_evidence_sums_kernel, _THREADS, *sums)

    def _learn_span(self, update: Update, span: Span, plan: Plan, slot: Slot) -> None:
        rows_at = span.users_at + span.first, span.items_at + span.first
        self._begin(slot, rows_at, span.events, span.events * span.width)
        self._micro_batches(update, span, plan, slot, self._probe, self._probe_rates)
        self._micro_batches(update, span, plan, slot, self._model, self._rates)

    def _begin(self, slot: Slot, rows_at: tuple[int, int], events: int, draws: int) -> None:
        moves, blocks = np.float32(self._state[MOVES]), self._spec.k_padded // LANES
        entries = events, draws, *self._rows, moves, blocks
        negatives, threads = self._scratch.plan.negatives, (2 * events + draws) * LANES
        self._device.launch(livefactor_begin_kernel, threads, slot.words, *rows_at, negatives, *entries)
