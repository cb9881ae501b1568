"""Fixtures of the promise tests: servers, and the data folder of a server with many models."""

from __future__ import annotations

import pytest

from history import History, make_history
from server_process import Server, WarmStart
from serving import serve, warm

__all__ = ["history", "serve", "warm"]


@pytest.fixture(scope="session")
def history(warm: WarmStart, tmp_path_factory: pytest.TempPathFactory) -> History:
    """Logs and snapshots of models of every kind. Tests only read them."""
    server = Server(warm, tmp_path_factory.mktemp("history") / "data", "--preset", "")
    server.start()
    return make_history(server)
