"""`livefactor top`: figures from two readings of real metrics, and the screen by the test pilot."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import click.testing
import pytest
import typer
from prometheus_client import REGISTRY, generate_latest
from textual.widgets import DataTable, Static

import livefactor
from livefactor.in_process import Local, local
from livefactor_server.access.entry import OPEN
from livefactor_server.access.metrics_port import serve_metrics
from livefactor_server.cli.app import app
from livefactor_server.cli.top import figures
from livefactor_server.cli.top.figures import Reading, models, parse
from livefactor_server.cli.top.screen import COLUMNS, Top, duration


@pytest.fixture(scope="module")
def server() -> Iterator[Local]:
    with local("clicks_sgd") as running:
        yield running


def reading(at: float) -> Reading:
    return parse(generate_latest(REGISTRY).decode(), at)


def work(server: Local, calls: int) -> None:
    with server.producer() as producer:
        producer.push([1, 2, 3], [4, 5, 6])
    for _ in range(calls):
        server.scorer().score(1, [4])


def test_rates_are_differences_between_readings(server: Local) -> None:
    work(server, 1)
    before = reading(100.0)
    work(server, 8)
    with pytest.raises(livefactor.InvalidArgument):
        server.scorer().recommend(1, k=1 << 30)
    (found,) = [each for each in models(before, reading(102.0)) if each.model == "default"]
    assert found.state == "serving"
    assert found.events_per_s >= 1.5
    assert found.calls_per_s >= 4
    assert 0 < found.score_p99_s <= 5
    assert found.users == found.items == 3
    assert found.revision > 0 and found.lag_records == 0 and found.memory_bytes > 0


def test_a_server_that_started_anew_has_no_negative_rates(server: Local) -> None:
    work(server, 2)
    now = reading(1.0)
    (found,) = [each for each in models(now, Reading(2.0, {"livefactor_revision": now.samples["livefactor_revision"]}))
                if each.model == "default"]  # fmt: skip
    assert found.events_per_s == found.calls_per_s == 0
    assert math.isnan(found.score_p99_s)
    assert (duration(math.nan), duration(math.inf), duration(0.002)) == ("-", "> 5 s", "≤ 2 ms")


def test_states_are_told() -> None:
    text = (
        'livefactor_revision{model="a"} 1\nlivefactor_writable{model="a"} 0\n'
        'livefactor_revision{model="b"} 1\nlivefactor_writable{model="b"} 1\nlivefactor_held{model="b"} 1\n'
        'livefactor_fault{model="c"} 1\n'
    )
    now = parse(text, 0.0)
    assert {each.model: each.state for each in models(now, now)} == {
        "a": "read only", "b": "on hold", "c": "not opened",
    }  # fmt: skip


def test_the_screen_shows_the_models_of_a_metrics_port(server: Local) -> None:
    work(server, 1)
    port = serve_metrics("127.0.0.1", 0, OPEN)
    url = f"http://127.0.0.1:{port}/metrics"

    async def run() -> None:
        shown = Top(lambda: figures.read(url), url, 60.0)
        async with shown.run_test(size=(140, 20)) as pilot:
            table = shown.query_one(DataTable)
            for _ in range(200):
                await pilot.pause(0.05)
                if table.row_count:
                    break
            assert [str(column.label) for column in table.ordered_columns] == list(COLUMNS)
            names = [str(table.get_row_at(row)[0]) for row in range(table.row_count)]
            assert "default" in names
            assert "default" in shown.export_screenshot()
            await pilot.press("q")
        assert not shown.is_running

    asyncio.run(run())


def test_a_server_that_does_not_answer_is_told() -> None:
    def nothing() -> Reading:
        raise ConnectionRefusedError("nobody listens")

    async def run() -> None:
        shown = Top(nothing, "somewhere", 60.0)
        async with shown.run_test(size=(140, 20)) as pilot:
            trouble = shown.query_one("#trouble", Static)
            for _ in range(200):
                await pilot.pause(0.05)
                if "nobody" in str(trouble.render()):
                    return
            raise AssertionError(trouble.render())

    asyncio.run(run())


@pytest.mark.parametrize(
    ("address", "token", "text"),
    [("ftp://x/metrics", "", "expected http"), ("http://example.org:1/metrics", "lf_x", "in plain text")],
)
def test_wrong_addresses_are_refused(address: str, token: str, text: str) -> None:
    result = click.testing.CliRunner().invoke(
        typer.main.get_command(app), ["top", address], env={"LIVEFACTOR_TOKEN": token}
    )
    assert result.exit_code == 2
    assert text in result.output
