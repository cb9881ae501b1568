"""The fixture of the fake server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fake_server import FakeServer


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """Start a fake server.

    The path of its socket is short, because Unix-domain sockets limit the length.
    """
    with TemporaryDirectory(prefix="lf") as folder:
        server = FakeServer(Path(folder)).start()
        yield server
        server.stop()
