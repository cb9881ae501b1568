"""`livefactor serve --console`: the pages live as long as the server."""

from __future__ import annotations

import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from load import MODEL, create_model
from server_process import Server, wait_until

Serve = Callable[..., Server]


def page(port: int) -> str:
    """The first page; empty if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/models", timeout=10) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""


def consoles(port: int) -> list[int]:
    """The ids of the running processes that show the pages on a port."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"livefactor_server.console.serving" in words and b" %d," % port in words[3]:
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def test_the_pages_live_as_long_as_the_server(serve: Serve, port: int) -> None:
    server = serve("--console", "--console-port", str(port))
    create_model(server)
    wait_until(lambda: MODEL in page(port), "the page of the models", 60)
    (first,) = consoles(port)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: consoles(port) not in ([], [first]), "another process", 60)
    wait_until(lambda: MODEL in page(port), "the page after a fault", 60)
    server.kill()
    wait_until(lambda: consoles(port) == [], "the end of the pages", 60)
    server.start()
    wait_until(lambda: MODEL in page(port), "the page of a server that was killed", 60)
    assert server.stop() == 0
    assert consoles(port) == []


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from livefactor_server.cli.serve import pages
    from livefactor_server.cli.serve.settings import EntryError, ServerSettings

    with pytest.raises(EntryError, match="--console has no certificate for --tls-client-ca"):
        pages.check_pages(ServerSettings(console=True, tls_client_ca=tmp_path / "ca.pem"))
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    with pytest.raises(EntryError, match='--console needs starlette: pip install "livefactor\\[console\\]"'):
        pages.check_pages(ServerSettings(console=True))
    pages.check_pages(ServerSettings())
