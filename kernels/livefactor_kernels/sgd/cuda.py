"""Rule SGD on the GPU: the launches for the micro-batches of a record.

`sgd/cuda_micro_batch.py` has the kernels, and `device/plan.py` has the order of occurrences.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from livefactor_kernels.device.machine import Device
from livefactor_kernels.device.plan import (
    Plan,
    Span,
    entries_kernel,
    livefactor_dropout_kernel,
    livefactor_list_kernel,
    livefactor_mark_kernel,
    livefactor_words_kernel,
    spans_of,
)
from livefactor_kernels.device.scratch import Scratch, chunks_of
from livefactor_kernels.device.staging import Slot
from livefactor_kernels.numbers.random import DROPOUT_DOMAIN, NEGATIVE_DOMAIN, ROUNDING_DOMAIN, domain_key
from livefactor_kernels.optimizers import Method, StepRates
from livefactor_kernels.pins.cuda import DeviceSections, Pins
from livefactor_kernels.sgd.cuda_micro_batch import micro_batch_kernels, threads_of_a_step
from livefactor_kernels.spec.model import LANES, FactorDtype, ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_kernels.tables.cuda import CudaTable
from livefactor_kernels.tables.state import Stateless
from livefactor_kernels.update import Rates, Update

WALK_THREADS = 256


class Sgd(Stateless):
    """Learns from records. It allocates the memory for a record at its creation."""

    records = False

    def __init__(
        self, spec: ModelSpec, device: Device, users: CudaTable, items: CudaTable, pins: Pins, walk_entries_max: int,
        together: bool,
    ) -> None:  # fmt: skip
        """Allocates memory and selects the kernels.

        `walk_entries_max` and `together` are arguments of `cuda.CudaModel`.

        Raises:
            MemoryError: the device has too little memory.
        """
        self._spec, self._device, self._pins = spec, device, pins
        self.pinned: DeviceSections = {}
        self._model = users.step_rows, items.step_rows
        self._walk_entries_max, self._together = walk_entries_max, together
        self._scratch = Scratch(spec, device)
        method, blocks = Method.of(spec), spec.k_padded // LANES
        self._rates = self.rates_of(spec)
        self._step_threads = threads_of_a_step(blocks, method)
        self._entries_kernel = entries_kernel(int(spec.loss))
        self._kernels = micro_batch_kernels(blocks, int(spec.loss), method)

    @staticmethod
    def rates_of(spec: ModelSpec) -> Any:
        """The rates of a spec, in the type that its kernels take."""
        return Rates.of(spec) if Method.of(spec).is_plain else StepRates.of(spec)

    def hold(self, update: Update, counts: tuple[int, int]) -> None:
        """See `cuda.LearningRule.hold`."""
        self._scratch.hold(update.user_rows.size, [self._width(update)], *counts)

    def propose(self, update: Update) -> dict[str, np.ndarray]:
        """No columns, because the device draws the negatives."""
        return {}

    def _width(self, update: Update) -> int:
        """Number of negatives per event."""
        return self._spec.negatives if update.item_count > 1 else 0

    def learn(self, update: Update, slot: Slot, places: dict[str, int]) -> None:
        """Puts the learning from a record on the stream, span by span
        (`cuda.LearningRule.learn`).
        """
        rows = max(update.user_count, update.item_count)
        for span in spans_of(self._spec, update.user_rows.size, self._width(update), rows, places):
            plan = self._order(update, span, slot)
            self._pins.save(span, plan, slot)
            self._learn_span(update, span, plan, slot)

    def _learn_span(self, update: Update, span: Span, plan: Plan, slot: Slot) -> None:
        """Learns from a span after it is ordered and its rows are saved for pins."""
        self._micro_batches(update, span, plan, slot, self._model, self._rates)

    def _order(self, update: Update, span: Span, slot: Slot) -> Plan:
        """Draws the negatives of a span, and lists its groups, segments and chunks."""
        device, plan, arrays = self._device, self._scratch.plan, self._scratch.arrays
        entries = span.events * (span.user_entries + span.item_entries)
        seed, revision = domain_key(self._spec.seed, NEGATIVE_DOMAIN), np.uint64(update.revision)
        numbers = seed, revision, np.uint64(update.item_count)
        threads = span.events * (1 + span.width)
        device.launch(self._entries_kernel, threads, span, plan, slot.words, slot.floats, *numbers)
        arrays.keys[:entries].sort()
        device.launch(livefactor_mark_kernel, entries, span, plan, entries)
        device.xp.cumsum(arrays.marks[:entries], out=arrays.counts[:entries])
        device.launch(livefactor_list_kernel, entries, span, plan, entries)
        if self._spec.factor_dtype != FactorDtype.FLOAT32:
            key = domain_key(self._spec.seed, ROUNDING_DOMAIN)
            device.launch(livefactor_words_kernel, entries, span, plan, key, revision)
        if self._spec.regularization.dropout > 0:
            key = domain_key(self._spec.seed, DROPOUT_DOMAIN)
            device.launch(livefactor_dropout_kernel, span.events, span, plan, key, revision)
        return plan

    def _micro_batches(
        self, update: Update, span: Span, plan: Plan, slot: Slot, tables: tuple[Any, Any], rates: Any
    ) -> None:
        """Three launches per micro-batch, or one for all micro-batches if they are small.

        `tables` has the rows of users and of items.
        """
        device, kernels, (users, items) = self._device, self._kernels, tables
        events = min(span.batch, span.events)
        counts = update.user_count, update.item_count
        rows = min(events, counts[USERS]), min(events * (1 + span.width), counts[ITEMS])
        chunks, sums = chunks_of(self._spec, events, span.width, *counts), self._scratch.sums
        if events * (span.user_entries + span.item_entries) <= self._walk_entries_max:
            arguments = span, plan, slot.words, slot.floats, users, items, sums, rates
            device.launch_block(kernels.walk, WALK_THREADS, *arguments)
            return
        if self._together:
            device.launch_together(
                kernels.walk_together, span, plan, slot.words, slot.floats, users, items, sums, rates
            )
            return
        threads = max(rows) * self._step_threads
        for m in range(span.batches):
            device.launch(
                kernels.users,
                chunks[USERS] * LANES,
                span,
                plan,
                slot.words,
                slot.floats,
                users,
                items,
                sums,
                rates,
                m,
            )
            device.launch(
                kernels.items, chunks[ITEMS] * LANES, span, plan, slot.words, users, items, sums, rates, m
            )
            device.launch(kernels.step, threads, span, plan, users, items, sums, rates, m, sides=2)
