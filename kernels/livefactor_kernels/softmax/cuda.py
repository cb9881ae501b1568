"""Rule SOFTMAX on the GPU: its memory, and the launches for a record (semantics:
`softmax/__init__.py`).

The negatives depend only on the events. So the host proposes them (`proposal.py`), and sends them
with the columns of the record. The negatives of a piece are sorted once by (micro-batch, row,
place), so that each item's negatives are consecutive, like its events. `cuda_kernels.py` has the
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from livefactor_kernels.device.machine import Device
from livefactor_kernels.device.staging import Slot
from livefactor_kernels.history.cuda import PIECE_EVENTS, livefactor_order_kernel, pieces_of
from livefactor_kernels.optimizers import Method, StepRates
from livefactor_kernels.pins.cuda import DeviceSections, Pins
from livefactor_kernels.softmax.cuda_kernels import Batch, Results, softmax_kernels
from livefactor_kernels.softmax.cuda_shared import (
    BATCHES_MAX,
    NEGATIVES_OF_PIECE,
    livefactor_order_negatives_kernel,
)
from livefactor_kernels.softmax.proposal import Proposer
from livefactor_kernels.spec.model import LANES, ModelSpec
from livefactor_kernels.tables import ITEMS
from livefactor_kernels.tables.cuda import CudaTable
from livefactor_kernels.tables.state import Stateless
from livefactor_kernels.update import Rates, Update


class Softmax(Stateless):
    """Learns from records. It allocates the memory for a record at its creation."""

    records = False

    def __init__(
        self, spec: ModelSpec, device: Device, users: CudaTable, items: CudaTable, pins: Pins
    ) -> None:
        """Allocates memory and selects the kernels.

        Raises:
            MemoryError: the device has too little memory.
        """
        self._spec, self._device, self._pins, self._tables = spec, device, pins, (users, items)
        self.pinned: DeviceSections = {}
        method = Method.of(spec)
        self._rates: Any = Rates.of(spec) if method.is_plain else StepRates.of(spec)
        self.proposer = Proposer(spec, items.capacity)
        self._kernels = softmax_kernels(spec.k_padded // LANES, method)
        size, m, kp = spec.micro_batch, spec.negatives_of_event, spec.k_padded
        groups, shared = size // spec.group_events, spec.drawn(size)
        sizes = size, size * m, size * kp, shared * kp, shared, groups
        self._memory = [device.empty(count, np.float32) for count in sizes]
        self._results = Results(*(buffer.argument for buffer in self._memory))
        self._keys = device.empty(PIECE_EVENTS, np.int64), device.empty(PIECE_EVENTS, np.int64)
        self._shared = device.empty(self._batches_of_piece * shared, np.int64)
        # The first sort allocates the memory of later ones.
        with device.learning():
            for buffer in (*self._keys, self._shared):
                buffer.array.fill(0)
                buffer.array.sort()

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`. The proposals follow from the item rows.

        The caller holds the lock of the model.
        """
        if self.proposer.counts:
            items = self._tables[ITEMS]
            counts = self._device.fetch([items.matrix("seen_count", 0, items.allocated)])()[0]
            self.proposer.reload(counts[:, 0])

    def propose(self, update: Update) -> dict[str, np.ndarray]:
        """The negatives of a record, as columns for the transfer."""
        shared = self.proposer.propose(update)
        return {"negatives": shared.rows.ravel(), "rarity": shared.rarity.ravel(), "own": shared.own}

    def hold(self, update: Update, counts: tuple[int, int]) -> None:
        """Nothing, because all memory is allocated already."""

    def learn(self, update: Update, slot: Slot, places: dict[str, int]) -> None:
        """Puts the learning from a record on the stream (`cuda.LearningRule.learn`)."""
        device, spec = self._device, self._spec
        width, of_batch = spec.negatives_of_event, spec.drawn(spec.micro_batch)
        events = update.user_rows.size
        self._pins.save_named(slot, (places["users_at"], places["items_at"]), events)
        for frozen in self._pins.frozen:
            frozen.sides[ITEMS].save(slot.words, places["negatives_at"], spec.drawn(events))
        for piece in pieces_of(events, spec.micro_batch, places, self._batches_of_piece):
            device.launch(livefactor_order_kernel, piece.events, piece, slot.words, *self._arguments)
            for buffer in self._keys:
                buffer.array[: piece.events].sort()
            at, entries = spec.drawn(piece.first), spec.drawn(piece.events)
            count = piece.events if spec.negatives == 0 else entries
            numbers = places["negatives_at"] + at, of_batch, count, entries
            device.launch(
                livefactor_order_negatives_kernel, entries, slot.words, *numbers, self._shared.argument
            )
            self._shared.array[:entries].sort()
            for start in range(0, piece.events, spec.micro_batch):
                stop = min(start + spec.micro_batch, piece.events)
                groups = -(-(stop - start) // spec.group_events)
                last_m = stop - start - (groups - 1) * spec.group_events if spec.negatives == 0 else width
                first = spec.drawn(start)
                batch = Batch(
                    start=start,
                    stop=stop,
                    group_events=spec.group_events,
                    width=width,
                    last_m=last_m,
                    rows_at=places["negatives_at"] + at + first,
                    rarity_at=places["rarity_at"] + at + first,
                    own_at=places["own_at"],
                    shared_start=first,
                    shared_stop=first + (groups - 1) * width + last_m,
                )
                self._micro_batch(piece, slot, batch)

    @property
    def _batches_of_piece(self) -> int:
        """Maximum number of micro-batches per piece, because of their negatives."""
        return max(1, min(BATCHES_MAX, NEGATIVES_OF_PIECE // self._spec.drawn(self._spec.micro_batch)))

    @property
    def _arguments(self) -> tuple[Any, Any]:
        users, items = self._keys
        return users.argument, items.argument

    def _micro_batch(self, piece: Any, slot: Slot, batch: Batch) -> None:
        users, items = (table.step_rows for table in self._tables)
        user_keys, item_keys = self._arguments
        events, columns = batch.stop - batch.start, (slot.words, slot.floats)
        launch, results, rates = self._device.launch, self._results, self._rates
        launch(
            self._kernels.users,
            events * LANES,
            piece,
            batch,
            user_keys,
            *columns,
            users,
            items,
            results,
            rates,
        )
        shared = batch.shared_stop - batch.shared_start
        launch(
            self._kernels.negatives, shared * (self._spec.k_padded + 1), piece, batch, slot.floats, results
        )
        keys = item_keys, self._shared.argument
        launch(
            self._kernels.items,
            (events + shared) * LANES,
            piece,
            batch,
            *keys,
            slot.floats,
            items,
            results,
            rates,
        )
