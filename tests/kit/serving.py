"""Fixtures that start servers. The conftest.py of a test folder imports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server_process import ColdStart, Server, WarmStart


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmStart]:
    """Provide a process that starts servers quickly."""
    starter = WarmStart()
    yield starter
    starter.close()


@pytest.fixture
def serve(warm: WarmStart, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Provide `serve(*flags, name=, plants=, cold=)`, which starts a server without models.

    All servers end with the test.
    """
    servers: list[Server] = []

    def start(*flags: str, name: str = "data", plants: tuple[str, ...] = (), cold: bool = False) -> Server:
        starter = ColdStart() if cold else warm
        servers.append(Server(starter, tmp_path / name, "--preset", "", *flags, plants=plants))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
