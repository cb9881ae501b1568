"""The server inside this process leaves nothing behind when it cannot start."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc.embedded import EmbeddedServer


def test_a_server_that_cannot_start_leaves_no_folder_and_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, data = tmp_path / "temporary", tmp_path / "data"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(Exception, match="nosuch"):
        EmbeddedServer("nosuch", data)
    assert list(temporary.iterdir()) == []
    # The lock of the data folder is free again.
    Hosting(data, HostingSettings()).drain()
