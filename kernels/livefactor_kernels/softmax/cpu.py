"""Rule SOFTMAX on the CPU (semantics: `softmax/__init__.py`).

A group is processed in chunks of 32 events. The users' rows and the errors of a chunk stay in the
first caches, together with the shared negatives, which are copied to scratch. Two threads may share
a record. The first one computes the errors of a chunk and steps the users (`cpu_events.py`). The
second one sums the gradients of the negatives (`cpu_items.py`), while the first one processes the
next chunk. Each steps half of the items of a micro-batch. They synchronise through words of memory
on which they wait. A single thread does the same in the same order. So the number of threads
changes no bit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.numbers.narrow import factors_of
from livefactor_kernels.optimizers import Method, StepRates
from livefactor_kernels.optimizers.cpu import StepRows
from livefactor_kernels.simd.atomics import load_acquire, store_release
from livefactor_kernels.simd.gradients import CHUNK_EVENTS, Chains, reset
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.steps import ONE, WORD_BYTES, ZERO, word
from livefactor_kernels.softmax.cpu_events import (
    Events,
    Negatives,
    gather_negatives,
    keep_events,
    learn_users,
)
from livefactor_kernels.softmax.cpu_items import Sums, link_items, pull_negatives, step_items
from livefactor_kernels.softmax.proposal import Proposer
from livefactor_kernels.spec.model import LANES, ModelSpec, Proposal
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.tables.state import Stateless
from livefactor_kernels.update import Update, writable

_LANES = np.uint64(LANES)
_TWO = np.uint64(2)
_NO_FLOATS = np.empty(0, np.float32)
ALONE, FIRST, SECOND = np.uint64(0), np.uint64(1), np.uint64(2)
"""The roles of a thread in a record."""
SHARED_EVENTS = 512
"""Minimum number of events of a record for two threads.

A single thread learns fewer events in less time than it takes to wake the other.
"""
_WORDS_OF_LINE = 8


class Meeting(NamedTuple):
    """Words (addresses of uint64) with the progress of two threads in a record.

    Attributes:
        kept: number of micro-batches whose events are in scratch.
        learned: number of counting events whose users have stepped.
        summed: number of micro-batches with complete sums.
        used: number of items in the last of these micro-batches.
        stepped: number of micro-batches in which the second thread has stepped its half of the
            items.
    """

    kept: np.uint64
    learned: np.uint64
    summed: np.uint64
    used: np.uint64
    stepped: np.uint64

    @staticmethod
    def of(words: np.ndarray) -> Meeting:
        """Words in uint64[words, any], each in its own cache line."""
        return Meeting._make(address_of(word) for word in words)


class Scratch(NamedTuple):
    """Working memory of the kernel of one model. It is not part of the state."""

    items: Chains
    events: Events
    negatives: Negatives
    sums: Sums
    work: np.uint64

    @staticmethod
    def of(spec: ModelSpec, items: Table) -> tuple[Scratch, list[np.ndarray]]:
        """The scratch of a model, and its arrays, which the caller keeps alive."""
        arrays: list[np.ndarray] = []

        def floats(*shape: int) -> np.uint64:
            arrays.append(reserve(shape, np.float32))
            return address_of(arrays[-1])

        size, kp, wide = spec.micro_batch, spec.k_padded, spec.k_padded + LANES
        m, groups = -(-spec.negatives_of_event // LANES) * LANES, size // spec.group_events
        chains = Chains(floats(items.capacity), *(floats(size + groups * m) for _ in range(4)))
        columns = [floats(size) for _ in range(5)]
        arrays.append(reserve((size, kp), np.float32))
        events = Events._make(
            [*columns, factors_of(arrays[-1]), floats(size, m), floats(wide), floats(groups)]
        )
        shapes = (m,), (m,), (m,), (m, kp), (4 * m,)
        negatives = Negatives._make([*(floats(*shape) for shape in shapes), np.uint64(4 * m)])
        sums = Sums(floats(groups * m, wide), floats(groups * m), np.uint64(m))
        return Scratch(chains, events, negatives, sums, floats(4, wide)), arrays


@cache
def softmax_kernel(blocks: int, method: Method) -> Any:
    """A kernel for rows of `blocks` vectors.

    Its arguments `drawn`, `rarity` and `own` are those of `Shared`. `role` is `ALONE`, or `FIRST`
    or `SECOND` for two threads with the same record.
    """
    BLOCKS, METHOD = np.uint64(blocks), method
    WIDE = np.uint64((blocks + 1) * LANES * 4)

    @compiled
    def livefactor_softmax_kernel(
        role: Any, users: Any, items: Any, user_rows: Any, item_rows: Any, values: Any, weights: Any, drawn: Any,
        rarity: Any, own: Any, is_in_batch: Any, rates: Any, scratch: Any, meeting: Any, micro_batch: Any,
        group_events: Any,
    ) -> None:  # fmt: skip
        n, width = np.uint64(user_rows.size), np.uint64(drawn.shape[1])
        events, negatives, sums = scratch.events, scratch.negatives, scratch.sums
        learns, steps, done, vectors = role != SECOND, role != FIRST, ZERO, ZERO
        work = scratch.work + (_TWO * WIDE if role == SECOND else ZERO)
        for start in range(ZERO, n, micro_batch):
            stop = min(start + micro_batch, n)
            groups, number = (stop - start + group_events - ONE) // group_events, start // micro_batch + ONE
            last_m = stop - start - (groups - ONE) * group_events if is_in_batch else width
            at = start // group_events * width * WORD_BYTES
            rows, rare = address_of(drawn) + at, address_of(rarity) + at
            if learns:
                keep_events(user_rows, item_rows, values, weights, own, start, stop, group_events, events)
                store_release(meeting.kept, number)
            else:
                while load_acquire(meeting.kept) < number:
                    pass
            count, begin, used = word(events.ends, groups - ONE), ZERO, ZERO
            if steps:
                used = link_items(scratch.items, events, rows, width, sums, groups, last_m, micro_batch)
            for group in range(groups):
                end, m = word(events.ends, group), last_m if group == groups - ONE else width
                if learns and end > begin:
                    at = group * width * WORD_BYTES
                    vectors = gather_negatives(items, negatives, rows + at, rare + at, m, BLOCKS)
                for first in range(begin, end, CHUNK_EVENTS):
                    last = min(first + CHUNK_EVENTS, end)
                    if learns:
                        learn_users(
                            users, items, events, negatives, first, last, count, m, vectors, BLOCKS, METHOD, rates
                        )  # fmt: skip
                        store_release(meeting.learned, done + last)
                    if steps:
                        while load_acquire(meeting.learned) < done + last:
                            pass
                        pull_negatives(events, sums, group, begin, first, last, m, BLOCKS)
                begin = end
            done += count
            if role == SECOND:
                store_release(meeting.used, used)
                store_release(meeting.summed, number)
            elif role == FIRST:
                while load_acquire(meeting.summed) < number:
                    pass
                used = load_acquire(meeting.used)
            half = used // _TWO
            mine = (half if role == SECOND else ZERO, half if role == FIRST else used)
            step_items(items, scratch.items, events, sums, work, mine, micro_batch, BLOCKS, METHOD, rates)
            if role == SECOND:
                store_release(meeting.stepped, number)
            else:
                if role == FIRST:
                    while load_acquire(meeting.stepped) < number:
                        pass
                reset(scratch.items, used)

    return livefactor_softmax_kernel


def processors() -> int:
    """Number of processors on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Softmax(Stateless):
    """Learns from records."""

    records = False

    def __init__(self, spec: ModelSpec, users: Table, items: Table) -> None:
        """Compiles the kernels, or loads them from Numba's cache."""
        self._spec, self._rates = spec, StepRates.of(spec)
        self.proposer = Proposer(spec, items.capacity)
        self._items = items
        self._rows = StepRows.of(users), StepRows.of(items)
        self._scratch, self._memory = Scratch.of(spec, items)
        self._kernel = softmax_kernel(spec.k_padded // LANES, Method.of(spec))
        self._words = np.zeros((len(Meeting._fields), _WORDS_OF_LINE), np.uint64)
        self._meeting = Meeting.of(self._words)
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="softmax") if processors() > 1 else None
        empty = np.empty(0, np.uint32)
        nothing = Update(0, empty, empty, None, None, 0, 0)
        self.prepare([nothing])
        self.learn(nothing)

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`. The proposals follow from the item rows."""
        if self.proposer.counts:
            self.proposer.reload(self._items.history["seen_count"][: self._items.allocated])

    def joins(self, updates: Sequence[Update]) -> bool:
        """True for one record, because micro-batches do not cross records."""
        return len(updates) == 1

    def prepare(self, updates: Sequence[Update]) -> np.ndarray:
        """Proposes the negatives of a record: item rows uint32[any]."""
        self._shared = self.proposer.propose(updates[0])
        return self._shared.rows.reshape(-1)

    def learn(self, update: Update) -> None:
        """Learns from one record with its proposed negatives. The kernel releases the GIL."""
        if self._beside is None or update.user_rows.size < SHARED_EVENTS:
            self._run(ALONE, update)
            return
        self._words.fill(0)
        second = self._beside.submit(self._run, SECOND, update)
        self._run(FIRST, update)
        second.result()

    def _run(self, role: np.uint64, update: Update) -> None:
        given = update.values, update.weights
        columns = (_NO_FLOATS if column is None else writable(column) for column in given)
        events = update.user_rows, update.item_rows, *columns
        is_in_batch = self._spec.softmax.proposal == Proposal.IN_BATCH
        sizes = np.uint64(self._spec.micro_batch), np.uint64(self._spec.group_events)
        self._kernel(
            role,
            *self._rows,
            *events,
            *self._shared,
            is_in_batch,
            self._rates,
            self._scratch,
            self._meeting,
            *sizes,
        )
