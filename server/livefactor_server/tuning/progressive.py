"""Test-then-learn: each batch is judged by the model before it, then learned as one record.

This matches a producer that asks for scores before it pushes. An item that is new in the batch is
in no list. A user who is new in the batch gets the list that `Score` gives to unknown users, which
the item biases order. Source: Gama, Sebastião, Rodrigues, "On evaluating stream learning
algorithms", Machine Learning 90, 2013.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from livefactor_kernels.backend import Update, create_backend
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.model import ModelSpec

TOP = 10
BATCH_EVENTS = 512
HALF_LIFE_EVENTS = 20_000
"""Half-life of the most-popular baseline, in events."""


@dataclass(frozen=True, slots=True)
class Stream:
    """n events in time order.

    Attributes:
        user_keys, item_keys: uint64[n].
        values: float32[n]; ones if the events have no values.
        weights: float32[n]; None means that all are 1.
        times: int64[n], microseconds; None means unknown.
        context: the features of each event; None if the events have none.
    """

    user_keys: np.ndarray
    item_keys: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None = None
    times: np.ndarray | None = None
    context: Bags | None = None

    def __len__(self) -> int:
        return self.user_keys.size

    def head(self, events: int) -> Stream:
        """The first `events` events of the stream."""
        weights, times = (None if c is None else c[:events] for c in (self.weights, self.times))
        context = None if self.context is None else self.context.take(slice(events))
        columns = self.user_keys[:events], self.item_keys[:events], self.values[:events]
        return Stream(*columns, weights, times, context)


def batches(events: int, size: int, cut: int | None = None) -> list[slice]:
    """Consecutive slices of `size` events, with an end at `cut` and at the last event."""
    ends = [*range(size, events, size), events, *([cut] if cut else [])]
    return [slice(start, stop) for start, stop in pairwise([0, *sorted({*ends} - {0})]) if stop <= events]


Judge = Callable[..., np.ndarray]
"""Judges n events with the model before their batch.

The arguments are the model, user rows uint32[n], item rows uint32[n] and values float32[n], and the
context of the events (`Bags`) if the model and the events have context. The
result has a number for each event, float64[n]. The model does not know rows at or past its
`published`.
"""


class Step(NamedTuple):
    """A batch that was judged and learned.

    Attributes:
        stop: number of events learned so far.
        judged: the numbers of its judged events, float64.
        learn_s: CPU seconds for learning it.
    """

    stop: int
    judged: np.ndarray
    learn_s: float


def judge_then_learn(
    spec: ModelSpec,
    stream: Stream,
    judge: Judge,
    sample: np.ndarray,
    batch_events: int = BATCH_EVENTS,
    learned: int | None = None,
) -> Iterator[Step]:
    """Judges the events in `sample` (bool[n]) and learns the events, batch by batch.

    `learned` is the number of events that are learned. The events behind them are only judged; None
    learns all.
    """
    model = create_backend("cpu", spec)
    context = stream.context if spec.context.size else None
    for revision, part in enumerate(batches(len(stream), batch_events, learned), 1):
        begin_s = time.thread_time()
        user_rows = model.users.allocate(stream.user_keys[part])
        item_rows = model.items.allocate(stream.item_keys[part])
        seconds = time.thread_time() - begin_s
        places, values = np.flatnonzero(sample[part]), stream.values[part]
        judged = np.empty(0)
        if places.size:
            told = () if context is None else (context.take(part).take(places),)
            judged = judge(model, user_rows[places], item_rows[places], values[places], *told)
        weights, times = (None if c is None else c[part] for c in (stream.weights, stream.times))
        counts = model.users.allocated, model.items.allocated
        if learned is not None and part.start >= learned:
            yield Step(part.stop, judged, 0.0)
            continue
        begin_s = time.thread_time()
        model.apply(Update(revision, user_rows, item_rows, values, weights, *counts, times))
        if context is not None:
            counting = values > 0
            model.learn_context(item_rows[counting], context.take(part).take(counting))
        yield Step(part.stop, judged, seconds + time.thread_time() - begin_s)


def popular_ranks(
    stream: Stream,
    half_life_events: float = HALF_LIFE_EVENTS,
    batch_events: int = BATCH_EVENTS,
    learned: int | None = None,
) -> np.ndarray:
    """The place of each event's item in the most-popular list before its batch, int64[n].

    Events with the value 0 do not count. The weight of an event halves every `half_life_events`
    events; infinity weights all events equally. `learned` is that of `judge_then_learn`.
    """
    keys, item_rows = np.unique(stream.item_keys, return_inverse=True)
    counts, places = np.zeros(keys.size), np.full(len(stream), TOP)
    for part in batches(len(stream), batch_events, learned):
        hits = item_rows[part][:, None] == most_popular(counts)
        places[part] = np.where(hits.any(axis=1), hits.argmax(axis=1) if hits.size else TOP, TOP)
        if learned is None or part.start < learned:
            counts = decay(counts, item_rows[part], half_life_events, stream.values[part] > 0)
    return places


def most_popular(counts: np.ndarray) -> np.ndarray:
    """The most popular items, at most `TOP`, without unseen ones.

    Rows ascend by key, so ties break as in `Score`.
    """
    able = np.arange(counts.size)
    if counts.size > TOP:
        # A full sort of a large catalogue for every batch would take longer than to learn it.
        able = np.flatnonzero(counts >= np.partition(counts, -TOP)[-TOP])
    best = able[np.argsort(-counts[able], kind="stable")[:TOP]]
    seen: np.ndarray = best[counts[best] > 0]
    return seen


def decay(
    counts: np.ndarray, rows: np.ndarray, half_life_events: float, mask: np.ndarray | None = None
) -> np.ndarray:
    """The decayed counts after the events of a batch.

    `mask` (bool[n]) selects the events that count.
    """
    ages = np.arange(rows.size - 1, -1, -1)
    weights = 0.5 ** (ages / half_life_events)
    new = np.bincount(rows, weights if mask is None else weights * mask, counts.size)
    after: np.ndarray = counts * 0.5 ** (rows.size / half_life_events) + new
    return after


def item_means(stream: Stream, batch_events: int = BATCH_EVENTS, learned: int | None = None) -> np.ndarray:
    """The mean value of each event's item in earlier batches, float64[n].

    New items have the mean of all events. At the start it is 0. `learned` is that of
    `judge_then_learn`.
    """
    keys, item_rows = np.unique(stream.item_keys, return_inverse=True)
    sums, counts, means = np.zeros(keys.size), np.zeros(keys.size), np.empty(len(stream))
    for part in batches(len(stream), batch_events, learned):
        rows = item_rows[part]
        overall = sums.sum() / max(1.0, counts.sum())
        means[part] = np.where(counts[rows] > 0, sums[rows] / np.maximum(1.0, counts[rows]), overall)
        if learned is not None and part.start >= learned:
            continue
        sums += np.bincount(rows, stream.values[part], keys.size)
        counts += np.bincount(rows, minlength=keys.size)
    return means
