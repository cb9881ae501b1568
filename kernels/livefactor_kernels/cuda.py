"""The GPU backend: the tables on the device, the launches of an update, and the methods.

The host maps keys to rows. For a record it sends the columns of rows, values and weights, the keys
of new rows, and with squared loss one mean per micro-batch. All other work is on the device, in the
order of one stream: initial rows, negatives, the order of occurrences (`device/plan.py`), the
micro-batches of a rule (`sgd/cuda.py`, `solve/cuda.py`, `softmax/cuda.py`), and histories
(`history/cuda.py`).

`apply` returns when all work is on the stream. Reads use the same stream, so they wait there, and
they see the published state. At most two records are in progress (`device/staging.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Protocol

import numpy as np

from livefactor_kernels.device.machine import open_device
from livefactor_kernels.device.scratch import RECORD_EVENTS_MAX, record_bytes, shared_bytes
from livefactor_kernels.device.staging import KEY_BYTES, WORD_BYTES, Slot, Staging, aligned
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.history.cuda import PIECE_EVENTS, Recorder, pieces_of
from livefactor_kernels.numbers import scalar
from livefactor_kernels.numbers.random import INIT_DOMAIN, INIT_ROUNDING_DOMAIN, domain_key
from livefactor_kernels.pins import PinnedState
from livefactor_kernels.pins.cuda import CudaPin, DeviceSections, Pins, as_floats, as_sections, fetch_rows
from livefactor_kernels.reading.context import Moves, Statistics
from livefactor_kernels.replay import most_events
from livefactor_kernels.replay.cpu import Reservoir
from livefactor_kernels.scoring import Candidates
from livefactor_kernels.sgd.cuda import Sgd
from livefactor_kernels.sgd.cuda_adaptive import AdaptiveSgd
from livefactor_kernels.softmax.cuda import Softmax
from livefactor_kernels.solve.cuda import Solver
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.solve.prior.sums import MapSums
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import (
    LANES,
    MIN_WINDOW,
    AdaptiveRate,
    Counts,
    FactorDtype,
    History,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Regularization,
    Rule,
    Solve,
)
from livefactor_kernels.tables import ITEMS, USERS, ring_length
from livefactor_kernels.tables.cuda import CudaTable, livefactor_init_kernel
from livefactor_kernels.tables.deltas import Deltas
from livefactor_kernels.tables.recent import RECENT, Recent, recent_of
from livefactor_kernels.tables.start import Start
from livefactor_kernels.tables.state import GlobalMean, Part, state_of
from livefactor_kernels.update import Update

_COLUMNS = ("users", "items", "values", "weights", "means", "negatives", "rarity", "own")
"""Possible columns of a record in the transfer to the device, in 32-bit words."""
WALK_ENTRIES_MAX = 128
"""Maximum number of entries per micro-batch for which one block processes all micro-batches of a
span.
"""
MARGIN_BYTES = 512 << 20
"""Device memory that the tables leave free for pins and reads, in bytes."""


class LearningRule(Part, Protocol):
    """A rule on the GPU (`sgd/cuda.py`, `solve/cuda.py`, `softmax/cuda.py`).

    The caller of all methods holds the lock of the model.
    """

    pinned: DeviceSections
    """Sections of the rule's state on the device from which scores are computed."""
    records: bool
    """Whether `learn` records events in the histories. Otherwise the model records them
    afterwards.
    """

    def hold(self, update: Update, counts: tuple[int, int]) -> None:
        """Allocates the memory for a record in tables with `counts` rows.

        Raises:
            MemoryError: the device has too little memory.
        """

    def propose(self, update: Update) -> dict[str, np.ndarray]:
        """Further columns of the record for the transfer to the device."""

    def learn(self, update: Update, slot: Slot, places: dict[str, int]) -> None:
        """Puts the learning from a record on the stream.

        `places` has the places of the columns in the slot, `<name>_at`, in words; for times in
        int64 words. It is -1 for an absent column.
        """


class CudaModel:
    """A model on the current GPU, with the bits of `cpu.CpuModel` (`backend.Backend`).

    One thread may call `apply`, `advance`, `load_sections` and `load_state`. Another one may call
    `reserve` and the `allocate` of the tables. Any thread may read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        device_bytes_max: int | None = None,
        walk_entries_max: int = WALK_ENTRIES_MAX,
        together: bool = False,
    ) -> None:
        """An empty model. It compiles its kernels.

        Args:
            spec: the spec of the model.
            device_bytes_max: maximum number of bytes of tables on the device. None means all free
                memory without a margin.
            walk_entries_max: see `WALK_ENTRIES_MAX`.
            together: whether larger micro-batches of a span take one launch, with a barrier over
                the whole grid, and not three launches each. It changes no bit.

        Raises:
            RuntimeError: no GPU is available.
            SpecError: the spec is invalid.
            MemoryError: the device has too little memory for a record.
        """
        self._set_up(check_cuda(check(spec)), device_bytes_max, walk_entries_max, together)
        if not SIMULATED:
            _compile_kernels(_kind_of(spec))

    def _set_up(
        self, spec: ModelSpec, device_bytes_max: int | None, walk_entries_max: int, together: bool
    ) -> None:
        self.spec = spec
        self.device = open_device()
        self.lock = threading.Condition()
        self.users, self.items = (CudaTable(spec, side, self.device) for side in (USERS, ITEMS))
        self.revision = 0
        self.published = (0, 0)
        self._mean = GlobalMean()
        self.pins = Pins(self.spec, self.device, (self.users, self.items), self.lock)
        self._device_bytes_max = device_bytes_max
        self._memory_lock = threading.Lock()
        self._staging = Staging(self.device, record_bytes(spec, most_events(spec, RECORD_EVENTS_MAX)))
        self._reservoir = Reservoir(spec) if spec.replay.size else None
        tables = self.users, self.items
        self._recorder = Recorder(spec, self.device, *tables) if spec.history.users else None
        self._rule: LearningRule
        if spec.rule == Rule.SOLVE:
            # `spec.checks.check` ensures it.
            assert self._recorder is not None
            self._rule = Solver(spec, self.device, *tables, self._recorder, self.pins)
        elif spec.rule == Rule.SOFTMAX:
            self._rule = Softmax(spec, self.device, *tables, self.pins)
        else:
            kind = AdaptiveSgd if spec.adaptive_rate.window else Sgd
            self._rule = kind(spec, self.device, *tables, self.pins, walk_entries_max, together)
        self._parts = [self._mean, self._rule, *([self._reservoir] if self._reservoir else [])]

    # ------------------------------------------------------------ state

    @property
    def mean(self) -> np.float32:
        """See `backend.Backend.mean`."""
        return self._mean.value

    def state(self) -> dict[str, np.ndarray]:
        """See `backend.Backend.state`. It waits for the device if a section is there."""
        with self.lock:
            return state_of(self._parts)

    def load_state(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `backend.Backend.load_state`."""
        with self.lock:
            for part in self._parts:
                part.load(sections)

    def load_sections(self, side: int, sections: dict[str, np.ndarray], count: int) -> None:
        """See `backend.Backend.load_sections`. `advance` publishes the rows.

        Raises:
            MemoryError: the device has too little memory.
        """
        with self.lock:
            self._table(side).load_sections(sections, count)

    def begin(self, start: Start) -> None:
        """See `backend.Backend.begin`. The server gives no factors to this backend."""
        raise AssertionError("factors: backend cuda lacks this part (docs/gpu.md)")

    def add(self, deltas: Deltas) -> None:
        """See `backend.Backend.add`. No spec on this backend merges."""
        raise AssertionError("merge: `spec.checks.check_cuda` refuses it")

    def clear(self, side: int, rows: np.ndarray, revision: int) -> None:
        """See `backend.Backend.clear`. The server clears no rows of this backend."""
        raise AssertionError("clear: backend cuda lacks this part (docs/gpu.md)")

    def set_embeddings(
        self, side: int, rows: np.ndarray, vectors: np.ndarray, revision: int, count: int
    ) -> None:
        """See `backend.Backend.set_embeddings`. No spec on this backend has embeddings."""
        raise AssertionError("embeddings: `spec.checks.check_cuda` refuses them")

    def add_map_sums(self, sums: MapSums) -> None:
        """See `backend.Backend.add_map_sums`. No spec on this backend has embeddings."""
        raise AssertionError("merge: `spec.checks.check_cuda` refuses it")

    def set_features(self, side: int, rows: np.ndarray, bags: Bags, revision: int, count: int) -> None:
        """See `backend.Backend.set_features`. No spec on this backend has features."""
        raise AssertionError("features: `spec.checks.check_cuda` refuses them")

    def drop_features(self, side: int, keys: np.ndarray, revision: int) -> None:
        """See `backend.Backend.drop_features`. No spec on this backend has features."""
        raise AssertionError("features: `spec.checks.check_cuda` refuses them")

    def learn_context(self, item_rows: np.ndarray, bags: Bags) -> Moves:
        """See `backend.Backend.learn_context`. No spec on this backend has context."""
        raise AssertionError("context: `spec.checks.check_cuda` refuses it")

    def drop_context(self, keys: np.ndarray, revision: int) -> None:
        """See `backend.Backend.drop_context`. No spec on this backend has context."""
        raise AssertionError("context: `spec.checks.check_cuda` refuses it")

    def context(self, keys: np.ndarray) -> Statistics:
        """See `backend.Backend.context`. No spec on this backend has context."""
        raise AssertionError("context: `spec.checks.check_cuda` refuses it")

    def advance(self, revision: int, user_count: int | None = None, item_count: int | None = None) -> None:
        """See `backend.Backend.advance`."""
        users, items = self.published
        counts = (users if user_count is None else user_count, items if item_count is None else item_count)
        if any(count > self._table(side).initialised for side, count in enumerate(counts)):
            with self.lock:
                self._put_on_stream(None, counts)
        self.published, self.revision = counts, revision

    def _table(self, side: int) -> CudaTable:
        return (self.users, self.items)[side]

    # ------------------------------------------------------------ memory

    def reserve(self, user_rows: int, item_rows: int) -> bool:
        """See `backend.Backend.reserve`. It returns False also at `device_bytes_max`."""
        wanted = (user_rows, item_rows)
        with self._memory_lock:
            missing = sum(self._table(side).missing(rows) for side, rows in enumerate(wanted))
            if not missing:
                return True
            mapped = sum(rows.mapped for side in (USERS, ITEMS) for rows in self._table(side).arrays.values())
            if self._device_bytes_max is not None and mapped + missing > self._device_bytes_max:
                return False
            if missing > self.device.free_bytes() - MARGIN_BYTES:
                return False
            return all(self._table(side).reserve(rows) for side, rows in enumerate(wanted))

    def wait_for_room(self, update_rows: int) -> None:
        """See `backend.Backend.wait_for_room`. Replayed events count, too."""
        self.pins.wait_for_room(most_events(self.spec, update_rows))

    # ------------------------------------------------------------ reads

    def sections(self, side: int, count: int) -> dict[str, np.ndarray]:
        """See `backend.Backend.sections`. The arrays are copies."""
        with self.lock:
            return self._table(side).sections(count)

    def try_score(
        self, user_keys: np.ndarray, item_keys: np.ndarray, offsets: np.ndarray | None
    ) -> Candidates | None:
        """See `backend.Backend.try_score`. Always None."""
        return None

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `backend.Backend.gather`."""
        with self.lock:
            wait = fetch_rows(self.device, self._table(side), None, rows, ("factors", "bias"))
        return as_floats(*wait())

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `backend.Backend.read`."""
        with self.lock:
            wait = fetch_rows(self.device, self._table(side), None, rows, names)
        return as_sections(self._table(side), names, wait())

    def recent(self, side: int, rows: np.ndarray, most: int) -> Recent:
        """See `backend.Backend.recent`."""
        return recent_of(self.read(side, rows, RECENT), ring_length(self.spec, side), most)

    def pin(self) -> CudaPin:
        """See `backend.Backend.pin`."""
        state = {name: array.copy() for name, array in self._mean.sections().items()}
        return self.pins.pin(PinnedState(self.revision, self.published, state), self._rule.pinned)

    # ------------------------------------------------------------ updates

    def apply_all(self, updates: Sequence[Update]) -> None:
        """See `backend.Backend.apply_all`."""
        for update in updates:
            update.check()
        for update in updates:
            self.apply(update)

    def apply(self, update: Update) -> None:
        """Puts one interactions record on the stream, then sets `revision` and `published`.

        The rows are below the counts of the update. It waits while two records are in progress.

        Raises:
            ValueError: a column is malformed.
            MemoryError: the device has too little memory: for rows without `reserve`, for a pin's
                copies without `wait_for_room`, or for more than `RECORD_EVENTS_MAX` events. Nothing
                has changed.
        """
        update.check()
        learned = update if self._reservoir is None else self._reservoir.extend(update)
        self._staging.wait_for_turn()
        with self.lock:
            self._put_on_stream(learned, (update.user_count, update.item_count))
        if self._reservoir is not None:
            self._reservoir.keep(update)
        if self.spec.loss == Loss.SQUARED:
            values = np.ones(update.user_rows.size, np.float32) if update.values is None else update.values
            self._mean.add(values)
        self.advance(update.revision, update.user_count, update.item_count)

    def _put_on_stream(self, update: Update | None, counts: tuple[int, int]) -> None:
        """Initialises rows up to `counts`, and learns from a record. The caller holds the lock."""
        tables = (self.users, self.items)
        columns: dict[str, np.ndarray] = {
            f"new_{table.side}": table.keys[table.initialised : count]
            for table, count in zip(tables, counts, strict=True)
        }
        if update is not None:
            columns |= self._columns(update)
        self._hold(update, columns, counts)
        if update is not None:
            columns |= self._rule.propose(update)
        slot, offsets = self._staging.send(columns)
        with self.device.learning():
            for table, count in zip(tables, counts, strict=True):
                self._initialise(table, count, slot, offsets[f"new_{table.side}"])
            if update is not None:
                self._learn(update, slot, offsets)
        slot.done = self.device.mark()

    def _hold(self, update: Update | None, columns: dict[str, np.ndarray], counts: tuple[int, int]) -> None:
        """Allocates all memory for a record, before anything changes.

        Raises:
            MemoryError: the device has too little memory.
        """
        if not self.reserve(*counts):
            raise MemoryError(f"the device has too little memory for tables of {counts} rows")
        events = 0 if update is None else update.user_rows.size
        nbytes = sum(aligned(column.nbytes) for column in columns.values())
        self._staging.hold(nbytes + shared_bytes(self.spec, events))
        if update is not None:
            self.pins.make_room(events)
            self._rule.hold(update, counts)

    def _columns(self, update: Update) -> dict[str, np.ndarray]:
        columns: dict[str, np.ndarray | None] = {
            "users": update.user_rows,
            "items": update.item_rows,
            "values": update.values,
            "weights": update.weights,
            "times": update.times if self.spec.history.users else None,
        }
        if self.spec.loss == Loss.SQUARED:
            columns["means"] = self._means(update)
        return {name: column for name, column in columns.items() if column is not None}

    def _means(self, update: Update) -> np.ndarray:
        """The global mean float32 at the start of each micro-batch of a record
        (`scalar.mean_of`).
        """
        batch, n = self.spec.micro_batch, update.user_rows.size
        values = np.ones(n, np.float32) if update.values is None else update.values
        ends = np.minimum(np.arange(0, n, batch), update.fresh)
        sums = np.concatenate(([0], np.cumsum(scalar.fixed_point(values))))[ends] + self._mean.sums[0]
        counts = ends + self._mean.sums[1]
        means: np.ndarray = sums.astype(np.float64) / (
            np.maximum(counts, 1).astype(np.float64) * scalar.FIXED_ONE
        )
        # Without events the sum is 0, too.
        return means.astype(np.float32)

    def _initialise(self, table: CudaTable, count: int, slot: Slot, keys_at: int) -> None:
        new = table.new_rows(count, keys_at // KEY_BYTES)
        if new.number <= 0:
            return
        scale, initial_g = np.float32(self.spec.init_scale), np.float32(self.spec.optimizer.initial_g)
        seeds = [domain_key(self.spec.seed, domain) for domain in (INIT_DOMAIN, INIT_ROUNDING_DOMAIN)]
        threads = new.number * (new.k_padded // 4)
        self.device.launch(
            livefactor_init_kernel, threads, new, table.live, slot.keys, scale, initial_g, *seeds
        )
        table.start_apart(new)
        table.initialised = count

    def _learn(self, update: Update, slot: Slot, offsets: dict[str, int]) -> None:
        places = {f"{name}_at": offsets.get(name, -WORD_BYTES) // WORD_BYTES for name in _COLUMNS}
        places["times_at"] = offsets.get("times", -KEY_BYTES) // KEY_BYTES
        recorder = self._recorder
        if recorder is not None:
            for frozen in self.pins.frozen:
                recorder.save_recent_items(frozen.sides[ITEMS], slot, places["users_at"], update.fresh)
        self._rule.learn(update, slot, places)
        if recorder is None or self._rule.records:
            return
        for piece in pieces_of(update.fresh, PIECE_EVENTS, places):
            recorder.order(piece, slot)
            recorder.record(piece, slot, 0, piece.events, piece.events)


def _kind_of(spec: ModelSpec) -> ModelSpec:
    """A small spec that uses the same kernels."""
    history, counts, bounds = spec.history, spec.counts, spec.regularization
    return check(
        ModelSpec(
            k=spec.k,
            loss=Loss(spec.loss),
            optimizer=Optimizer(OptimizerKind(spec.optimizer.kind)),
            negatives=int(spec.loss == Loss.BPR or (spec.rule == Rule.SOFTMAX and spec.negatives > 0)),
            l2=1.0,
            bias_l2=1.0,
            micro_batch=2,
            factor_dtype=FactorDtype(spec.factor_dtype),
            rule=Rule(spec.rule),
            history=History(min(history.users, LANES), min(history.items, LANES)),
            solve=Solve(float(spec.solve.unobserved > 0)),
            softmax=replace(spec.softmax, group_events=0),
            counts=Counts(min(counts.neighbors, LANES), span=1),
            regularization=Regularization(
                float(bounds.gradient_norm_max > 0),
                float(bounds.row_norm_max > 0),
                bounds.l2_frequency,
                0.5 * (bounds.dropout > 0),
            ),
            adaptive_rate=AdaptiveRate(min(spec.adaptive_rate.window, MIN_WINDOW)),
            limits=Limits(users_max=8, items_max=8, error_max=1.0, factor_max=1.0),
        )
    )


@cache
def _compile_kernels(kind: ModelSpec) -> int:
    """Compiles all kernels of a kind of models, by running a small model.

    So no later update or read waits for the compiler. Returns the number of launches.
    """
    return sum(_compile_way(kind, walk_entries_max) for walk_entries_max in (WALK_ENTRIES_MAX, 0))


def _compile_way(kind: ModelSpec, walk_entries_max: int) -> int:
    compiling = CudaModel.__new__(CudaModel)
    compiling._set_up(kind, None, walk_entries_max, False)
    keys, rows = np.arange(4, dtype=np.uint64), np.arange(4, dtype=np.uint32)
    for table in (compiling.users, compiling.items):
        table.allocate(keys)
    for revision in (1, 2):
        with compiling.pin() as pin:
            compiling.apply(Update(revision, rows, rows, None, None, 4, 4))
            users = pin.gather(USERS, rows[: pin.counts[USERS]])
            for side, table in enumerate((compiling.users, compiling.items)):
                pin.read(side, rows[: pin.counts[side]], table.apart)
            for asked in (4, 1):
                pin.top_k(users[0][:asked], users[1][:asked], 2)
    return compiling.device.launches
