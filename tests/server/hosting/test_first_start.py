"""A start compiles what is not on disk before it serves, in several processes. Later nothing waits
for the compiler.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from golden import SPECS
from livefactor_kernels.numbers import shipped
from livefactor_kernels.numbers.cache import NotCompiled
from livefactor_kernels.spec.presets import preset
from livefactor_server.hosting import compiling, kernels, trial
from livefactor_server.hosting.compiling import Helper, Work
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.hosting.kernels import Plan, Step

SETTINGS = HostingSettings(default_spec=preset("clicks_sgd", k=8), auto_cpu_share=0)


@dataclass
class Recorded:
    """Stands for a helper."""

    plan: Plan
    work: Work
    host: bool = False
    last: bool = False

    def end(self) -> None:
        """A process would end."""


@pytest.fixture
def helpers(on_disk: None, monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The helpers that would have been started."""
    started: list[Recorded] = []

    def start(plan: Plan, work: Work, **options: Any) -> Recorded:
        started.append(Recorded(plan, work, **options))
        return started[-1]

    monkeypatch.setattr(compiling, "Helper", start)
    return started


@pytest.fixture(scope="module")
def on_disk() -> None:
    """All kernels that a start needs have been compiled."""
    assert SETTINGS.default_spec is not None
    plan = Plan("cpu", (("model", SETTINGS.default_spec),))
    for step in (*plan.steps(), *plan.rest()):
        step.run()


def missing() -> None:
    raise NotCompiled("kernel")


def test_the_kernels_that_read_a_log_are_compiled_by_a_helper_while_the_first_model_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helpers: list[Recorded]
) -> None:
    monkeypatch.setattr(kernels, "LOG", Step("the log", missing))
    hosting = Hosting(tmp_path, SETTINGS)
    hosting.open_all()
    assert hosting.get("").engine.state.revision == 0
    (helper,) = helpers
    steps, taken = helper.plan.steps(), helper.work.take()
    assert taken is not None and steps[taken].name == "the log"
    assert helper.work.take() is None and helper.host
    hosting.drain()


def test_with_all_kernels_on_disk_no_helper_is_started(tmp_path: Path, helpers: list[Recorded]) -> None:
    hosting = Hosting(tmp_path, SETTINGS)
    hosting.open_all(on_step=lambda name, number, count: pytest.fail(name))
    assert helpers == []
    hosting.drain()


def test_shipped_code_is_compiled_for_a_processor_with_wider_vectors(
    monkeypatch: pytest.MonkeyPatch, helpers: list[Recorded]
) -> None:
    plan = Plan("cpu", (("m", preset("clicks_sgd", k=8)),))
    monkeypatch.setattr(shipped, "is_used", lambda: True)
    for is_improvable in (False, True):
        monkeypatch.setattr(shipped, "is_improvable", lambda: is_improvable)  # noqa: B023
        compiling.compile_later(plan)
        assert len(helpers) == is_improvable
    steps = [*plan.steps(), *plan.rest()]
    assert [helpers[0].work.take() for _ in steps] == list(range(len(steps)))


def test_what_is_missing_is_divided_among_processes(
    monkeypatch: pytest.MonkeyPatch, helpers: list[Recorded]
) -> None:
    compiled: list[str] = []

    def step(name: str, is_there: bool) -> Step:
        def run() -> None:
            if not is_there and name not in compiled and getattr(compiling, "looking", True):
                raise NotCompiled(name)
            compiled.append(name)

        return Step(name, run)

    steps = [step("a", False), step("b", True), step("c", False), step("d", False)]
    monkeypatch.setattr(Plan, "steps", lambda plan: steps)
    monkeypatch.setattr(Plan, "is_on_disk", lambda plan: False)
    monkeypatch.setattr(compiling, "processes", lambda: 2)
    reports: list[tuple[str, int, int]] = []

    def report(name: str, number: int, total: int) -> None:
        # From the first report on, a step compiles.
        monkeypatch.setattr(compiling, "looking", False, raising=False)
        reports.append((name, number, total))

    monkeypatch.setattr(Recorded, "wait", lambda helper: 0, raising=False)
    compiling.compile_missing(Plan("cpu", ()), report)
    assert reports == [("a", 1, 3), ("c", 2, 3), ("d", 3, 3)]
    assert compiled == ["b", "a", "c", "d"]
    assert len(helpers) == 1 and helpers[0].last


def test_helpers_begin_at_the_other_end() -> None:
    work = Work([], [0, 1, 2])
    assert [work.take(), work.take(last=True), work.take(), work.take(last=True)] == [0, 2, 1, None]


def test_a_helper_leaves_compiled_kernels_on_disk(tmp_path: Path) -> None:
    plan = Plan("cpu", ())
    steps = plan.steps()
    names = [step.name for step in steps]
    work = Work(steps, [names.index("rows of small records")])
    helper = Helper(plan, work, variables={"NUMBA_CACHE_DIR": str(tmp_path)})
    assert helper.wait() == 0
    assert list(tmp_path.rglob("pairs._pairs_kernel*.livefactor"))


def test_a_helper_ends_at_once(tmp_path: Path) -> None:
    plan = Plan("cpu", ())
    helper = Helper(plan, Work(plan.steps(), [0]), host=True, variables={"NUMBA_CACHE_DIR": str(tmp_path)})
    helper.end()
    assert helper.wait() != 0


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["squared", "softmax_in_batch", "solve_embeddings", "solve_features"])
def test_every_kind_of_spec_can_be_tried(name: str, backend: str) -> None:
    trial.run(SPECS[name], backend)


CALLS = """
import sys
import numpy as np
import livefactor
from livefactor_kernels.numbers import cache
from livefactor_kernels.spec.presets import preset
from livefactor_server.rpc.embedded import EmbeddedServer

server = EmbeddedServer(sys.argv[1])
loaded = []
load = cache._Files.load

def noted(files, key):
    loaded.append((files._name, key[0]))
    return load(files, key)

cache._Files.load = noted
ids = np.arange(1, 60, dtype=np.uint64)
with livefactor.Producer(server.target, "p") as producer:
    producer.push(ids % 7 + 1, ids).result()
    producer.push(ids % 5 + 1, ids).result()
scorer = livefactor.Scorer(server.target)
scorer.score([1], ids)
scorer.score(ids, ids)
for users in ([1], ids % 9):
    scorer.recommend(users, k=5)
    scorer.recommend(users, k=5, exclude=[1, 2])
    if preset(sys.argv[1]).history.users:
        scorer.recommend(users, k=5, exclude_seen=True)
        scorer.recommend(users, k=5, events=[1, 2, 3])
scorer.similar([1, 2], k=5)
livefactor.Auditor(server.target).explain(1, 2)
assert not loaded, loaded
server.stop()
"""
"""Calls to a model of a preset, after which no kernel was loaded or compiled."""


# A first run on a machine compiles the kernels.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["auto", "purchases_sgd"])
def test_no_call_of_a_served_model_loads_or_compiles_a_kernel(name: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    done = subprocess.run(
        [sys.executable, "-c", CALLS, name], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
