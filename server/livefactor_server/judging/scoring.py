"""The chosen events of a run as the model stands: their scores, losses and ranks, beside most-popular's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from livefactor_kernels.backend import Backend
from livefactor_kernels.numbers.lanes import LANES
from livefactor_kernels.reading import PersonReader
from livefactor_kernels.scoring.cpu_kernels import scan_kernel
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_server.changes import InteractionsChange
from livefactor_server.judging import choice, metrics
from livefactor_server.judging.popularity import DECAYED, PLAIN, Popularity
from livefactor_server.model.state import Logged

RANKED_AT = 10
"""Recall and NDCG look at so many best items."""
MISSED = float(1 << 40)
"""Stands for the rank of an item that is not among the best."""

Reading = Callable[[], AbstractContextManager[None]]


class Sample(NamedTuple):
    """The judged events of a run, m of them in log order; `lots` decide which are ranked (`choice`)."""

    revisions: np.ndarray  # uint64[m]
    events: np.ndarray  # int64[m]: index in the record
    user_rows: np.ndarray  # uint32[m]
    item_rows: np.ndarray  # uint32[m]
    values: np.ndarray  # float64[m]
    weights: np.ndarray  # float64[m]
    types: np.ndarray  # uint32[m]
    item_counts: np.ndarray  # uint64[m]: items once the event's record has its rows
    lots: np.ndarray  # float64[m, 2]
    companions: np.ndarray  # int64[m]: judged events of the event's record

    def where(self, mask: np.ndarray) -> Sample:
        """The events of a mask bool[m]."""
        return Sample(*(column[mask] for column in self))


def sample_of(records: Sequence[Logged], chosen: choice.Chosen) -> Sample:
    """The chosen events of interactions records."""
    changes = [record.change for record in records]
    placed = [record.placed for record in records]
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

    return Sample(
        np.array([record.header.revision for record in records], np.uint64)[chosen.records],
        chosen.events,
        _joined([part.user_rows for part in placed if part])[at],
        _joined([part.item_rows for part in placed if part])[at],
        column("values", 1.0, np.float64),
        column("weights", 1.0, np.float64),
        column("event_types", 0, np.uint32),
        np.array([part.item_count for part in placed if part], np.uint64)[chosen.records],
        chosen.lots,
        counts[chosen.records],
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Read(NamedTuple):
    """Rows of the model as they stood: scores, and the factors that gave them."""

    own: np.ndarray  # float32[m]: of the events themselves
    negatives: np.ndarray  # float32[m, d]: of the items drawn to learn from
    candidates: np.ndarray  # float32[s, c]: of the items drawn to rank among, of the events with `ranked`
    factors: tuple[np.ndarray, np.ndarray]  # float32[m, kp]: users, items; zeros where a row was not known


def read(
    backend: Backend, reading: Reading, sample: Sample, ranked: np.ndarray, negatives: np.ndarray, candidates: np.ndarray
) -> Read:  # fmt: skip
    """Scores at the backend's present revision; rows that it has not published count as unknown (zeros), as a Score answers.

    ranked bool[m]; negatives uint32[m, d]; candidates uint32[s, c], of the s events with `ranked`.
    """
    m, width = len(sample.events), 1 + negatives.shape[1]
    lists = np.column_stack((sample.item_rows, negatives))
    item_rows = np.concatenate((lists.ravel(), candidates.ravel()))
    with reading():
        mean, published = backend.mean, backend.published
        persons = PersonReader(backend.spec).read(
            backend, _known(sample.user_rows, published[USERS]), published[ITEMS]
        )
        users, user_bias = persons.factors, persons.bias
        items, item_bias = backend.gather(ITEMS, _known(item_rows, published[ITEMS]))
    own = m * width
    everybody = np.arange(m)
    scores = _scores(mean, users, user_bias, everybody, items[:own], item_bias[:own], width)
    asked = everybody[ranked]
    among = _scores(mean, users, user_bias, asked, items[own:], item_bias[own:], candidates.shape[1])
    if persons.followers:
        for place in range(m):
            scores[place] += persons.gained(place, lists[place])
        for place, user in enumerate(asked.tolist()):
            among[place] += persons.gained(user, candidates[place])
    return Read(scores[:, 0], scores[:, 1:], among, (users, items[:own:width]))


def _known(rows: np.ndarray, published: int) -> np.ndarray:
    return np.where(rows < published, rows, NO_ROW).astype(np.uint32)


@njit(cache=True)
def _score_kernel(users: Any, bases: Any, asked: Any, items: Any, bias: Any, vectors: Any, out: Any) -> None:
    width = out.shape[1]
    for i in range(out.shape[0]):
        own = slice(i * width, (i + 1) * width)
        scan_kernel(users[asked[i]], bases[asked[i]], items[own], bias[own], vectors, out[i])


def _scores(
    mean: np.float32, users: np.ndarray, user_bias: np.ndarray, asked: np.ndarray, items: np.ndarray,
    bias: np.ndarray, width: int,
) -> np.ndarray:  # fmt: skip
    """Scores float32[n, width] of `asked` users' own `width` items, as `scoring.cpu` has them. Rows begin at multiples of 64
    bytes, as `gather` gives them."""
    out = np.empty((asked.size, width), np.float32)
    if out.size:
        vectors = np.uint64(users.shape[1] // LANES)
        _score_kernel(users, np.float32(mean) + user_bias, asked, items, bias, vectors, out)
    return out


def compile_kernels() -> None:
    """Compile what scores lists."""
    rows, bias = _aligned_zeros(1), np.zeros(1, np.float32)
    _scores(np.float32(0.0), rows, bias, np.zeros(1, np.int64), rows, bias, 1)


def _aligned_zeros(rows: int) -> np.ndarray:
    memory = np.zeros(rows * LANES + LANES, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + rows * LANES].reshape(rows, LANES)


def ranks_among_drawn(
    scores: Read, ranked: np.ndarray, rows: np.ndarray, candidates: np.ndarray, popularity: Popularity
) -> np.ndarray:
    """Ranks float64[s, 3] among the candidates: the model's, most-popular's, decayed most-popular's."""
    columns = [metrics.ranks(scores.own[ranked], scores.candidates)]
    for which in (PLAIN, DECAYED):
        columns.append(metrics.ranks(popularity.scores(which, rows), popularity.scores(which, candidates)))
    return np.column_stack(columns).astype(np.float64)


class Best(NamedTuple):
    """The best items of some judged events' users among all, as a top-k finds them."""

    items: int
    rows: np.ndarray  # uint32, `RANKED_AT` or fewer for each event
    offsets: np.ndarray  # int64[f + 1]


def best_items(backend: Backend, reading: Reading, sample: Sample) -> Best:
    """The top-k of each event's user among all published items. The scan goes without the gate."""
    with reading():
        pin = backend.pin()
    with pin:
        users, items = pin.counts
        persons = PersonReader(backend.spec).read(pin, _known(sample.user_rows, users), items)
        none, no_offsets = np.empty(0, np.uint32), np.zeros(len(sample.events) + 1, np.int64)
        rows, _, offsets = persons.top_k(pin, backend.items.keys, RANKED_AT, none, none, no_offsets)
    return Best(items, rows, offsets)


def ranks_among_all(best: Best, sample: Sample, popularity: Popularity) -> np.ndarray:
    """Ranks float64[f, 3] among all published items: the model's (`MISSED` past the best `RANKED_AT`), and most-popular's, plain and
    decayed. An item that is not published yet is missed by all."""
    ranked = np.full((len(sample.events), 3), MISSED)
    for place, row in enumerate(sample.item_rows):
        found = np.flatnonzero(best.rows[best.offsets[place] : best.offsets[place + 1]] == row)
        if found.size:
            ranked[place, 0] = found[0]
    known = sample.item_rows < best.items
    for column, which in ((1, PLAIN), (2, DECAYED)):
        ranked[known, column] = popularity.ranks(which, sample.item_rows[known], best.items)
    return ranked
