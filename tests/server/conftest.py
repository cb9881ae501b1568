"""Fixtures: a server in this process, and stubs that call it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from livefactor_server.rpc import embedded
from stubs import Stubs


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubs]:
    """Provide stubs for an in-process server, which all tests of this folder share."""
    server = embedded.start(preset="clicks_sgd", data=tmp_path_factory.mktemp("data"))
    with grpc.insecure_channel(server.target) as channel:
        yield Stubs(channel)
    server.stop()
