"""The CPU backend: tables, the choice of the kernel that a spec needs, and the public verbs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import scalar, scoring
from .cpu_micro_batch import make_scratch, micro_batch_kernel
from .cpu_sequential import DRAWN_ANY, SAMPLED_NEGATIVES_MAX, SLOT_LANES, positive_kernel, sampled_kernel
from .history.cpu import Recorder
from .lanes import address_of
from .pins import Pin, PinBoard
from .random import ROUNDING_DOMAIN, domain_key
from .softmax.cpu import Softmax
from .solve.cpu import Solver
from .spec import LANES, FactorDtype, Loss, ModelSpec, OptimizerKind, Rule
from .steps import Rows
from .tables import ITEMS, USERS, Table, reserve
from .update import Rates, Update, draw_negatives, joined, writable

_INLINED = (
    "lanes.py",
    "scalar.py",
    "random.py",
    "narrow.py",
    "steps.py",
    "gradients.py",
    "sums.py",
    "packs.py",
    "cpu_sequential.py",
    "cpu_micro_batch.py",
    "spec.py",
    "softmax/__init__.py",
    "softmax/cpu.py",
)


def _source_stamp() -> int:
    """Number that changes with the source of anything inlined into a kernel.

    Numba's cache on disk looks only at the file of the kernel itself; without this an edited `scalar.py`
    would leave old code.
    """
    folder = Path(__file__).parent
    digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in _INLINED)).digest()
    return int.from_bytes(digest[:4], "little")


SOURCE_STAMP = _source_stamp()
_NO_FLOATS = np.empty(0, np.float32)


class CpuModel:
    """A model of the CPU backend: `users` and `items` tables and what an update does to them.

    One thread may call `apply`, `advance`, `load_sections` and `set_mean`; reads of rows that are not being
    written, and the tables' `allocate` and `find`, follow the rules of `tables.Table`. `revision` and
    `published` (rows of users and items visible at it) change after the kernel has returned.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Reserve the tables of a spec and compile its kernel (or load it from Numba's cache); SpecError if
        it is refused."""
        self.spec = spec.check()
        self.users, self.items = Table(spec, USERS), Table(spec, ITEMS)
        self.revision = 0
        self.published = (0, 0)
        self._mean_state = np.zeros(2, np.int64)
        self._solver = (
            Solver(spec, self.users, self.items, self._mean_state) if spec.rule == Rule.SOLVE else None
        )
        self._softmax = (
            Softmax(spec, self.users, self.items, SOURCE_STAMP) if spec.rule == Rule.SOFTMAX else None
        )
        self._recorder = self._solver.recorder if self._solver is not None else None
        if self._recorder is None and spec.history.users:
            self._recorder = Recorder(spec, self.users, self.items)
        self.pins = PinBoard(self)
        self._rates = Rates.of(spec)
        self._rounding_key = domain_key(spec.seed, ROUNDING_DOMAIN)
        self._rows = Rows.of(self.users), Rows.of(self.items)
        self._drawn = np.empty(0, np.uint32)
        self._lanes = reserve((3, SLOT_LANES), np.float32)
        self._words = np.empty(2 + SAMPLED_NEGATIVES_MAX, np.uint32)
        if spec.factor_dtype != FactorDtype.FLOAT32:
            scoring.compile_kernels(spec.factor_dtype)  # those of float32 are for whoever reads
        if self._solver is not None or self._softmax is not None:
            return
        self._choose_kernel()
        self._run(
            self.revision,
            np.empty(0, np.uint32),
            np.empty(0, np.uint32),
            _NO_FLOATS,
            _NO_FLOATS,
            np.empty((0, spec.negatives), np.uint32),
        )

    def _choose_kernel(self) -> None:
        spec = self.spec
        blocks, loss = spec.k_padded // LANES, int(spec.loss)
        adagrad = int(spec.optimizer.kind == OptimizerKind.ADAGRAD)
        self._sequential = spec.micro_batch == 1 and spec.negatives <= SAMPLED_NEGATIVES_MAX
        # Without negatives the sigmoid is all that clumps save: less than they cost where a step is long.
        long_step = bool(adagrad) or spec.factor_dtype != FactorDtype.FLOAT32
        self._positive = spec.loss == Loss.SQUARED or (
            spec.loss == Loss.LOGISTIC and not spec.negatives and long_step
        )
        if not self._sequential:
            self._scratch, self._scratch_memory = make_scratch(spec, self.users, self.items)
            self._kernel = micro_batch_kernel(blocks, loss, adagrad, SOURCE_STAMP)
        elif self._positive:
            self._kernel = positive_kernel(blocks, loss, adagrad, SOURCE_STAMP)
        else:
            drawn = min(spec.negatives, DRAWN_ANY)
            self._kernel = sampled_kernel(blocks, loss, adagrad, drawn, SOURCE_STAMP)

    def _run(
        self, revision: int, user_rows: Any, item_rows: Any, values: Any, weights: Any, negatives: Any
    ) -> None:
        drawn = address_of(negatives), np.uint64(negatives.shape[1])
        rounding = self._rounding_key, np.uint64(revision)
        rows = address_of(user_rows), address_of(item_rows), np.uint64(user_rows.size)
        if not self._sequential:
            self._kernel(
                *self._rows,
                *rows,
                values,
                weights,
                *drawn,
                self._mean_state,
                self._rates,
                *rounding,
                self._scratch,
                np.uint64(self.spec.micro_batch),
            )
        elif self._positive:
            columns = user_rows, item_rows, values, weights
            self._kernel(*self._rows, *columns, self._mean_state, self._rates, *rounding)
        else:
            memory = address_of(self._lanes), address_of(self._words)
            self._kernel(*self._rows, *rows, values, weights, *drawn, *memory, self._rates, *rounding)

    @property
    def mean_sum(self) -> int:
        """Fixed-point sum (2**20) of the values seen, squared loss only."""
        return int(self._mean_state[0])

    @property
    def mean_count(self) -> int:
        """Events in `mean_sum`."""
        return int(self._mean_state[1])

    @property
    def mean(self) -> np.float32:
        """Global mean of the values seen (squared loss), else 0."""
        return np.float32(scalar.mean_of(self.mean_sum, self.mean_count))

    @property
    def gram(self) -> np.ndarray:
        """float64[2, k + 1, k + 1]: sums of outer products of users' and items' (x, 1) (rule SOLVE), else float64[2, 0, 0]."""
        return np.zeros((2, 0, 0)) if self._solver is None else self._solver.gram

    def set_gram(self, gram: np.ndarray) -> None:
        """Restore `gram`."""
        self.gram[:] = gram

    def set_mean(self, total: int, count: int) -> None:
        """Restore the mean's fixed-point sum and its number of events."""
        self._mean_state[:] = total, count

    def load_sections(self, side: int, sections: dict[str, np.ndarray], count: int) -> None:
        """Restore an empty table of `count` rows (`Table.load_sections`: shapes, errors); publish it with
        `advance`."""
        (self.users, self.items)[side].load_sections(sections, count)
        if self._softmax is not None and side == ITEMS:
            self._softmax.proposer.reload(count)

    def apply(self, update: Update) -> None:
        """Learn from one interactions record, then set `revision` and `published`. ValueError if a column is
        malformed.

        Rows must be below the update's counts. The GIL is released in the kernel. With pins alive, the rows
        the record will change are copied first.
        """
        self.apply_all([update])

    def apply_all(self, updates: Sequence[Update]) -> None:
        """Learn from consecutive interactions records: the same bits as `apply` on one after the other.

        Nothing between the first and the last revision becomes visible. With B = 1 and float32 factors they take
        one call of the kernel (rounding depends on a record's own revision). ValueError, with nothing learned,
        if a column is malformed.
        """
        for update in updates:
            update.check()
        if self._solver is not None:
            for update in updates:
                self._solve(self._solver, update)
            return
        if self._softmax is not None:
            for update in updates:
                self._contrast(self._softmax, update)
            return
        joinable = self._sequential and self.spec.factor_dtype == FactorDtype.FLOAT32
        if len(updates) == 1 or (joinable and self._draw_widths(updates) < 2):
            self._learn(updates)
            return
        for update in updates:
            self._learn([update])

    def _solve(self, solver: Solver, update: Update) -> None:
        self._protect(update, update.item_rows[:0])
        solver.learn(update)
        self.advance(update.revision, update.user_count, update.item_count)

    def _contrast(self, softmax: Softmax, update: Update) -> None:
        shared = softmax.proposer.propose(update)
        self._protect(update, shared.rows.reshape(-1))
        softmax.learn(update, shared)
        self._record(update)

    def _protect(self, update: Update, negatives: np.ndarray) -> None:
        if self.pins.active:
            followed = () if self._recorder is None else (self._recorder.followed(update),)
            self.pins.protect(update, negatives, *followed)

    def _record(self, update: Update) -> None:
        if self._recorder is not None:
            self._recorder.record(update, 0, update.user_rows.size)
        self.advance(update.revision, update.user_count, update.item_count)

    def _draw_widths(self, updates: Sequence[Update]) -> int:
        """How many different numbers of negatives an event takes: none are drawn while there is one item."""
        return len({update.item_count > 1 for update in updates}) if self.spec.negatives else 1

    def _learn(self, updates: Sequence[Update]) -> None:
        negatives = self._draw(updates)
        update = joined(updates)
        self._protect(update, negatives.reshape(-1))
        values = _NO_FLOATS if update.values is None else writable(update.values)
        weights = _NO_FLOATS if update.weights is None else writable(update.weights)
        self._run(update.revision, update.user_rows, update.item_rows, values, weights, negatives)
        self._record(update)

    def advance(self, revision: int, user_count: int | None = None, item_count: int | None = None) -> None:
        """Set the revision after a record that changes no rows; counts, if given, become the published
        ones."""
        users, items = self.published
        self.published = (
            users if user_count is None else user_count,
            items if item_count is None else item_count,
        )
        self.revision = revision

    def reserve(self, user_rows: int, item_rows: int) -> bool:
        """True: address space for every row that the spec allows is held, and pages come when written."""
        return True

    def wait_for_room(self, update_rows: int) -> None:
        """Block while pins hold too many copies for `update_rows` more (`PinBoard.wait_for_room`)."""
        self.pins.wait_for_room(update_rows)

    def sections(self, side: int, count: int) -> dict[str, np.ndarray]:
        """Views of a side's first `count` rows (`Table.sections`: names and shapes)."""
        return (self.users, self.items)[side].sections(count)

    def gather(self, side: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(factors float32[n, kp], bias float32[n]) of rows uint32[n] as they are now (`scoring.gather`)."""
        return scoring.gather((self.users, self.items)[side], rows)

    def read(self, side: int, rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Copies of sections of rows as they are now (`Table.read`)."""
        return (self.users, self.items)[side].read(rows, names)

    def pin(self) -> Pin:
        """Keep the current revision readable; no `apply` may be running."""
        return self.pins.pin(self)

    def _draw(self, updates: Sequence[Update]) -> np.ndarray:
        """Negatives uint32[n, width] of all events; every update draws equally many an event."""
        events = sum(update.item_rows.size for update in updates)
        needed = events * self.spec.negatives
        if self._drawn.size < needed:
            self._drawn = np.empty(needed, np.uint32)
        start, width = 0, 0
        for update in updates:
            drawn = draw_negatives(self.spec, update, self._drawn[start:])
            start, width = start + drawn.size, drawn.shape[1]
        return self._drawn[:start].reshape(events, width)
