"""The fixtures of the fake server and of its producers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from fake_server import FakeServer
from livefactor.errors import LivefactorError
from livefactor.pushing import sending
from livefactor.pushing.producer import Producer


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """Start a fake server.

    The path of its socket is short, because Unix-domain sockets limit the length.
    """
    with TemporaryDirectory(prefix="lf") as folder:
        server = FakeServer(Path(folder)).start()
        yield server
        server.stop()


@pytest.fixture
def make(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Producer]]:
    """Provide a function that makes producers of the fake server, which try again at once.

    The fixture closes those that a test leaves open.
    """
    monkeypatch.setattr(sending, "BACKOFF_S", 0.002)
    monkeypatch.setattr(sending, "BACKOFF_MAX_S", 0.05)
    made: list[Producer] = []

    def make(producer_id: str = "p", **options: Any) -> Producer:
        made.append(Producer(fake.target, producer_id, **options))
        return made[-1]

    yield make
    for producer in made:
        with contextlib.suppress(LivefactorError):
            producer.close(0.0)
