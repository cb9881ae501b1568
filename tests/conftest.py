"""What all tests share: the profile of Hypothesis, and a real server in a separate process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from server_process import ColdStart, Server
from tally import Tally

# The first import of the command line fixes the width of its tables.
os.environ["COLUMNS"] = "200"

# Compilation makes the first examples slow, so the deadline of Hypothesis is off.
# A failure prints how to repeat it. CI tries the same examples for the same code, so that a change
# is judged by what it changes. Elsewhere the examples are new in each run.
hypothesis.settings.register_profile(
    "livefactor", deadline=None, print_blob=True, derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("livefactor")


# Tests in these folders wait for servers, so they depend on the machine's load. One that fails runs
# a second time, and the summary names it. Tests of bits, formats and kernels run once.
_TIMED = (
    "attacks",
    "battle",
    "clients",
    "end_to_end",
    "federated",
    "server/following",
    "server/rpc",
    "server/served",
    "server/hosting",
)


_TALLY = pytest.StashKey[Tally]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    folders = tuple(tests / name for name in _TIMED)
    # Thousands of items stand in hundreds of files, and a look at the parents of a path is slow.
    timed: dict[Path, bool] = {}
    for item in items:
        if item.path not in timed:
            timed[item.path] = any(folder in item.path.parents for folder in folders)
        if timed[item.path]:
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_collection_finish() -> None:
    """Exempt modules and tests from the search for cyclic garbage, because they live to the end.

    A full collection looks at all objects that live. A process that compiles kernels spends a tenth
    of its time on that.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    """Provide the counts of the battery (`make torture`)."""
    return pytestconfig.stash.setdefault(_TALLY, Tally())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the closing table of the battery, and write it to the file TORTURE_RESULTS."""
    if (path := os.environ.get("TORTURE_RESULTS")) and _TALLY in config.stash:
        counts = config.stash[_TALLY]
        terminalreporter.section("torture")
        terminalreporter.write_line("\n".join(counts.lines()))
        counts.save(Path(path))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start an empty server with default settings, as users do.

    The tests of a module share it.
    """
    running = Server(ColdStart(), tmp_path_factory.mktemp("server") / "data")
    running.start()
    yield running
    running.kill()
