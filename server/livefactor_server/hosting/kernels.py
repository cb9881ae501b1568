"""The kernels that are compiled before a model can serve, as named steps.

A step loads its kernels from Numba's cache if they were compiled before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from livefactor_kernels.backend import create_backend
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import keymap, pairs
from livefactor_server.changes import short_updates
from livefactor_server.engine import short_reads
from livefactor_server.judging import judge
from livefactor_server.snapshots import replay


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `name` describes the kernels that `run` compiles."""

    name: str
    run: Callable[[], object]


StepReport = Callable[[str, int, int], None]
"""Function of (name, number from 1, number of steps), called at the start of each step.

At the end it is called with ("", steps, steps).
"""


LOG = Step("the log", replay.compile_kernels)
"""The kernels that read a log. A server without models has no log to read at its first start."""


def shared() -> list[Step]:
    """The kernels that every model needs to serve."""
    return [
        Step("tables of keys", keymap.compile_kernels),
        Step("rows of small records", pairs.compile_kernels),
        Step("scores and top-k", scoring.compile_kernels),
        Step("short updates", short_updates.compile_kernels),
        Step("the judge", judge.compile_kernels),
    ]


def of_presets(names: Sequence[str], backend: str) -> list[Step]:
    """All kernels that models with these presets need on a backend."""
    return [LOG, *shared(), *(_model(name, preset(name), backend) for name in names)]


def _model(name: str, spec: ModelSpec, backend: str) -> Step:
    def run() -> None:
        create_backend(backend, spec)
        short_reads.compile_kernels(spec)

    return Step(f"models with preset {name}", run)
