"""Ours: what the CPU backend has learned after one pass over the events, each seen once, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.quality.data import Events
from livefactor_kernels.backend import Backend, Update, create_backend
from livefactor_kernels.spec import Loss, ModelSpec, preset
from livefactor_kernels.tables import ITEMS, USERS

RECORD_EVENTS = 512
"""As in benchmarks.progressive_recall; negatives are drawn from the items known by the end of a record."""


def spec_of(
    name: str,
    rate: float,
    l2: float,
    k: int,
    negatives: int | None = None,
    seed: int = 0,
    micro_batch: int = 1,
) -> ModelSpec:
    """The preset with its settings changed. rate: a multiple of the preset's learning rates, both of them."""
    base = preset(name)
    optimizer = replace(
        base.optimizer,
        learning_rate=base.optimizer.learning_rate * rate,
        bias_learning_rate=base.optimizer.bias_learning_rate * rate,
    )
    drawn = base.negatives if negatives is None else negatives
    changes = {"l2": l2, "k": k, "negatives": drawn, "seed": seed, "micro_batch": micro_batch}
    return preset(name, optimizer=optimizer, **changes)


class Learner:
    """A model and where its keys are; `learn` takes records one after the other."""

    def __init__(self, spec: ModelSpec, events: Events) -> None:
        self.model: Backend = create_backend("cpu", spec)
        self._events = events
        self._with_values = spec.loss == Loss.SQUARED

    def learn(self) -> Iterator[int]:
        """Learn a record, give the number of events learned so far, and so on."""
        events = self._events
        for revision, start in enumerate(range(0, len(events), RECORD_EVENTS), 1):
            part = slice(start, min(start + RECORD_EVENTS, len(events)))
            user_rows = self.model.users.allocate(events.users[part].astype(np.uint64))
            item_rows = self.model.items.allocate(events.items[part].astype(np.uint64))
            values = np.ascontiguousarray(events.values[part]) if self._with_values else None
            counts = self.model.users.allocated, self.model.items.allocated
            self.model.apply(Update(revision, user_rows, item_rows, values, None, *counts))
            yield part.stop

    def scores(self, users: np.ndarray) -> np.ndarray:
        """float32[n, items]; a user or an item that was never seen is a row of zeros."""
        factors, bias = self._rows(USERS, users)
        item_factors, item_bias = self._rows(ITEMS, np.arange(self._events.item_count))
        return self.model.mean + bias[:, None] + item_bias + factors @ item_factors.T

    def predictions(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """float32[n]: the scores of users int[n] with items int[n]."""
        (factors, bias), (item_factors, item_bias) = self._rows(USERS, users), self._rows(ITEMS, items)
        return self.model.mean + bias + item_bias + np.einsum("ij,ij->i", factors, item_factors)

    def _rows(self, side: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = (self.model.users, self.model.items)[side]
        return self.model.gather(side, table.find(keys.astype(np.uint64), self.model.published[side]))


def one_pass(spec: ModelSpec, events: Events) -> Learner:
    """A model that has learned all of the events."""
    learner = Learner(spec, events)
    for _ in learner.learn():
        pass
    return learner
