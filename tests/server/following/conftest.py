"""The fixtures of this folder."""

from __future__ import annotations

import pytest

from following_nodes import node as node
from livefactor_server.hosting.following import follower


@pytest.fixture(autouse=True)
def _followers_try_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses of seconds after which a follower looks for models or asks again."""
    monkeypatch.setattr(follower, "LOOK_S", 0.25)
    monkeypatch.setattr(follower, "REFUSED_REST_S", 0.5)
