"""What `livefactor adapt` does before it pushes: from a log and texts to an adapter and vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from livefactor.wire.ids import as_keys
from livefactor.wire.keys import keys_of
from livefactor_kernels.spec.model import Loss, ModelSpec
from livefactor_server.files.encoding import Encoder
from livefactor_server.snapshots.replay import log_folder
from livefactor_server.tuning.adapting.adapter import Adapter, AdapterError, last_adapter, load, write_adapter
from livefactor_server.tuning.adapting.logged import Logged, log_events
from livefactor_server.tuning.adapting.pairs import NO_ITEM, Pairs, pairs_of
from livefactor_server.tuning.adapting.training import Training, train

HISTORY_ITEMS = 8
"""Items of a history."""

JUDGED_MAX, LIST = 2000, 10
"""Pairs that are judged, and the length of the list in which the next item is looked for."""

Report = Callable[[str, int, int], None]
"""Gets what is done, and how much of it is done and to be done."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is adapted to what.

    Attributes:
        model: the folder of a model.
        out: the folder of its adapters.
        ids, texts: the items, n each.
        secret: with which ids that are text are hashed.
        encoder: the folder of the encoder, or None for the default.
        training: how it is trained.
    """

    model: Path
    out: Path
    ids: Any
    texts: list[str]
    secret: bytes
    encoder: Path | None
    training: Training


class Outcome(NamedTuple):
    """What a run made.

    Attributes:
        adapter: the new adapter.
        vectors: of all items, float32[n, d].
        before, after: the share of the judged pairs whose next item is among the first 10 by the
            vectors alone, with those before and after the training.
        pairs: the number of new pairs.
    """

    adapter: Adapter
    vectors: np.ndarray
    before: float
    after: float
    pairs: int


def adapt(job: Job, report: Report) -> Outcome:
    """Trains an adapter on the events of a log since the last adapter, and writes it.

    A twentieth of the new pairs, the last ones, is judged and not learned.

    Raises:
        AdapterError: the last adapter fits another encoder or another model, the model takes no
            such vectors, or the log has too few events.
        EncoderError: the encoder cannot be loaded.
        LogError, OSError, ValueError: the log cannot be read.
    """
    previous, logged = last_adapter(job.out), log_events(log_folder(job.model))
    _check_model(logged.spec)
    after = _last_revision(previous, logged)
    encoder, training = Encoder(job.encoder), job.training
    if previous is not None:
        load(encoder, previous)
        training = training.continued()
    else:
        encoder.adapt(None, job.training.rank, job.training.seed)
    pairs = _pairs(job, logged)
    is_new = logged.revisions[pairs.places] > after
    new, earlier = pairs.take(is_new), pairs.take(~is_new)
    judged = min(len(new) // 20, JUDGED_MAX)
    if len(new) - judged < job.training.batch:
        raise AdapterError(
            f"the log has {len(new)} pairs of a history and a next item with texts after revision {after}, "
            f"expected at least {job.training.batch + job.training.batch // 19}"
        )
    before = _encoded(encoder, job, "encode", report)
    _check_dimension(logged.spec, before.shape[1])
    learned, held = new.take(np.arange(len(new) - judged)), new.take(np.arange(len(new) - judged, len(new)))
    steps = job.training.steps
    train(
        encoder,
        job.texts,
        before.copy(),
        learned,
        earlier,
        training,
        lambda at, _: report("train", at, steps),
    )
    vectors = _encoded(encoder, job, "encode again", report)
    facts = {"lineage": logged.lineage, "revision": logged.revision, "steps": steps, "pairs": len(new)}
    adapter = write_adapter(job.out, encoder, previous, job.ids, vectors, **facts)
    return Outcome(adapter, vectors, hits(before, held), hits(vectors, held), len(new))


def hits(vectors: np.ndarray, pairs: Pairs) -> float:
    """The share of pairs whose next item is among the `LIST` best by the vectors float32[n, d].

    The score of an item is its product with the mean of the history. Items of the history are left
    out. It is 0 without pairs.
    """
    found = []
    for history, item in zip(pairs.histories, pairs.items.tolist(), strict=True):
        had = history[history != NO_ITEM]
        scores = vectors @ vectors[had].mean(axis=0)
        scores[had] = -np.inf
        found.append(np.count_nonzero(scores > scores[item]) < LIST)
    return float(np.mean(found)) if found else 0.0


def _check_model(spec: ModelSpec) -> None:
    if spec.loss != Loss.IMPLICIT:
        raise AdapterError(
            "the model takes no vectors, which need rule solve with implicit loss (preset auto)"
        )


def _check_dimension(spec: ModelSpec, dimension: int) -> None:
    expected = spec.embeddings.dimension
    if expected and expected != dimension:
        raise AdapterError(
            f"the model takes vectors of dimension {expected}, and the encoder makes {dimension}"
        )


def _last_revision(previous: Adapter | None, logged: Logged) -> int:
    """The last revision that the last adapter knows, -1 without one."""
    if previous is None:
        return -1
    facts = previous.facts
    if facts.lineage != logged.lineage:
        raise AdapterError(
            f"{previous.folder}: the adapter was trained on the log of model {facts.lineage}, and this one is "
            f"{logged.lineage}"
        )
    return facts.revision


def _pairs(job: Job, logged: Logged) -> Pairs:
    keys = as_keys("item ids", job.ids, lambda texts: keys_of(texts, job.secret))
    order = np.argsort(keys, kind="stable")
    at = np.searchsorted(keys[order], logged.items).clip(max=len(keys) - 1)
    items = np.where(keys[order][at] == logged.items, order[at], NO_ITEM)
    return pairs_of(logged.users, items, HISTORY_ITEMS)


def _encoded(encoder: Encoder, job: Job, what: str, report: Report) -> np.ndarray:
    return encoder.encode(job.texts, job.training.batch, lambda at: report(what, at, len(job.texts)))
