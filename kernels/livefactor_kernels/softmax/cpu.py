"""Rule SOFTMAX on the CPU (semantics: `softmax/__init__.py`).

A group is processed in chunks of 32 events. The users' rows and the errors of a chunk stay in the
first caches, together with the shared negatives, which are copied to scratch. Two threads may share
a record. The first one computes the errors of a chunk and steps the users (`cpu_events.py`). The
second one sums the gradients of the negatives (`cpu_items.py`), while the first one processes the
next chunk. Each steps half of the items of a micro-batch. They synchronise through words of memory
on which they wait. A single thread does the same in the same order. So the number of threads
changes no bit.

If other work takes the processor from one of the two threads, the other one waits in vain: then two
threads take many times as long as one. So `Sharing` chooses one thread while processors are busy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import address_of
from livefactor_kernels.numbers.narrow import factors_of
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.optimizers import Method, StepRates
from livefactor_kernels.optimizers.cpu import Model, StepRows
from livefactor_kernels.simd.atomics import load_acquire, store_release
from livefactor_kernels.simd.gradients import CHUNK_EVENTS, Chains, reset
from livefactor_kernels.simd.helper import Helper
from livefactor_kernels.simd.memory import reserve
from livefactor_kernels.simd.sparing import is_sparing
from livefactor_kernels.simd.steps import ONE, WORD_BYTES, ZERO, row_bytes, word
from livefactor_kernels.softmax.cpu_events import (
    Chunk,
    Events,
    Groups,
    Negatives,
    copy_events,
    gather_negatives,
    learn_users,
    width_of,
)
from livefactor_kernels.softmax.cpu_items import Sums, link_items, pull_negatives, step_items
from livefactor_kernels.softmax.proposal import Proposer, Shared
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
SHARED_BATCH = 128
"""Minimum number of events of a micro-batch for two threads, since they meet in each of them."""
UNDISTURBED = 0.8
"""A thread that works on a record for less than this share of its time was interrupted."""
ALONE_RECORDS, ALONE_RECORDS_MAX = 16, 4096
"""Records that one thread learns after two threads were interrupted. They double each time."""
_WORDS_OF_LINE = 8


class Meeting(NamedTuple):
    """Words (addresses of uint64) with the progress of two threads in a record.

    Attributes:
        copied_batches: number of micro-batches whose events are in scratch.
        learned_events: number of counting events whose users have stepped.
        summed_batches: number of micro-batches with complete sums.
        batch_items: number of items in the last of these micro-batches.
        stepped_batches: number of micro-batches in which the second thread has stepped its half of
            the items.
        failures: above 0 if a thread has failed. Then the other one stops at its next wait.
    """

    copied_batches: np.uint64
    learned_events: np.uint64
    summed_batches: np.uint64
    batch_items: np.uint64
    stepped_batches: np.uint64
    failures: np.uint64

    @staticmethod
    def of(words: np.ndarray) -> Meeting:
        """Words in uint64[words, any], each in its own cache line."""
        return Meeting._make(address_of(word) for word in words)


class Sizes(NamedTuple):
    """The sizes of micro-batches and groups.

    Attributes:
        micro_batch, group_events: numbers of events.
        is_in_batch: whether the negatives are the items of the group's events.
    """

    micro_batch: np.uint64
    group_events: np.uint64
    is_in_batch: bool


class Record(NamedTuple):
    """A record with its negatives.

    Attributes:
        user_rows, item_rows: uint32[n].
        values, weights: float32[n], or empty if all are 1.
        shared: the negatives.
    """

    user_rows: np.ndarray
    item_rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    shared: Shared


class Scratch(NamedTuple):
    """Working memory of the kernel of one model. It is not part of the state."""

    items: Chains
    events: Events
    negatives: Negatives
    sums: Sums
    work: np.uint64
    meeting: Meeting

    @staticmethod
    def of(spec: ModelSpec, items: Table, meeting: Meeting) -> tuple[Scratch, list[np.ndarray]]:
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
        return Scratch(chains, events, negatives, sums, floats(4, wide), meeting), arrays


@inlined
def _groups_of(shared: Any, start: Any, stop: Any, sizes: Any) -> Any:
    """The groups of the micro-batch with the events [start, stop) of a record."""
    size, width = sizes.group_events, np.uint64(shared.rows.shape[1])
    count = (stop - start + size - ONE) // size
    last_width = stop - start - (count - ONE) * size if sizes.is_in_batch else width
    at = start // size * width * WORD_BYTES
    return Groups(address_of(shared.rows) + at, address_of(shared.rarity) + at, width, count, last_width)


@inlined
def _wait(progress: Any, number: Any, meeting: Any) -> Any:
    """Waits until the word `progress` is at least `number`.

    Returns False if the other thread has failed.
    """
    while load_acquire(progress) < number:
        if load_acquire(meeting.failures) != ZERO:
            return False
    return True


@inlined
def _learn_events(model: Any, scratch: Any, groups: Any, done: Any, role: Any) -> Any:
    """Computes the errors of a micro-batch's events, steps the users, and sums the negatives.

    `done` is the number of events in the micro-batches before. Returns False if the other thread
    has failed.
    """
    meeting, events, begin = scratch.meeting, scratch.events, ZERO
    count = word(events.ends, groups.count - ONE)
    for group in range(groups.count):
        end, m = word(events.ends, group), width_of(groups, group)
        if role != SECOND and end > begin:
            gather_negatives(model, scratch.negatives, groups, group)
        for first in range(begin, end, CHUNK_EVENTS):
            last = min(first + CHUNK_EVENTS, end)
            chunk = Chunk(group, first, last, m, first == begin)
            if role != SECOND:
                learn_users(model, events, scratch.negatives, chunk, count)
                store_release(meeting.learned_events, done + last)
            if role != FIRST:
                if not _wait(meeting.learned_events, done + last, meeting):
                    return False
                pull_negatives(events, scratch.sums, chunk, model.blocks)
        begin = end
    return True


@inlined
def _step_half(model: Any, scratch: Any, used: Any, number: Any, micro_batch: Any, role: Any) -> Any:
    """Steps the items of micro-batch `number`: all of them, or each thread steps one half.

    `used` is the number of items. The first thread learns it from the second one. Returns False if
    the other thread has failed.
    """
    meeting = scratch.meeting
    if role == SECOND:
        store_release(meeting.batch_items, used)
        store_release(meeting.summed_batches, number)
    elif role == FIRST:
        if not _wait(meeting.summed_batches, number, meeting):
            return False
        used = load_acquire(meeting.batch_items)
    half = used // _TWO
    numbers = (half if role == SECOND else ZERO, half if role == FIRST else used)
    work = scratch.work + (_TWO * row_bytes(model.blocks + ONE) if role == SECOND else ZERO)
    step_items(model, scratch, work, numbers, micro_batch)
    if role == SECOND:
        store_release(meeting.stepped_batches, number)
        return True
    if role == FIRST and not _wait(meeting.stepped_batches, number, meeting):
        return False
    reset(scratch.items, used)
    return True


@cache
def softmax_kernel(blocks: int, method: Method) -> Any:
    """A kernel for rows of `blocks` vectors.

    Its argument `role` is `ALONE`, or `FIRST` or `SECOND` for two threads with the same record. The
    others are the fields of `Record`, `Shared` and `Sizes`: a call with tuples takes longer. It
    returns early if the other thread has failed.
    """
    BLOCKS, METHOD = np.uint64(blocks), method

    @compiled
    def livefactor_softmax_kernel(
        role: Any, users: Any, items: Any, user_rows: Any, item_rows: Any, values: Any, weights: Any, rows: Any,
        rarity: Any, own: Any, rates: Any, scratch: Any, micro_batch: Any, group_events: Any, is_in_batch: Any,
    ) -> None:  # fmt: skip
        model, meeting = Model(users, items, BLOCKS, METHOD, rates), scratch.meeting
        record = Record(user_rows, item_rows, values, weights, Shared(rows, rarity, own))
        sizes = Sizes(micro_batch, group_events, is_in_batch)
        n, done = np.uint64(user_rows.size), ZERO
        for start in range(ZERO, n, micro_batch):
            stop, number = min(start + micro_batch, n), start // micro_batch + ONE
            groups, used = _groups_of(record.shared, start, stop, sizes), ZERO
            if role != SECOND:
                copy_events(record, scratch.events, start, stop, sizes.group_events)
                store_release(meeting.copied_batches, number)
            elif not _wait(meeting.copied_batches, number, meeting):
                return
            count = word(scratch.events.ends, groups.count - ONE)
            if role != FIRST:
                used = link_items(scratch, groups, micro_batch)
            if not _learn_events(model, scratch, groups, done, role):
                return
            done += count
            if not _step_half(model, scratch, used, number, micro_batch, role):
                return

    return livefactor_softmax_kernel


def processors() -> int:
    """Number of processors on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Sharing:
    """Whether two threads share the next record. It changes no bit."""

    def __init__(self) -> None:
        self._alone, self._next = 0, ALONE_RECORDS

    def is_wise(self) -> bool:
        """Whether two threads should share a record now."""
        self._alone -= 1
        return self._alone < 0

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Observes a thread that shares a record with another one."""
        worked, began = time.thread_time(), time.perf_counter()
        yield
        if time.thread_time() - worked >= UNDISTURBED * (time.perf_counter() - began):
            self._next = ALONE_RECORDS
            return
        self._alone, self._next = self._next, min(2 * self._next, ALONE_RECORDS_MAX)


class Softmax(Stateless):
    """Learns from records."""

    records = False

    def __init__(self, spec: ModelSpec, users: Table, items: Table) -> None:
        """Compiles the kernels, or loads them from Numba's cache."""
        self._spec, self._rates = spec, StepRates.of(spec)
        self.proposer = Proposer(spec, items.capacity)
        self._items = items
        self._rows = StepRows.of(users), StepRows.of(items)
        self._words = np.zeros((len(Meeting._fields), _WORDS_OF_LINE), np.uint64)
        self._scratch, self._memory = Scratch.of(spec, items, Meeting.of(self._words))
        self._kernel = softmax_kernel(spec.k_padded // LANES, Method.of(spec))
        is_in_batch = spec.softmax.proposal == Proposal.IN_BATCH
        self._sizes = Sizes(np.uint64(spec.micro_batch), np.uint64(spec.group_events), is_in_batch)
        can_share = processors() > 1 and spec.micro_batch >= SHARED_BATCH and not is_sparing()
        self._helper, self._sharing = Helper("softmax") if can_share else None, Sharing()
        empty = np.empty(0, np.uint32)
        nothing = Update(0, empty, empty, None, None, 0, 0)
        self.prepare([nothing])
        self.learn(nothing)

    def load(self, sections: Mapping[str, np.ndarray]) -> None:
        """See `tables.state.Part.load`. The proposals follow from the item rows."""
        if self.proposer.counts:
            self.proposer.reload(self._items.history["seen_count"][: self._items.allocated])

    def groups(self, updates: Sequence[Update]) -> Sequence[Sequence[Update]]:
        """One record each, because micro-batches do not cross records."""
        return [[update] for update in updates]

    def prepare(self, updates: Sequence[Update]) -> np.ndarray:
        """Proposes the negatives of a record: item rows uint32[any]."""
        self._shared = self.proposer.propose(updates[0])
        return self._shared.rows.reshape(-1)

    def learn(self, update: Update) -> None:
        """Learns from one record with its proposed negatives. The kernel releases the GIL.

        If one of two threads fails, the other one stops, and the error of the failed thread is
        raised. The rows of the model are undefined afterwards.
        """
        values, weights = (
            _NO_FLOATS if column is None else writable(column) for column in (update.values, update.weights)
        )
        record = Record(update.user_rows, update.item_rows, values, weights, self._shared)
        is_large = update.user_rows.size >= SHARED_EVENTS
        if self._helper is None or not is_large or not self._sharing.is_wise():
            self._run(ALONE, record)
            return
        self._words.fill(0)
        with self._helper.running(self._run, SECOND, record), self._sharing.observed():
            self._run(FIRST, record)

    def _run(self, role: np.uint64, record: Record) -> None:
        try:
            columns = *record[:-1], *record.shared
            self._kernel(role, *self._rows, *columns, self._rates, self._scratch, *self._sizes)
        except BaseException:
            self._words[Meeting._fields.index("failures")] = 1
            raise
