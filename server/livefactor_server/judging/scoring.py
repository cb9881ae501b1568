"""Scores, losses and ranks of the judged events, for the model and for the popularity baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from livefactor_kernels.backend import Backend
from livefactor_kernels.numbers.compiled import compiled
from livefactor_kernels.numbers.lanes import LANES
from livefactor_kernels.reading.context import Statistics
from livefactor_kernels.reading.context.learning import factors_of
from livefactor_kernels.reading.persons import PersonReader
from livefactor_kernels.scoring.cpu_kernels import scan_kernel
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.model import Loss
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.changes import Change, InteractionsChange, Record
from livefactor_server.changes.content.bags import context_bags, joined_bags
from livefactor_server.judging import choice, metrics
from livefactor_server.judging.popularity import DECAYED, PLAIN, Popularity

RANKED_AT = 10
"""Length of the top-k list for recall and NDCG."""
MISSED = float(1 << 40)
"""The rank of an item that is not in the top-k list."""

Reading = Callable[[], AbstractContextManager[None]]


class Sample(NamedTuple):
    """The m judged events of a run, in log order.

    Attributes:
        revisions: revision of each event's record, uint64[m].
        events: position of the event in its record, int64[m].
        user_rows, item_rows: rows of the event, uint32[m].
        values, weights: value and weight of the event, float64[m].
        types: event type, uint32[m].
        item_counts: number of items after the rows of the record were placed, uint64[m].
        lots: random numbers that decide which events are ranked (`choice`), float64[m, 2].
        companions: number of judged events in the same record, int64[m].
        context: the bags of the events; None if no event has any, or the model has no context.
    """

    revisions: np.ndarray
    events: np.ndarray
    user_rows: np.ndarray
    item_rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    types: np.ndarray
    item_counts: np.ndarray
    lots: np.ndarray
    companions: np.ndarray
    context: Bags | None = None

    def where(self, mask: np.ndarray) -> Sample:
        """The events with a true value in `mask`, bool[m]."""
        *columns, context = self
        kept = {name: column[mask] for name, column in zip(self._fields, columns, strict=False)}
        return Sample(**kept, context=None if context is None else context.take(mask))


def sample_of(records: Sequence[Record], chosen: choice.Chosen, has_context: bool = False) -> Sample:
    """The chosen events of the records, which hold interactions, if their ids have rows.

    With `has_context` they have their context.
    """
    changes = [record.change for record in records]
    placements = [record.placement for record in records]
    sizes = np.array([change.rows for change in changes], np.int64)
    at = (np.cumsum(sizes) - sizes)[chosen.records] + chosen.events
    counts = np.bincount(chosen.records, minlength=len(records))

    def column(name: str, default: float, dtype: type) -> np.ndarray:
        parts = [
            getattr(change.columns, name) for change in changes if isinstance(change, InteractionsChange)
        ]
        if all(part is None for part in parts):
            return np.full(at.size, default, dtype)
        filled = [
            np.full(size, default, dtype) if part is None else part
            for part, size in zip(parts, sizes, strict=True)
        ]
        return np.asarray(_joined(filled)[at], dtype)

    context = None
    if has_context:
        context = _context_of(changes, np.split(chosen.events, np.cumsum(counts)[:-1]))
    sample = Sample(
        revisions=np.array([record.header.revision for record in records], np.uint64)[chosen.records],
        events=chosen.events,
        user_rows=_joined([part.user_rows for part in placements if part])[at],
        item_rows=_joined([part.item_rows for part in placements if part])[at],
        values=column("values", 1.0, np.float64),
        weights=column("weights", 1.0, np.float64),
        types=column("event_types", 0, np.uint32),
        item_counts=np.array([part.item_count for part in placements if part], np.uint64)[chosen.records],
        lots=chosen.lots,
        companions=counts[chosen.records],
        context=context,
    )
    has_rows = (sample.user_rows != NO_ROW) & (sample.item_rows != NO_ROW)
    # The model does not learn the others.
    return sample if has_rows.all() else sample.where(has_rows)


def _context_of(changes: Sequence[Change], events: Sequence[np.ndarray]) -> Bags | None:
    """The bags of the events of each record, whose places are int64[any] and ascending."""
    found = [change.columns.context if isinstance(change, InteractionsChange) else None for change in changes]
    if all(columns is None for columns in found):
        return None
    parts = []
    for columns, places in zip(found, events, strict=True):
        if columns is None:
            parts.append(Bags.empty(places.size))
            continue
        chosen = np.zeros(len(columns), bool)
        chosen[places] = True
        parts.append(context_bags(columns.select(chosen)))
    return joined_bags(parts)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Read(NamedTuple):
    """The scores of a sample, and the factors behind them.

    Scores that rank are with the context of the event. The others are what the rule learns from.

    Attributes:
        own: scores of the events, float32[m].
        negatives: scores of the negatives that the model will learn from, float32[m, d].
        ranked: scores of the s events to rank, with context, float32[s].
        candidates: scores of the sampled items for them, with context, float32[s, c].
        factors: rows of users and of items, each float32[m, kp]; unknown rows are zeros.
        known: whether the model knows the user of the event, bool[m].
    """

    own: np.ndarray
    negatives: np.ndarray
    ranked: np.ndarray
    candidates: np.ndarray
    factors: tuple[np.ndarray, np.ndarray]
    known: np.ndarray


def read(
    backend: Backend, reading: Reading, sample: Sample, ranked: np.ndarray, negatives: np.ndarray, candidates: np.ndarray
) -> Read:  # fmt: skip
    """Reads scores at the present revision of the backend.

    As in a Score call, unpublished rows count as unknown (zeros), and context has weight 1.

    Args:
        backend: the model's backend.
        reading: a context manager that locks the backend for short reads.
        sample: the m judged events.
        ranked: which of them are ranked against sampled items, bool[m]; s of them are.
        negatives: item rows of the negatives, uint32[m, d].
        candidates: item rows of the sampled items, uint32[s, c].
    """
    m, width = len(sample.events), 1 + negatives.shape[1]
    lists, to_rank = np.column_stack((sample.item_rows, negatives)), sample.where(ranked)
    among_lists = np.column_stack((to_rank.item_rows, candidates))
    item_rows = np.concatenate((lists.ravel(), among_lists.ravel()))
    with reading():
        mean, published = backend.mean, backend.published
        persons = PersonReader(backend.spec).read(
            backend, _known(sample.user_rows, published[USERS]), published[ITEMS]
        )
        users, user_bias = persons.factors, persons.bias
        items, item_bias = backend.gather(ITEMS, _known(item_rows, published[ITEMS]))
        statistics = statistics_of(backend, to_rank.context)
    own = m * width
    everybody = np.arange(m)
    scores = _scores(mean, users, user_bias, everybody, items[:own], item_bias[:own], width)
    asked, factors = everybody[ranked], users
    if statistics is not None and to_rank.context is not None:
        factors = users.copy()
        users[asked, : backend.spec.k] += factors_of(statistics, to_rank.context)
    among = _scores(mean, users, user_bias, asked, items[own:], item_bias[own:], among_lists.shape[1])
    if persons.followers:
        for place in range(m):
            scores[place] += persons.gains(place, lists[place])
        for place, user in enumerate(asked.tolist()):
            among[place] += persons.gains(user, among_lists[place])
    known, tables = sample.user_rows < published[USERS], (factors, items[:own:width])
    return Read(scores[:, 0], scores[:, 1:], among[:, 0], among[:, 1:], tables, known)


def statistics_of(backend: Backend, context: Bags | None) -> Statistics | None:
    """What the model knows of the features of bags. None if they have none. The caller holds the
    gate.
    """
    return None if context is None or not context.keys.size else backend.context(context.keys)


def losses(loss: Loss, sample: Sample, read: Read) -> np.ndarray:
    """The loss of each event, float64[m].

    For softmax, the loss of the pairs is as informative as its own, and it needs no estimate of the
    softmax sum.
    """
    if loss == Loss.SQUARED:
        return metrics.squared_loss(read.own, sample.values, sample.weights)
    if loss == Loss.IMPLICIT:
        targets = (sample.values > 0).astype(np.float64)
        return metrics.squared_loss(read.own, targets, sample.weights)
    if loss in (Loss.BPR, Loss.SOFTMAX):
        return metrics.bpr_loss(read.own, read.negatives, sample.weights)
    drawn = sample.item_counts >= 2
    return metrics.logistic_loss(read.own, sample.values, read.negatives, drawn, sample.weights)


def errors(loss: Loss, sample: Sample, read: Read) -> np.ndarray:
    """The derivative of the loss of each event by its own score, float64[m], without its sign."""
    scores = read.own.astype(np.float64)
    if loss in (Loss.SQUARED, Loss.IMPLICIT):
        targets = sample.values if loss == Loss.SQUARED else sample.values > 0
        found = scores - targets
    elif loss in (Loss.BPR, Loss.SOFTMAX):
        found = _sigmoid(read.negatives - scores[:, None]).sum(axis=1)
    else:
        found = _sigmoid(scores) - (sample.values > 0)
    return np.asarray(np.abs(found) * sample.weights)


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scores.astype(np.float64))))


def _known(rows: np.ndarray, published: int) -> np.ndarray:
    return np.where(rows < published, rows, NO_ROW).astype(np.uint32)


@compiled(nogil=False, error_model="python")
def _score_kernel(users: Any, bases: Any, asked: Any, items: Any, bias: Any, vectors: Any, out: Any) -> None:
    width = out.shape[1]
    for i in range(out.shape[0]):
        own = slice(i * width, (i + 1) * width)
        scan_kernel(users[asked[i]], bases[asked[i]], items[own], bias[own], vectors, out[i])


def _scores(
    mean: np.float32, users: np.ndarray, user_bias: np.ndarray, asked: np.ndarray, items: np.ndarray,
    bias: np.ndarray, width: int,
) -> np.ndarray:  # fmt: skip
    """Scores of the users `asked` with their own `width` items each, float32[n, width].

    They equal the scores of `livefactor_kernels.scoring.cpu`. Rows must start at multiples of 64
    bytes, as `gather` returns them.
    """
    out = np.empty((asked.size, width), np.float32)
    if out.size:
        vectors = np.uint64(users.shape[1] // LANES)
        _score_kernel(users, np.float32(mean) + user_bias, asked, items, bias, vectors, out)
    return out


def compile_kernels() -> None:
    """Compiles the scoring kernel."""
    rows, bias = _aligned_zeros(1), np.zeros(1, np.float32)
    _scores(np.float32(0.0), rows, bias, np.zeros(1, np.int64), rows, bias, 1)


def _aligned_zeros(rows: int) -> np.ndarray:
    memory = np.zeros(rows * LANES + LANES, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + rows * LANES].reshape(rows, LANES)


def ranks_among_drawn(
    scores: Read, rows: np.ndarray, candidates: np.ndarray, popularity: Popularity
) -> np.ndarray:
    """Ranks among the sampled items, float64[s, 3]: model, popularity, decayed popularity."""
    columns = [metrics.ranks(scores.ranked, scores.candidates)]
    for which in (PLAIN, DECAYED):
        columns.append(metrics.ranks(popularity.scores(which, rows), popularity.scores(which, candidates)))
    return np.column_stack(columns).astype(np.float64)


class Best(NamedTuple):
    """Top-k lists for the users of f judged events.

    Attributes:
        items: number of published items.
        rows: item rows of all lists, uint32, at most `RANKED_AT` per event.
        offsets: where the lists start and end in `rows`, int64[f + 1].
        known: whether the model knows the user of the event, bool[f].
    """

    items: int
    rows: np.ndarray
    offsets: np.ndarray
    known: np.ndarray


def best_items(backend: Backend, reading: Reading, sample: Sample) -> Best:
    """The top-k list of each event's user among all published items, with the event's context.

    The scan does not hold the lock.
    """
    with reading():
        pin, statistics = backend.pin(), statistics_of(backend, sample.context)
    with pin:
        users, items = pin.counts
        persons = PersonReader(backend.spec).read(pin, _known(sample.user_rows, users), items)
        if statistics is not None and sample.context is not None:
            persons.factors[:, : backend.spec.k] += factors_of(statistics, sample.context)
        none, no_offsets = np.empty(0, np.uint32), np.zeros(len(sample.events) + 1, np.int64)
        rows, _, offsets = persons.top_k(pin, backend.items.keys, RANKED_AT, none, none, no_offsets)
    return Best(items, rows, offsets, sample.user_rows < users)


def ranks_among_all(best: Best, sample: Sample, popularity: Popularity) -> np.ndarray:
    """Ranks among all published items, float64[f, 3]: model, popularity, decayed popularity.

    The model's rank is `MISSED` if the item is not in the top `RANKED_AT`. An item that is not
    published is `MISSED` in all columns.
    """
    ranked = np.full((len(sample.events), 3), MISSED)
    for place, row in enumerate(sample.item_rows):
        found = np.flatnonzero(best.rows[best.offsets[place] : best.offsets[place + 1]] == row)
        if found.size:
            ranked[place, 0] = found[0]
    known = sample.item_rows < best.items
    for column, which in ((1, PLAIN), (2, DECAYED)):
        ranked[known, column] = popularity.ranks(which, sample.item_rows[known], best.items)
    return ranked
