"""The pages of the console, over servers in this process: what they show, and who sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from livefactor.in_process import Local, local
from livefactor_kernels.spec.presets import preset
from livefactor_server.access.entry import Entry
from livefactor_server.access.grants import Grant, Grants, Role, add_grant, new_token
from livefactor_server.console.app import ConsoleSettings, make_app
from livefactor_server.console.curves import POINTS_MAX, Curve, Curves
from livefactor_server.console.forms import age, number, size
from livefactor_server.console.sessions import COOKIE, SESSIONS_MAX
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer
from server_process import wait_until

BASE = "http://localhost"


@pytest.fixture(scope="module")
def server() -> Iterator[Local]:
    with local("clicks") as running:
        with running.producer() as producer:
            producer.push(
                [f"user {u}" for u in range(30)] * 4, [f"item {i % 8}" for i in range(120)]
            ).result()
            producer.push("<b>", "<script>alert(1)</script>").result()
        running.auditor().snapshot()
        yield running


@pytest.fixture(scope="module")
def pages(server: Local) -> Iterator[TestClient]:
    with TestClient(make_app(ConsoleSettings(server.target)), base_url=BASE) as client:
        yield client


def text_of(pages: TestClient, address: str, status: int = 200) -> str:
    answer = pages.get(address)
    assert answer.status_code == status, answer.text
    return answer.text


def test_the_models_and_one_model(pages: TestClient, server: Local) -> None:
    first = text_of(pages, "/")
    assert '<a href="/models/default">default</a>' in first and "serving" in first
    assert "<html" not in text_of(pages, "/models")
    page = text_of(pages, "/models/default")
    (snapshot,) = server.auditor().list()
    assert snapshot.snapshot_id in page and snapshot.root_hash.hex()[:16] in page
    assert re.search(r"<dt>events</dt><dd>121</dd>", page)
    points = pages.get("/models/default/curve").json()
    assert points["events"][-1] == 121 and len(points["figures"]["model"]) == len(points["times"])


def test_the_live_part_follows_the_model(pages: TestClient, server: Local) -> None:
    before = server.models().describe("default").position.revision
    with server.producer("another") as producer:
        producer.push("user 1", "item 2").result()
    after = server.models().describe("default").position.revision
    assert after > before
    assert f"<dt>revision</dt><dd>{after}</dd>" in text_of(pages, "/models/default/live")


def test_groups_of_events_stand_beside_most_popular(server: Local, pages: TestClient) -> None:
    """New and known users, and event types: the page shows what the server's judge says."""
    with server.models() as models:
        models.create("grouped", "clicks")
    assert "By users" not in text_of(pages, "/models/grouped")
    with server.producer("till", model="grouped") as producer:
        for batch in range(20):
            # Half of the users come a second time.
            users = [f"user {u}" for u in range(20 * batch - 10, 20 * batch + 10)]
            types = [u % 2 for u in range(20)]
            producer.push(users, [f"item {u % 8}" for u in range(20)], event_types=types).result()
            producer.push(users, [f"item {(u + 1) % 8}" for u in range(20)], event_types=types).result()

    def judged() -> bool:
        judgement = server.models().describe("grouped").judgement
        return judgement is not None and judgement.judged_events == 2 * 20 * 8

    # The judge works after the ack. It takes 8 events of a small record.
    wait_until(judged, "the judge")
    page = text_of(pages, "/models/grouped/live")
    judgement = server.models().describe("grouped").judgement
    assert judgement is not None
    metric = re.search(r"<dt>(\S+), model</dt>", page)[1]
    shown = {
        name: (int(events), [None if figure == "–" else float(figure) for figure in figures.split()])
        for name, events, figures in (
            (name, events, re.sub(r"<[^>]+>", " ", rest))
            for name, events, rest in re.findall(
                r'<tr><th scope="row">(new|known|\d)</th><td class="n">(\d+)</td>(.*?)</tr>', page
            )
        )
    }
    assert set(shown) == {"new", "known", "0", "1"}
    for name, figures in (("new", judgement.new_user_figures), ("known", judgement.known_user_figures)):
        by_scorer = {one.scorer: one for one in figures if one.metric == metric}
        assert shown[name] == (
            by_scorer["model"].events,
            [pytest.approx(by_scorer[s].decayed, abs=1e-4) for s in ("model", "popular", "popular_decayed")],
        )
    whole = judgement.figure(metric)
    assert whole is not None
    assert shown["new"][0] + shown["known"][0] == shown["0"][0] + shown["1"][0] == whole.events


def test_a_list_and_what_it_would_be(pages: TestClient, server: Local) -> None:
    now = text_of(pages, "/models/default/list?user=user+3&k=3")
    best = server.scorer().recommend("user 3", 3)[0]
    for item, score in zip(best.item_ids.tolist(), best.scores.tolist(), strict=True):
        assert item in now and f"{score:,.4f}" in now
    revision = server.models().describe("default").position.revision
    both = text_of(pages, "/models/default/list?user=user+3&k=3&events=item+5,+item+6&exclude_seen=on")
    assert both.count("<h3>") == 2 and "rank now" in both
    assert server.models().describe("default").position.revision == revision, "a what-if is not stored"
    assert "does not know this user" in text_of(pages, "/models/default/list?user=nobody")


def test_similar_items(pages: TestClient) -> None:
    assert "cosine" in text_of(pages, "/models/default/similar?item=item+1")
    assert "does not know the item 77" in text_of(pages, "/models/default/similar?item=77&strings=on")


def test_what_clients_sent_is_text(pages: TestClient) -> None:
    page = text_of(pages, "/models/default/list?user=%3Cb%3E")
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page
    assert "<i>" not in text_of(pages, "/models/%3Ci%3E", 400)
    text_of(pages, "/models/nothing", 404)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("list?user=", "user: type the id of a user"),
        ("list?user=1&k=-3", "k: expected a number above 0"),
        ("list?user=1&k=x", "k: expected a number above 0"),
        ("list?user=1&events=" + "1," * 51, "events: expected at most 50, got 51"),
        ("similar?item=", "the id is missing"),
    ],
)
def test_forms_are_checked(pages: TestClient, address: str, text: str) -> None:
    assert text in text_of(pages, f"/models/default/{address}", 400)
    # A browser would log another status of a part as an error of the page.
    part = pages.get(f"/models/default/{address}", headers={"HX-Request": "true"})
    assert part.status_code == 200 and text in part.text and "<html" not in part.text


def test_nothing_is_loaded_from_elsewhere(pages: TestClient) -> None:
    answer = pages.get("/models/default")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    addresses = re.findall(r'(?:src|href|action|hx-get|data-source)="([^"]+)"', answer.text)
    assert addresses and all(re.match(r"/(?!/)|#", address) for address in addresses)
    for address in set(addresses):
        if address.startswith("/static"):
            assert pages.get(address).status_code == 200
    assert pages.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    assert pages.get("/static/../app.py").status_code == 404


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, str]]:
    """The console of a server that asks for tokens, and a token for the model `mine`."""
    folder, token = tmp_path_factory.mktemp("guarded"), new_token()
    add_grant(folder / "access.toml", Grant("ann", Role.CONSUMER, frozenset({"mine"})), token)
    hosting = Hosting(folder / "data", HostingSettings(default_preset=""))
    hosting.open_all()
    for name in ("mine", "other"):
        hosting.create(name, preset("clicks_sgd"))
    rpc = RpcServer(hosting, ServiceSettings(), "127.0.0.1:0", Entry(None, Grants(folder / "access.toml")))
    rpc.start()
    app = make_app(ConsoleSettings(f"127.0.0.1:{rpc.port}"))
    with TestClient(app, base_url=BASE, follow_redirects=False) as client:
        yield client, token
    rpc.stop()
    hosting.drain()


def test_people_log_in_with_their_tokens(guarded: tuple[TestClient, str]) -> None:
    pages, token = guarded
    assert pages.get("/").headers["location"] == "/login"
    assert pages.get("/models", headers={"HX-Request": "true"}).headers["HX-Redirect"] == "/login"
    for wrong in ("", new_token(), "é", "x" * 9000):
        refused = pages.post("/login", data={"token": wrong})
        assert refused.status_code in (401, 413) and COOKIE not in refused.headers.get("set-cookie", "")
        assert wrong == "" or wrong not in refused.text
    answer = pages.post("/login", data={"token": token})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert token not in cookie
    page = text_of(pages, "/")
    assert "mine" in page and "other" not in page
    assert "<dt>revision</dt>" in text_of(pages, "/models/mine")
    text_of(pages, "/models/other", 403)
    assert pages.post("/logout").headers["location"] == "/login"
    assert pages.get("/").headers["location"] == "/login"


def test_sessions_are_counted(guarded: tuple[TestClient, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pages, token = guarded
    assert SESSIONS_MAX <= 1_000
    monkeypatch.setattr("livefactor_server.console.sessions.SESSIONS_MAX", 2)
    cookies = []
    for _ in range(3):
        pages.cookies.clear()
        pages.post("/login", data={"token": token})
        cookies.append(pages.cookies[COOKIE])
    for cookie, status in zip(cookies, (303, 200, 200), strict=True):
        pages.cookies.clear()
        assert pages.get("/", headers={"cookie": f"{COOKIE}={cookie}"}).status_code == status
    pages.cookies.clear()


def test_a_server_that_is_away_is_a_page(tmp_path: Path) -> None:
    app = make_app(ConsoleSettings(f"unix:{tmp_path}/nothing"))
    with TestClient(app, base_url=BASE) as pages:
        assert "no server at" in text_of(pages, "/", 503)


def test_curves_are_bounded(server: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    model = server.models().describe("default")
    curve = Curve()
    for second in range(POINTS_MAX + 5):
        curve.add(float(second), model)
    assert len(curve.points) == POINTS_MAX
    monkeypatch.setattr("livefactor_server.console.curves.MODELS_MAX", 2)
    curves = Curves()
    first = curves.of("a")
    curves.of("b")
    assert curves.of("a") is first
    curves.of("c")
    assert curves.of("a") is first and len(curves._curves) == 2


def test_values_are_short() -> None:
    assert (number(1234567), number(float("nan")), number(None)) == ("1,234,567", "–", "–")
    assert (size(3), size(2048), size(3 << 30)) == ("3 B", "2.0 KiB", "3.0 GiB")
    assert age(0).endswith(" d ago")
