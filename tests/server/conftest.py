"""A server in this process, and the contract's stubs over it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from livefactor_server.rpc import embedded
from stubs import Stubs


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubs]:
    """Stubs of an in-process server that lives as long as the tests of this folder."""
    server = embedded.start(preset="clicks_sgd", data=tmp_path_factory.mktemp("data"))
    with grpc.insecure_channel(server.target) as channel:
        yield Stubs(channel)
    server.stop()
