"""What tests of every room share: hypothesis' profile, and a real server in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from server_process import ColdStart, Server

# Whoever imports the command line first decides how wide its tables are.
os.environ["COLUMNS"] = "200"

# Compiling makes first examples slow, so hypothesis' own deadline says nothing.
# A failure prints how to repeat it.
hypothesis.settings.register_profile("livefactor", deadline=None, print_blob=True)
hypothesis.settings.load_profile("livefactor")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with default settings, started as people do, which began empty; the tests of a module share it."""
    running = Server(ColdStart(), tmp_path_factory.mktemp("server") / "data")
    running.start()
    yield running
    running.kill()
