"""Rule SGD on the CPU: selects and calls the kernel for a spec."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from livefactor_kernels.numbers.entries import entry_of
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.numbers.random import ROUNDING_DOMAIN, domain_key
from livefactor_kernels.optimizers import Method, StepRates
from livefactor_kernels.optimizers.cpu import StepRows
from livefactor_kernels.sgd import cpu_adversarial
from livefactor_kernels.sgd.cpu_micro_batch import make_scratch, micro_batch_kernel
from livefactor_kernels.sgd.cpu_sequential import (
    NEGATIVES_ANY,
    SAMPLED_NEGATIVES_MAX,
    SLOT_LANES,
    Record,
    positive_kernel,
    sampled_kernel,
)
from livefactor_kernels.sgd.runs import compile_kernels, draw_all_negatives
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import Rows
from livefactor_kernels.spec.model import LANES, FactorDtype, Loss, ModelSpec, OptimizerKind
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.state import Stateless
from livefactor_kernels.update import Rates, Update, UpdateRun, writable

SHORT_EVENTS_MAX = 64
"""Maximum number of events whose rows are copied for the kernel."""

_NO_FLOATS = np.empty(0, np.float32)
_NOTHING = np.empty(0, np.uint32)


class Sgd(Stateless):
    """Learns from records.

    Attributes:
        negatives: item rows uint32[n, width] of the prepared records.
    """

    records = False

    def __init__(self, spec: ModelSpec, users: Table, items: Table, mean_state: np.ndarray) -> None:
        """Compiles the kernel, or loads it from Numba's cache."""
        self._spec, self._mean_state = spec, mean_state
        self._rounding_key = domain_key(spec.seed, ROUNDING_DOMAIN)
        self._draws = np.empty(0, np.uint32)
        self.negatives = np.empty((0, spec.negatives), np.uint32)
        self._lanes = reserve((3, SLOT_LANES), np.float32)
        self._words = np.empty(2 + SAMPLED_NEGATIVES_MAX, np.uint32)
        self._memory = address_of(self._lanes), address_of(self._words)
        self._short_rows = np.empty((2, SHORT_EVENTS_MAX), np.uint32)
        self._short_addresses = tuple(map(address_of, self._short_rows))
        kernel = self._choose_kernel(users, items)
        nothing = Update(0, _NOTHING, _NOTHING, None, None, 0, 0)
        self._kernel = entry_of(kernel, *self._arguments(nothing))
        compile_kernels()

    def _choose_kernel(self, users: Table, items: Table) -> Any:
        spec = self._spec
        blocks, loss = spec.k_padded // LANES, int(spec.loss)
        adagrad = int(spec.optimizer.kind == OptimizerKind.ADAGRAD)
        # The sequential kernel of squared loss cannot exclude events from the mean.
        leaves_mean = spec.loss == Loss.SQUARED and spec.replay.size > 0
        part = spec.regularization
        self._attack = np.float32(part.adversarial_weight), np.float32(part.adversarial_share)
        self._is_adversarial = part.adversarial_weight > 0
        is_short = spec.negatives <= SAMPLED_NEGATIVES_MAX and not leaves_mean and not self._is_adversarial
        self._scratch: Any = None
        self._sequential = spec.micro_batch == 1 and is_short and Method.of(spec).is_plain
        kind: Any = Rows if self._sequential else StepRows
        self._rows = kind.of(users), kind.of(items)
        self.take_rates(spec)
        # Without negatives clumps save only the wait for the sigmoid. If steps are long, clumps
        # cost more than that.
        long_step = bool(adagrad) or spec.factor_dtype != FactorDtype.FLOAT32
        self._positive = spec.loss == Loss.SQUARED or (
            spec.loss == Loss.LOGISTIC and not spec.negatives and long_step
        )
        if self._is_adversarial:
            self._scratch, self._scratch_memory = cpu_adversarial.make_scratch(spec, users, items)
            return cpu_adversarial.adversarial_kernel(blocks, loss, Method.of(spec))
        if not self._sequential:
            self._scratch, self._scratch_memory = make_scratch(spec, users, items)
            return micro_batch_kernel(blocks, loss, Method.of(spec))
        if self._positive:
            return positive_kernel(blocks, loss, adagrad)
        return sampled_kernel(blocks, loss, adagrad, min(spec.negatives, NEGATIVES_ANY))

    def take_rates(self, spec: ModelSpec) -> None:
        """Uses the numbers of `spec` from now on. It differs from the model's spec only in learning
        rates.
        """
        self._rates: Any = Rates.of(spec) if self._sequential else StepRates.of(spec)

    def groups(self, updates: Sequence[Update]) -> Sequence[Sequence[Update]]:
        """Divides consecutive records into groups that one call of `learn` may take.

        A group of several records needs B = 1. Only the draws of negatives may depend on the
        revision of a record, and all records must draw the same number of negatives per event.
        (With one item they draw none.)
        """
        if not (self._sequential and self._spec.factor_dtype == FactorDtype.FLOAT32):
            return [[update] for update in updates]
        if not self._spec.negatives or len(updates) == 1:
            return [updates]
        counts: Any = (
            updates.item_counts
            if isinstance(updates, UpdateRun)
            else [update.item_count for update in updates]
        )
        # The number of items never falls.
        cut = bisect_right(counts, 1)
        return [part for part in (updates[:cut], updates[cut:]) if len(part)]

    def prepare(self, updates: Sequence[Update]) -> np.ndarray:
        """Draws the negatives of the records for the next `learn`: item rows uint32[any]."""
        run = updates.joined if isinstance(updates, UpdateRun) else None
        events = run.item_rows.size if run else sum(update.item_rows.size for update in updates)
        count = events * self._spec.negatives
        if self._draws.size < count:
            self._draws = np.empty(count, np.uint32)
        self.negatives = draw_all_negatives(self._spec, updates, self._draws)
        return self.negatives.reshape(-1)

    def learn(self, update: Update) -> None:
        """Learns from the prepared records, joined to one. The kernel releases the GIL."""
        self._kernel(*self._arguments(update))

    def _arguments(self, update: Update) -> tuple[Any, ...]:
        """The arguments of the kernel."""
        values, weights = (
            _NO_FLOATS if column is None else writable(column) for column in (update.values, update.weights)
        )
        user_rows, item_rows = update.user_rows, update.item_rows
        if (count := user_rows.size) <= SHORT_EVENTS_MAX:
            # A copy costs less than asking NumPy for an address.
            self._short_rows[0, :count], self._short_rows[1, :count] = user_rows, item_rows
            users, items = self._short_addresses
        else:
            users, items = address_of(user_rows), address_of(item_rows)
        record = Record(users, items, np.uint64(count), values, weights, np.uint64(update.revision))
        sides, rates, key = self._rows, self._rates, self._rounding_key
        if self._sequential and self._positive:
            return (*sides, *record, self._mean_state, rates, key)
        draws = address_of(self.negatives), np.uint64(self.negatives.shape[1])
        if self._sequential:
            return (*sides, *record, *draws, rates, key, *self._memory)
        if self._is_adversarial:
            return (*sides, *record, *draws, rates, key, self._scratch, self._attack)
        rest = self._scratch, np.uint64(update.fresh)
        return (*sides, *record, *draws, self._mean_state, rates, key, *rest)
