"""The kernels that a server compiles before it serves, as named steps.

A step loads its kernels from disk if they were compiled before. `compiling.py` runs steps in
several processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from livefactor.errors import SnapshotInvalid
from livefactor_kernels.backend import create_backend
from livefactor_kernels.numbers.cache import NotCompiled, only_loading
from livefactor_kernels.reading.cpu import CpuArithmetic
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.spec.model import Mix, ModelSpec, SpecError
from livefactor_kernels.tables import ITEMS, USERS, keymap, pairs
from livefactor_kernels.tables.cpu import Table
from livefactor_server.changes import short_updates
from livefactor_server.engine import short_reads
from livefactor_server.hosting import trial
from livefactor_server.judging import judge
from livefactor_server.model import spec_codec
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.store import SnapshotNotFound

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `name` describes the kernels that `run` compiles."""

    name: str
    run: Callable[[], object]

    def is_on_disk(self) -> bool:
        """Loads the kernels, and returns False if one of them was not compiled yet."""
        try:
            with only_loading():
                self.run()
        except NotCompiled:
            return False
        return True


StepReport = Callable[[str, int, int], None]
"""Function of (name, number from 1, number of steps), called when a step begins to compile."""


LOG = Step("the log", replay.compile_kernels)
"""The kernels that read a log. A server without models has no log to read at its first start."""


def shared() -> list[Step]:
    """The kernels that every model needs to serve."""
    return [
        Step("scores and top-k", scoring.compile_kernels),
        Step("short updates", short_updates.compile_kernels),
        Step("tables of keys", keymap.compile_kernels),
        Step("the judge", judge.compile_kernels),
        Step("rows of small records", pairs.compile_kernels),
    ]


def prepare(spec: ModelSpec, backend: str) -> None:
    """Compiles or loads all kernels that calls to a model with a spec need.

    On a GPU the model itself does it, and a second one might not fit.
    """
    short_reads.compile_kernels(spec)
    if backend == "cuda":
        return
    try:
        trial.run(spec, backend)
    except NotCompiled:
        raise
    except Exception:
        logger.exception("a trial of a spec failed; calls may have to wait for the compiler")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be compiled: the kernels of all models, of specs, and with `log` of the log.

    Attributes:
        backend: the backend of the models.
        specs: the specs with a name each.
    """

    backend: str
    specs: tuple[tuple[str, ModelSpec], ...]
    log: bool = True

    def to_json(self) -> dict[str, Any]:
        """The plan as a dictionary for JSON."""
        specs = [[name, spec_codec.encode(spec).hex()] for name, spec in self.specs]
        return {"backend": self.backend, "specs": specs, "log": self.log}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        specs = tuple((name, spec_codec.decode(bytes.fromhex(body))) for name, body in fields["specs"])
        return cls(fields["backend"], specs, fields["log"])

    def steps(self) -> list[Step]:
        """Steps that may run at the same time: no two of them compile much in common.

        Neighbours have the most in common.
        """
        models = [step for name, spec in self.specs for step in _of_spec(name, spec, self.backend)]
        return [*models, *self._common()]

    def rest(self) -> list[Step]:
        """Steps for what `steps` leaves over. They load what those have compiled."""
        return [Step(f"calls of {name}", partial(prepare, spec, self.backend)) for name, spec in self.specs]

    def is_on_disk(self) -> bool:
        """Loads all kernels, and returns False if one of them was not compiled yet."""
        if self.backend == "cuda" and self.specs:
            # The driver keeps them.
            return False
        return all(step.is_on_disk() for step in (*self.rest(), *self._common()))

    def _common(self) -> list[Step]:
        return [*([LOG] if self.log else []), *shared()]


def plan_of_start(backend: str, models: Mapping[str, Path], made: ModelSpec | None) -> Plan:
    """What a start compiles: for the models in these folders, or for a model to be made.

    The newest snapshot has a model's spec. Kernels of a model without one are compiled when it is
    opened. On a GPU all models compile their own. The kernels that read a log wait if there is no
    log.
    """
    specs: list[tuple[str, ModelSpec]] = [] if made is None else [("the model", made)]
    for name, folder in models.items():
        with suppress(OSError, SnapshotInvalid, SnapshotNotFound, SpecError):
            specs.append((f"model {name}", spec_codec.decode(replay.snapshot_store(folder).open()[0].spec)))
    return Plan(backend, () if backend == "cuda" else tuple(specs), log=bool(models))


def _of_spec(name: str, spec: ModelSpec, backend: str) -> list[Step]:
    if backend == "cuda":
        return [Step(f"kernels of {name}", partial(create_backend, backend, spec))]
    if backend != "cpu":
        return []
    plain = trial.small(replace(spec, mix=Mix()))
    steps = [
        # The backend reference compiles no kernels of updates.
        Step(f"reads of {name}", partial(trial.run, spec, "reference")),
        Step(f"updates of {name}", lambda: create_backend(backend, plain)),
        Step(f"short reads of {name}", partial(short_reads.compile_kernels, spec)),
    ]
    if spec.mix.learning_rate:
        # They take longer than everything else.
        steps.insert(0, Step(f"predictions of {name}", partial(_compile_predictions, spec)))
    return steps


def _compile_predictions(spec: ModelSpec) -> None:
    small = trial.small(spec)
    CpuArithmetic(small, Table(small, USERS), Table(small, ITEMS))
