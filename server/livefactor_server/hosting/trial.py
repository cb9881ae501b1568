"""A trial of a spec: a small model that learns a few events and answers every kind of read.

So the kernels of updates and reads are compiled, or loaded from disk, before a model with the spec
serves.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from livefactor.wire.scoring import decode_score, encode_score
from livefactor_kernels.scoring.cpu import MANY_USERS
from livefactor_kernels.spec.model import Loss, ModelSpec
from livefactor_kernels.update import Update
from livefactor_server.engine.explaining import Explainer
from livefactor_server.engine.readers import Reader
from livefactor_server.model import spec_codec
from livefactor_server.model.gate import Gate
from livefactor_server.model.state import ModelState

IDS = MANY_USERS + 3
"""Number of users and of items. So many users are read in blocks."""

SPECS_KEPT = 64


@dataclass(slots=True)
class _Source:
    """As an engine, for a reader."""

    state: ModelState
    gate: Gate = field(default_factory=Gate)
    torn: bool = False


def small(spec: ModelSpec) -> ModelSpec:
    """The spec with tables for a trial. It needs the same kernels."""
    return replace(spec, limits=replace(spec.limits, users_max=2 * IDS, items_max=2 * IDS))


@lru_cache(SPECS_KEPT)
def run(spec: ModelSpec, backend: str = "cpu") -> None:
    """Tries a spec on a backend. A second trial of a spec in this process does nothing.

    With backend "reference" only the kernels of reads are compiled, but for scans.
    """
    tried = small(spec)
    state = ModelState.empty(tried, spec_codec.encode(tried), uuid.UUID(int=0), backend, bytes(32))
    _learn(state)
    reader = Reader(_Source(state))
    for query in _queries(spec):
        reader.score(decode_score(query))
    with state.backend.pin() as pin:
        Explainer(state, pin).explain(1, 2, 1)


def _learn(state: ModelState) -> None:
    """Learns two records, while a pin needs copies of what the second one changes."""
    backend, ids = state.backend, np.arange(IDS, dtype=np.uint64)
    users, items = backend.users.allocate(ids), backend.items.allocate(ids)
    pairs = np.concatenate([users, users]), np.concatenate([items, np.roll(items, 1)])
    values = np.ones(2 * IDS, np.float32) if state.spec.loss == Loss.SQUARED else None
    backend.apply(Update(1, *pairs, values, None, IDS, IDS))
    with backend.pin() as pin:
        backend.apply(Update(2, *pairs, values, None, IDS, IDS))
        pin.gather(0, users)
    state.revision = 2


def _queries(spec: ModelSpec) -> Iterator[bytes]:
    """One message for each kind of read. A message has the arrays that calls have."""
    one, few, many = (np.arange(count, dtype=np.uint64) for count in (1, 2, IDS))
    bounds = np.array([0, 1, 2], np.uint32)
    yield encode_score("", one, candidates=many)
    yield encode_score("", few, candidates=few, offsets=bounds)
    yield encode_score("", one, similar=True, k=2)
    yield encode_score("", one, k=2)
    yield encode_score("", many, k=2, exclude_ids=few)
    yield encode_score("", few, k=2, exclude_ids=few, offsets=bounds)
    if spec.history.users:
        for users in (one, many):
            yield encode_score("", users, k=2, exclude_seen=True)
        yield encode_score("", one, k=2, events=few)
        yield encode_score("", few, k=2, events=few, event_offsets=bounds)
        yield encode_score("", one, candidates=few, events=few)
    if spec.embeddings.dimension:
        query = np.ones(spec.embeddings.dimension, np.float32)
        yield encode_score("", one, k=2, query=query)
        yield encode_score("", one, candidates=few, query=query)
