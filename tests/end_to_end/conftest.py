"""Fixtures of the promise tests: servers, and the data folder of a server with many models."""

from __future__ import annotations

import pytest

from history import History, make_history
from livefactor.pushing import sending
from server_process import Server, WarmStart
from serving import serve, warm

__all__ = ["history", "serve", "warm"]


@pytest.fixture(autouse=True)
def _producers_return_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the pause of a producer before it tries again.

    The pause grows to seconds while a server is down. The long forms keep the pauses of users.
    """
    if request.node.get_closest_marker("long") is None:
        monkeypatch.setattr(sending, "BACKOFF_MAX_S", 0.1)


@pytest.fixture(scope="session")
def history(warm: WarmStart, tmp_path_factory: pytest.TempPathFactory) -> History:
    """Logs and snapshots of models of every kind. Tests only read them."""
    server = Server(warm, tmp_path_factory.mktemp("history") / "data", "--preset", "")
    server.start()
    return make_history(server)
