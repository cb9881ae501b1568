"""livefactor on the CPU backend, after one pass over the events in their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.quality.data import Events
from livefactor_kernels.backend import Backend, Update, create_backend
from livefactor_kernels.reading.persons import PersonReader, Persons
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import History, Loss, ModelSpec, Proposal, Softmax
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, USERS

RECORD_EVENTS = 512
"""Events per record, as in benchmarks.progressive.recall.

Negatives are sampled from the items known at the end of a record.
"""
FAST_RECORD_EVENTS = 8192
"""Events per record for throughput.

With so many, sharing a record between two threads saves more than it costs.
"""


def spec_of(
    name: str,
    rate: float,
    l2: float,
    k: int,
    negatives: int | None = None,
    seed: int = 0,
    micro_batch: int = 1,
) -> ModelSpec:
    """The preset with changed settings. `rate` multiplies both learning rates of the preset."""
    base = preset(name)
    optimizer = replace(
        base.optimizer,
        learning_rate=base.optimizer.learning_rate * rate,
        bias_learning_rate=base.optimizer.bias_learning_rate * rate,
    )
    drawn = base.negatives if negatives is None else negatives
    changes = {"l2": l2, "k": k, "negatives": drawn, "seed": seed, "micro_batch": micro_batch}
    return preset(name, optimizer=optimizer, **changes)


def settled(key: str, **settings: Any) -> ModelSpec:
    """The spec of one of our methods, given its key, with changed settings."""
    if key in ("ratings", "news"):
        return preset(key, **settings)
    if key == "softmax":
        return softmax_spec(**settings)
    if key == "softmax_fast":
        return softmax_spec(**settings, k=32, micro_batch=1024, history=History())
    if key == "purchases":
        return purchases_spec(**settings)
    return spec_of(key, **settings) if key.endswith("_sgd") else clicks_spec(**settings)


def softmax_spec(
    rate: float,
    l2: float,
    group_events: int,
    proposal: str = "uniform",
    micro_batch: int = 512,
    **changes: Any,
) -> ModelSpec:
    """The preset `news` for items that stay.

    `rate` multiplies the learning rates 0.1 (factors) and 0.05 (biases).
    """
    optimizer = replace(preset("news").optimizer, learning_rate=0.1 * rate, bias_learning_rate=0.05 * rate)
    negatives = Softmax(Proposal[proposal.upper()], min(group_events, micro_batch))
    return preset("news", optimizer=optimizer, l2=l2, micro_batch=micro_batch, softmax=negatives, **changes)


def purchases_spec(repeat: float, bias_rate: float, seed: int = 0) -> ModelSpec:
    """The preset `purchases` with changed settings. `repeat` is a field of the counts."""
    base = preset("purchases")
    optimizer = replace(base.optimizer, bias_learning_rate=bias_rate)
    return preset("purchases", counts=replace(base.counts, repeat=repeat), optimizer=optimizer, seed=seed)


def clicks_spec(
    k: int | None = None,
    unobserved: float | None = None,
    l2: float | None = None,
    half_life: float | None = None,
    items: int | None = None,
    item_events: int | None = None,
    weight: float | None = None,
    repeat: float | None = None,
    seed: int = 0,
    micro_batch: int | None = None,
) -> ModelSpec:
    """The preset `clicks` with changed settings.

    `half_life` and `items` are fields of the history; `weight` and `repeat` are fields of the
    counts.
    """
    base = preset("clicks")

    def other(part: Any, **changes: float | None) -> Any:
        return replace(part, **{name: value for name, value in changes.items() if value is not None})

    parts = {
        "solve": other(base.solve, unobserved=unobserved, item_events=item_events),
        "history": other(base.history, half_life=half_life, items=items),
        "counts": other(base.counts, weight=weight, repeat=repeat),
    }
    return check(other(replace(base, **parts, seed=seed), k=k, l2=l2, micro_batch=micro_batch))  # type: ignore[no-any-return]


class Learner:
    """A model that learns the events record by record."""

    def __init__(self, spec: ModelSpec, events: Events, record_events: int = RECORD_EVENTS) -> None:
        self.model: Backend = create_backend("cpu", spec)
        self._events, self._record_events = events, record_events
        self._with_values = spec.loss == Loss.SQUARED

    def learn(self) -> Iterator[int]:
        """Learns one record at a time, and yields the number of events learned so far."""
        for revision, part in enumerate(self._parts(), 1):
            self.learn_part(revision, part)
            yield part.stop

    def learn_before(self) -> Iterator[int]:
        """Yields the number of events learned so far before each record, and then learns it."""
        for revision, part in enumerate(self._parts(), 1):
            yield part.start
            self.learn_part(revision, part)

    def _parts(self) -> Iterator[slice]:
        for start in range(0, len(self._events), self._record_events):
            yield slice(start, min(start + self._record_events, len(self._events)))

    def learn_part(self, revision: int, part: slice) -> None:
        """Learns a part of the events as one record."""
        events = self._events
        user_rows = self.model.users.allocate(events.users[part].astype(np.uint64))
        item_rows = self.model.items.allocate(events.items[part].astype(np.uint64))
        values = np.ascontiguousarray(events.values[part]) if self._with_values else None
        counts = self.model.users.allocated, self.model.items.allocated
        times = None if events.times is None else np.ascontiguousarray(events.times[part])
        self.model.apply(Update(revision, user_rows, item_rows, values, None, *counts, times))

    def scores(self, users: np.ndarray) -> np.ndarray:
        """Scores float32[n, items]. An unknown user or item has a zero row."""
        persons, items = self._persons(users), np.arange(self._events.item_count, dtype=np.uint64)
        rows = self.model.items.find(items, self.model.published[ITEMS])
        factors, bias = self.model.gather(ITEMS, rows)
        scores = self.model.mean + persons.bias[:, None] + bias + persons.factors @ factors.T
        for user, own in enumerate(scores):
            own += persons.gains(user, rows)
        return scores

    def predictions(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """The scores of users int[n] with items int[n], float32[n]."""
        asked, place = np.unique(users, return_inverse=True)
        persons = self._persons(asked)
        rows = self.model.items.find(items.astype(np.uint64), self.model.published[ITEMS])
        factors, bias = self.model.gather(ITEMS, rows)
        dots = np.einsum("ij,ij->i", persons.factors[place], factors)
        return self.model.mean + persons.bias[place] + bias + dots

    def _persons(self, users: np.ndarray) -> Persons:
        rows = self.model.users.find(users.astype(np.uint64), self.model.published[USERS])
        return PersonReader(self.model.spec).read(self.model, rows, self.model.published[ITEMS])


def one_pass(spec: ModelSpec, events: Events, record_events: int = RECORD_EVENTS) -> Learner:
    """A model that has learned all events."""
    learner = Learner(spec, events, record_events)
    for _ in learner.learn():
        pass
    return learner
