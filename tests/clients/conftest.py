"""The fake server as a fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fake_server import FakeServer


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A started fake server; its socket's path is short, as unix-domain sockets demand."""
    with TemporaryDirectory(prefix="lf") as folder:
        server = FakeServer(Path(folder)).start()
        yield server
        server.stop()
