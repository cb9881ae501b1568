"""Logs on which contests are held: events of users with tastes, and specs of known quality."""

from __future__ import annotations

import io
import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine_rig import Rig
from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import Limits, ModelSpec, Optimizer, OptimizerKind
from livefactor_kernels.spec.presets import preset
from livefactor_server.challenging.messages import Entry, Go, Report, Task
from livefactor_server.challenging.worker import Worker
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.engine.submission import Ack
from livefactor_server.judging.judge import JudgeSettings
from livefactor_server.judging.observer import ObserverSettings
from livefactor_server.model import spec_codec

LIMITS = Limits(users_max=5000, items_max=5000, value_abs_max=1.0, error_max=4.0)


def rig(folder: Path, spec: ModelSpec, judge: float = 0.0) -> Rig:
    """Return an engine whose judge judges a share of the records."""
    observer = ObserverSettings(JudgeSettings(record_share=judge))
    return Rig(folder, spec, EngineSettings(observer=observer))


def learner(rate: float, **changes: object) -> ModelSpec:
    """Return a small spec of rule SGD. A rate near 0 learns nothing, and 0.3 learns the stream."""
    optimizer = Optimizer(OptimizerKind.SGD, rate, rate)
    fields = {"optimizer": optimizer, **changes}
    made = preset("clicks_sgd", k=8, limits=LIMITS, **fields)
    # As a log has it, with numbers rounded to float32.
    return spec_codec.decode(spec_codec.encode(made))


BAD, GOOD, OTHER = learner(1e-6), learner(0.3), learner(2e-6)


def events(count: int, seed: int = 0, first_item: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return users and items of `count` events. 300 users like 8 of 60 items each."""
    rng = np.random.default_rng(seed)
    likes = np.random.default_rng(1).integers(0, 60, (300, 8))
    users = rng.integers(0, 300, count)
    popular = rng.random(count) < 0.5
    items = np.where(popular, rng.geometric(0.15, count) % 60, likes[users, rng.integers(0, 8, count)])
    return users.astype(np.uint64), (items + first_item).astype(np.uint64)


def push(rig: Rig, users: np.ndarray, items: np.ndarray, sizes: int | None = 500) -> None:
    """Push events in records of `sizes` events, or of 1 to 900 events."""
    rng, start, replies = np.random.default_rng(7), 0, []
    while start < users.size:
        end = start + (sizes or int(rng.integers(1, 900)))
        replies.append(rig.push_async(wire.encode_interactions(users[start:end], items[start:end])))
        start = end
    for reply in replies:
        assert isinstance(reply.get(timeout=60).result, Ack)


class InlineProcess:
    """A contest's process that works in the caller's thread when it is told to go."""

    def __init__(self, made: Task) -> None:
        self.pid, self.has_ended = 1, False
        self._task, self._orders, self._out = made, queue.SimpleQueue[Go](), io.StringIO()
        self._worker: Worker | None = None

    def go(self, order: Go) -> None:
        # A wait for an allowance would have no end here.
        self._orders.put(Go(order.until, None))
        if self._worker is None:
            self._worker = Worker(self._task, self._orders, self._out)
        else:
            self._worker._listen()
        if self._worker._follow():
            self._worker._keep(0)
            self.has_ended = True
        self._worker._report(is_waiting=not self.has_ended, at_once=True)

    def reports(self) -> Iterator[Report]:
        lines = self._out.getvalue().splitlines()
        self._out.seek(0)
        self._out.truncate()
        return map(Report.from_line, lines)

    def end(self) -> None:
        self.has_ended = True


def entry(name: str, spec: ModelSpec) -> Entry:
    return Entry(name, spec_codec.encode(spec).hex())


def task(folder: Path, *entries: Entry, judge_from: int = 1_000, memory: int = 1 << 30) -> Task:
    return Task("m", str(folder), entries, judge_from, 1.0, memory)


def hold(made: Task, *until: int) -> list[Report]:
    """Hold a contest in this process, which may read up to each of the revisions in turn."""
    orders, out = queue.SimpleQueue[Go](), io.StringIO()
    worker = None
    for revision in until:
        orders.put(Go(revision, None))
        if worker is None:
            worker = Worker(made, orders, out)
        else:
            worker._listen()
        if worker._follow():
            break
    assert worker is not None
    if worker._contest.over:
        worker._keep(0)
    worker._report(is_waiting=True, at_once=True)
    return [Report.from_line(line) for line in out.getvalue().splitlines()]
