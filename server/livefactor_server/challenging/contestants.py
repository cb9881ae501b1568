"""A contestant's model: it is judged on events, and then learns them by the code of a replay."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from livefactor_kernels.spec.model import Loss
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_server.challenging.steps import Judged, Step
from livefactor_server.judging.metrics import ndcg_at
from livefactor_server.judging.places import places, predictions, shift_of
from livefactor_server.log.columns import Columns
from livefactor_server.log.store import Record
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState, restored
from livefactor_server.snapshots.replay import apply_groups, challenger_store, snapshot_store

RANKED_AT = 100
"""The length of the list in which a judged item has a place.

A gain is 1 / log2(place + 2), and 0 outside of the list. With 10 instead of 100 the standard error
of a difference is two to three times as large, as a share of the mean gain.
"""

logger = logging.getLogger(__name__)


class Learner:
    """The model of one contestant.

    Attributes:
        name: the contestant's name.
        state: its state, until it is released.
        is_released: whether the memory of the state is free.
        learned: events that it has learned here, and not in a snapshot.
        learn_s, judge_s: CPU seconds of learning them, and of judging.
    """

    def __init__(self, name: str, state: ModelState) -> None:
        self.name, self.state, self.is_released = name, state, False
        self.learned, self.learn_s, self.judge_s = 0, 0.0, 0.0

    def judge(self, judged: Judged) -> np.ndarray:
        """The gain of each event, float64[n], by the model as it is. More is better.

        For squared loss it is the negative squared error. Otherwise it is the NDCG@`RANKED_AT` of
        the item among all items, or among those that are new to the user if the item is new to the
        user. The context of the event counts if the model has context.
        """
        begin_s, backend = time.thread_time(), self.state.backend
        users = backend.users.find(judged.users, backend.published[USERS])
        items = backend.items.find(judged.items, backend.published[ITEMS])
        if self.state.spec.loss == Loss.SQUARED:
            gains: np.ndarray = -np.square(predictions(backend, users, items) - judged.values)
        else:
            shift = shift_of(backend, judged.context)
            gains = ndcg_at(RANKED_AT, places(backend, users, items, RANKED_AT, shift, new_apart=True))
        self.judge_s += time.thread_time() - begin_s
        return gains

    def learn(self, step: Step) -> None:
        """Learns what it does not know yet of a step."""
        parts = [new for part in step.parts if len(new := _after(part, self.state.revision))]
        if parts:
            begin_s, before = time.thread_time(), self.state.events
            apply_groups(self.state, parts)
            self.learn_s += time.thread_time() - begin_s
            self.learned += self.state.events - before

    @property
    def event_s(self) -> float:
        """CPU seconds for learning an event, 0 if none was learned."""
        return self.learn_s / self.learned if self.learned else 0.0

    @property
    def judged_event_s(self) -> float:
        """CPU seconds for each learned event, with judging, 0 if none was learned."""
        return (self.learn_s + self.judge_s) / self.learned if self.learned else 0.0

    def release(self) -> None:
        """Frees the memory of the state. The learner can no longer judge or learn."""
        if not self.is_released:
            del self.state
            self.is_released = True

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory of the state."""
        return sum(self.state.memory_bytes.values())


def _after(records: Sequence[Record], revision: int) -> Sequence[Record]:
    """The records after `revision`."""
    first = records.revision if isinstance(records, Columns) else records[0].revision
    return records[max(0, revision + 1 - first) :]


def open_learner(name: str, spec_body: bytes, folder: Path, first: Record, judge_from: int) -> Learner:
    """The learner of a spec at an early revision of a log.

    It begins with the newest snapshot in the model's folder that has this spec and at most
    `judge_from` events, or else at the beginning of the log, whose first record is `first`.

    Raises:
        SpecError: the spec is invalid.
    """
    spec, lineage = spec_codec.decode(spec_body), first.previous[:16]
    stores = (snapshot_store(folder), challenger_store(folder))
    found = [(info, store) for store in stores for info in store.list() if info.spec == spec_body]
    for info, store in sorted(found, key=lambda each: each[0].revision, reverse=True):
        try:
            loaded = store.load(info.snapshot_id)
        except Exception as error:
            # The log has all data of the snapshot.
            logger.warning("snapshot %s is ignored: %s", info.snapshot_id, error)
            continue
        if info.lineage.bytes == lineage and int(loaded.tensors["events"][0]) <= judge_from:
            args = info.lineage, "cpu", info.revision, info.log_hash, loaded.tensors
            return Learner(name, restored(spec, spec_body, *args))
    return Learner(name, ModelState.empty(spec, spec_body, uuid.UUID(bytes=lineage), "cpu", first.hash))
