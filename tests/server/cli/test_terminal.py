"""What reaches a terminal or a log is text, whatever a peer sent."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from livefactor.v1 import judging_pb2, models_pb2, scoring_pb2, snapshots_pb2, updates_pb2
from livefactor_server.changes import show as log_show
from livefactor_server.cli.app import app
from livefactor_server.cli.screen import Screen
from livefactor_server.log.store import Entry, Kind, Log
from livefactor_server.text import PlainFormatter, plain, quoted

# A window title, a line that looks like the server's, rich's markup, an emoji code and a text whose
# direction is turned around.
HOSTILE = "\x1b]0;owned\x07\r\nlivefactor: all is well[/x][red]:smile:\u202e\x9b31m"


def test_escaped_text_is_one_printable_line() -> None:
    assert plain("Zoë 京都 [a] \\") == "Zoë 京都 [a] \\"
    assert plain(HOSTILE).isprintable()
    assert plain("a\n\x1b\u2028\ud800") == r"a\n\x1b\u2028\ud800"


def test_a_name_in_a_status_is_cut() -> None:
    assert quoted("shop") == "'shop'"
    assert quoted("x" * 10_000) == f"'{'x' * 64}...'"


def test_a_console_prints_strings_as_text() -> None:
    from rich.table import Table

    file = io.StringIO()
    screen = Screen(file=file, width=400, force_terminal=True, color_system=None)
    table = Table(HOSTILE, title=None, box=None)
    table.add_row(HOSTILE)
    screen.print(HOSTILE)
    screen.print(table)
    lines = [line.strip() for line in file.getvalue().splitlines()]
    assert lines == [plain(HOSTILE)] * 3


def test_a_log_line_cannot_be_forged() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter("%(levelname)s: %(message)s"))
    logger = logging.Logger("hostile")
    logger.addHandler(handler)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("producer %s", HOSTILE)
    first, *others = stream.getvalue().splitlines()
    assert first == f"ERROR: producer {plain(HOSTILE)}"
    assert "Traceback" in others[0]
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_log_show_prints_one_line_for_a_record(tmp_path: Path) -> None:
    with Log.create(tmp_path / "log", b"", ahead=False) as log:
        producer = b"till\n\x1b[2J 7 SPEC"
        salt = bytes(16)
        log.append([Entry(Kind.LABELS, 1, producer, 1, 1, salt=salt, commitment=log.seal(salt, b"", b""))])
    lines = list(log_show.plain_lines(log_show.rows(tmp_path / "log")))
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    shown = CliRunner().invoke(app, ["log", "show", str(tmp_path / "log")])
    assert shown.stdout.splitlines() == lines


class Hostile:
    """A server whose answers hold hostile text wherever they hold text."""

    def __init__(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((_Handlers(),))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()


class _Handlers(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.rpartition("/")[2]
        if method == "StreamUpdates":
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: context.abort(grpc.StatusCode.INVALID_ARGUMENT, HOSTILE)
            )
        answer = _ANSWERS.get(method)
        if answer is None:
            return grpc.unary_unary_rpc_method_handler(
                lambda raw, context: context.abort(grpc.StatusCode.NOT_FOUND, HOSTILE)
            )
        if method == "Snapshot":
            return grpc.unary_stream_rpc_method_handler(lambda raw, context: iter([answer]))
        return grpc.unary_unary_rpc_method_handler(lambda raw, context: answer)


def _description() -> models_pb2.ModelDescription:
    position = updates_pb2.Position(lineage=bytes(16), revision=1)
    event = judging_pb2.JudgeEvent(kind=HOSTILE, metric=HOSTILE)
    figure = judging_pb2.JudgeFigure(metric=HOSTILE, scorer="model")
    return models_pb2.ModelDescription(
        model=HOSTILE,
        position=position,
        spec=models_pb2.ModelSpec(k=4),
        backend=HOSTILE,
        judgement=judging_pb2.Judgement(judged_events=1, events=[event], figures=[figure]),
        hold=judging_pb2.Hold(reason=HOSTILE, snapshot_id=HOSTILE),
    )


_POSITION = updates_pb2.Position(lineage=bytes(16), revision=1)
_INFO = snapshots_pb2.SnapshotInfo(snapshot_id=HOSTILE, position=_POSITION)
_ANSWERS = {
    method: message.SerializeToString()
    for method, message in {
        "Score": scoring_pb2.ScoreResponse(
            position=_POSITION,
            item_ids=[7],
            scores=[0.5],
            offsets=[0, 1],
            user_known=[True],
            item_known=[True],
            labels=[HOSTILE],
        ),
        "OpenProducer": updates_pb2.OpenProducerResponse(epoch=1, position=_POSITION),
        "ListModels": models_pb2.ListModelsResponse(
            models=[_description(), models_pb2.ModelDescription(model=HOSTILE, fault=HOSTILE)]
        ),
        "DescribeModel": models_pb2.DescribeModelResponse(description=_description()),
        "ReleaseHold": models_pb2.ReleaseHoldResponse(description=_description()),
        "ListSnapshots": snapshots_pb2.ListSnapshotsResponse(snapshots=[_INFO]),
        "Snapshot": snapshots_pb2.SnapshotResponse(manifest=snapshots_pb2.SnapshotManifest(info=_INFO)),
    }.items()
}


@pytest.fixture(scope="module")
def hostile() -> Any:
    server = Hostile()
    yield server
    server.close()


def run(server: Hostile, *command: str) -> Result:
    return CliRunner().invoke(app, [*command, "--target", server.target])


COMMANDS = (
    ("recommend", "1"),
    ("models", "list"),
    ("models", "describe", "shop"),
    ("models", "release", "shop"),
    ("snapshot", "--list"),
    ("snapshot",),
    ("models", "create", "shop"),
    ("models", "delete", "shop", "--yes"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_shows_a_hostile_answer_as_text(hostile: Hostile, command: tuple[str, ...]) -> None:
    result = run(hostile, *command)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = (result.stdout + result.stderr).splitlines()
    assert all(line.isprintable() for line in lines), lines
    assert not any(line.startswith("livefactor: all is well") for line in lines), lines
    # It shows what came. Markup and emoji codes stand in it as they were sent.
    if command[:2] != ("models", "release"):
        assert any("[/x][red]:smile:" in line for line in lines), lines


def test_what_the_client_logs_is_text(hostile: Hostile, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id\n1,2\n")
    command = [sys.executable, "-m", "livefactor", "push", "events.csv", "--target", hostile.target]
    path = os.pathsep.join(each for each in sys.path if each)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    assert sum("[/x][red]:smile:" in line for line in lines) >= 2, lines
    assert all(line.isprintable() and "all is well" not in line[:30] for line in lines), lines


def test_json_of_hostile_text_is_one_line(hostile: Hostile) -> None:
    result = run(hostile, "models", "list", "--json")
    assert result.stdout.count("\n") == 1
    assert result.stdout.rstrip("\n").isprintable()
    assert json.loads(result.stdout)[0]["model"] == HOSTILE
