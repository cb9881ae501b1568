"""What tests of every room share: a real server in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from server_process import ColdStart, Server

# Compiling makes first examples slow, so hypothesis' own deadline says nothing.
# A failure prints how to repeat it.
hypothesis.settings.register_profile("livefactor", deadline=None, print_blob=True)
hypothesis.settings.load_profile("livefactor")


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`start_server(*flags, name="data")` starts a server on a folder of the test's; all end with it."""
    servers: list[Server] = []

    def start(*flags: str, name: str = "data") -> Server:
        servers.append(Server(ColdStart(), tmp_path / name, *flags))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with default settings, which began empty; the tests of a module share it."""
    running = Server(ColdStart(), tmp_path_factory.mktemp("server") / "data")
    running.start()
    yield running
    running.kill()
