"""Streams, and a judge that watches a state without an engine, for the tests of the judge."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np

from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import Limits, ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server import changes as step
from livefactor_server.changes import NO_REJECTS, Change, Header, InteractionsChange, Record
from livefactor_server.judging.judge import Judge, JudgeSettings
from livefactor_server.model.state import ModelState

SMALL = Limits(users_max=2000, items_max=2000, value_abs_max=10.0, error_max=4.0)
EVERYTHING = JudgeSettings(1.0, 64, 1.0, 1.0, 1000, 100, 500)
"""Judges all that it may of every record."""


def small(name: str, **changes: object) -> ModelSpec:
    limits = SMALL if name == "ratings" else Limits(2000, 2000, value_abs_max=1.0, error_max=4.0)
    return preset(f"{name}_sgd", k=8, limits=limits, **changes)


def body(seed: int, rows: int, name: str, users: int = 60, items: int = 40) -> bytes:
    """Return one batch with events of two types."""
    rng = np.random.default_rng(seed)
    values = {"ratings": rng.integers(1, 6, rows), "clicks": rng.integers(0, 2, rows)}.get(name)
    return wire.encode_interactions(
        rng.integers(0, users, rows, np.uint64), rng.integers(1000, 1000 + items, rows, np.uint64),
        values=None if values is None else values.astype(np.float32), event_types=rng.integers(0, 2, rows).astype(np.uint32),
    )  # fmt: skip


def change(data: bytes) -> Change:
    return InteractionsChange.from_log(data)


class Learner:
    """A state without a log, and a judge that watches it."""

    def __init__(
        self, spec: ModelSpec, settings: JudgeSettings | None = EVERYTHING, backend: str = "cpu"
    ) -> None:
        self.state = ModelState.empty(spec, b"", uuid.UUID(int=0), backend, b"")
        self.judge = Judge(self.state, settings) if settings else None

    def learn(self, *bodies: bytes) -> list[object]:
        """Apply the records as one run and return what the judge noticed."""
        changes = [change(data) for data in bodies]
        return self.run(changes)

    def run(self, changes: Sequence[Change], time_us: int = 0) -> list[object]:
        placed = step.place(self.state, changes)
        first = self.state.revision + 1
        records = [
            Record(Header(first + place, b"", 0, 0, b"", b"", NO_REJECTS, b"", b"", time_us), one, rows)
            for place, (one, rows) in enumerate(zip(changes, placed, strict=True))
        ]
        if self.judge is not None:
            self.judge.before(records)
        step.apply(self.state, records)
        return [] if self.judge is None else list(self.judge.after())
