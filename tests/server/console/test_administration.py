"""What administrators do in the console, what others may not, and browsers that leave too early."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from livefactor.in_process import Local, local
from livefactor_kernels.spec.presets import preset
from livefactor_server.access.entry import Entry
from livefactor_server.access.grants import Grant, Grants, Role, add_grant, new_token
from livefactor_server.console import actions
from livefactor_server.console.actions import Actions
from livefactor_server.console.app import ConsoleSettings, make_app
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer
from server_process import wait_until

BASE = "http://localhost"
PAGE = "/models/default"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Local]:
    with local("clicks_sgd", tmp_path) as running:
        with running.producer("<b>tills") as producer:
            times = np.full(60, int(time.time()) - 30)
            producer.push([f"user {u}" for u in range(60)], [f"item {u % 8}" for u in range(60)], times=times)
        yield running


@pytest.fixture
def pages(server: Local) -> Iterator[TestClient]:
    with TestClient(make_app(ConsoleSettings(server.target)), base_url=BASE) as client:
        yield client


def key_of(pages: TestClient, page: str = PAGE) -> str:
    found = re.search(r'name="form_key" value="([^"]+)"', pages.get(page).text)
    assert found is not None
    return found[1]


def act(pages: TestClient, key: str, action: str, page: str = PAGE, **fields: str) -> Any:
    data = {"form_key": key, "action": action, **fields}
    return pages.post(f"{page}/act", data=data, headers={"HX-Request": "true"})


def outcome(pages: TestClient) -> str:
    found = re.search(r'role="status">([^<]*)<', pages.get(f"{PAGE}/live").text)
    return found[1] if found else ""


def test_the_page_shows_producers_and_settings(pages: TestClient) -> None:
    page = pages.get(PAGE).text
    row = page.partition('<th scope="row">&lt;b&gt;tills</th>')[2].partition("</tr>")[0]
    assert re.search(r'<td class="n">3\d\.\d s</td><td class="n">0</td>$', row), row
    assert "<dt>rule</dt><dd>sgd</dd>" in page and "<dt>optimizer.learning_rate</dt>" in page


def test_a_snapshot_a_promotion_and_a_rollback(pages: TestClient, server: Local) -> None:
    key = key_of(pages)
    assert "Take a snapshot" in act(pages, key, "snapshot").text
    wait_until(lambda: "snapshot 0" in outcome(pages), "the snapshot")
    (snapshot,) = server.auditor().list()
    assert snapshot.snapshot_id in pages.get(PAGE).text
    act(pages, key, "promote", preset="purchases_sgd", confirm="default")
    wait_until(
        lambda: "Promote the preset purchases_sgd: in force since revision" in outcome(pages), "switch", 90
    )
    spec = server.models().describe("default").spec
    assert spec is not None and spec["loss"] == "bpr"
    act(pages, key, "rollback", revision=str(snapshot.position.revision), confirm="default")
    wait_until(
        lambda: "Roll back to revision" in outcome(pages) and "done at" in outcome(pages), "rollback", 90
    )
    refused = act(pages, key, "release", confirm="default")
    assert 'role="alert"' in refused.text and "not on hold" in refused.text


@pytest.mark.parametrize(
    ("action", "fields", "text"),
    [
        ("promote", {"preset": "clicks"}, "confirm: type the name of the model, default"),
        ("promote", {"preset": "clicks", "confirm": "other"}, "confirm: type the name"),
        ("promote", {"preset": "", "confirm": "default"}, "preset: type the name of a preset"),
        ("promote", {"preset": "nothing", "confirm": "default"}, "preset"),
        ("rollback", {"revision": "-1", "confirm": "default"}, "revision: expected a number"),
        ("rollback", {"revision": "9" * 30, "confirm": "default"}, "revision"),
        ("delete", {"confirm": "default"}, "action: expected one of snapshot"),
    ],
)
def test_forms_without_a_confirmation_change_nothing(
    pages: TestClient, server: Local, action: str, fields: dict[str, str], text: str
) -> None:
    before = server.models().describe("default").position
    answer = act(pages, key_of(pages), action, **fields)
    assert 'role="alert"' in answer.text and text in answer.text
    assert server.models().describe("default").position == before


def test_another_site_cannot_send_the_form(pages: TestClient, server: Local) -> None:
    for key in ("", "x" * 43, "é"):
        answer = act(pages, key, "snapshot")
        assert answer.status_code == 403
    assert act(pages, "x" * 9000, "snapshot").status_code == 413
    assert pages.get(f"{PAGE}/act").status_code == 405
    assert server.auditor().list() == ()


def test_one_action_a_model_at_a_time(pages: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = threading.Event()

    def slow(*_: Any) -> tuple[str, actions.Work]:
        async def work(progress: actions.Progress) -> str:
            progress("half")
            while not ending.is_set():
                await actions.asyncio.sleep(0.01)
            return "whole"

        return "Slow work", work

    monkeypatch.setitem(actions._WORKS, "snapshot", slow)
    monkeypatch.setattr("livefactor_server.console.pages.QUICK_S", 0.05)
    key = key_of(pages)
    assert "it runs, see above" in act(pages, key, "snapshot").text
    assert outcome(pages) == "Slow work: half"
    assert "wait for the end of: Slow work" in act(pages, key, "snapshot").text
    ending.set()
    wait_until(lambda: outcome(pages) == "Slow work: whole", "the end")
    assert Actions().of("nothing") is None


def test_only_administrators_see_and_do_it(tmp_path: Path) -> None:
    tokens = {role: new_token() for role in (Role.ADMIN, Role.CONSUMER, Role.AUDITOR)}
    for role, token in tokens.items():
        add_grant(tmp_path / "access.toml", Grant(role, role, None), token)
    hosting = Hosting(tmp_path / "data", HostingSettings(default_preset=""))
    hosting.open_all()
    hosting.create("default", preset("clicks_sgd"))
    entry = Entry(None, Grants(tmp_path / "access.toml"))
    rpc = RpcServer(hosting, ServiceSettings(), "127.0.0.1:0", entry)
    rpc.start()
    try:
        with TestClient(make_app(ConsoleSettings(f"127.0.0.1:{rpc.port}")), base_url=BASE) as pages:
            keys = {}
            for role, token in tokens.items():
                pages.cookies.clear()
                pages.post("/login", data={"token": token})
                page = pages.get(PAGE).text
                assert ("Administration" in page) == (role is Role.ADMIN)
                assert ("<h2>Producers</h2>" in page) == (role is not Role.CONSUMER)
                if role is Role.ADMIN:
                    keys[role] = key_of(pages)
            # The auditor logged in last, and the key is that of another person.
            assert (
                act(pages, keys[Role.ADMIN], "promote", preset="clicks", confirm="default").status_code == 403
            )
    finally:
        rpc.stop()
        hosting.drain()


@pytest.fixture
def port(server: Local) -> Iterator[int]:
    served = uvicorn.Server(uvicorn.Config(make_app(ConsoleSettings(server.target)), port=0, log_config=None))
    thread = threading.Thread(target=served.run, daemon=True)
    thread.start()
    wait_until(lambda: served.started, "the console")
    yield int(served.servers[0].sockets[0].getsockname()[1])
    served.should_exit = True
    thread.join()


def test_a_browser_that_leaves_in_the_middle_harms_nobody(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    def send(text: str, leave: Callable[[socket.socket], None]) -> None:
        with socket.create_connection(("localhost", port)) as opened:
            opened.sendall(text.replace("\n", "\r\n").encode())
            leave(opened)

    head = "HTTP/1.1\nHost: localhost\n"
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            send(f"POST /login {head}Content-Length: 500\n\ntoken=lf_half", lambda opened: None)
            send(f"POST {PAGE}/act {head}Content-Length: 500\n\naction=snap", lambda opened: None)
            send(f"GET {PAGE}/live {head}\n", lambda opened: opened.recv(10))
            send(f"GET {PAGE}/curve {head}\n", lambda opened: opened.shutdown(socket.SHUT_RDWR))
        answer = b""
        with socket.create_connection(("localhost", port)) as opened:
            opened.sendall(f"GET {PAGE} {head}Connection: close\n\n".replace("\n", "\r\n").encode())
            while piece := opened.recv(65_536):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 200") and b"Producers" in answer
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
