"""The commands of a person or a script, against a real server."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click.testing
import pytest
import typer

import livefactor
from livefactor import Producer, key_of
from livefactor.channel import DEFAULT_TARGET
from livefactor_server.cli import base, columns
from livefactor_server.cli.app import app
from livefactor_server.tuning import progressive

LINES = [
    "customer,article,stars,at",
    "7,lamp,4,1500000100",
    "7,mug,5,1500000101",
    "8,mug,nan,1500000102",
    "9,lamp,3,1500000103",
    "9,vase,1,1500000104",
]


@pytest.fixture
def run(server: Any):
    """A function that runs a command: `run("models", "list")` gives exit code, output and error
    output.
    """
    runner = click.testing.CliRunner()

    def call(*arguments: str) -> tuple[int, str, str]:
        result = runner.invoke(
            typer.main.get_command(app), arguments, env={"LIVEFACTOR_TARGET": server.target}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def as_json(run: Any, *arguments: str) -> Any:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def ratings(run: Any, name: str) -> str:
    as_json(
        run,
        "models",
        "create",
        name,
        "--preset",
        "ratings_sgd",
        "--spec",
        '{"k": 8, "limits": {"users_max": 1000}}',
    )
    return name


def push_options(model: str) -> list[str]:
    return [
        "--user",
        "customer",
        "--item",
        "article",
        "--value",
        "stars",
        "--time",
        "at",
        "--batch",
        "2",
        "-m",
        model,
    ]


def test_recommend_shows_labels_and_revision(run: Any, server: Any) -> None:
    as_json(run, "models", "create", "shop", "--preset", "clicks_sgd", "--spec", '{"k": 8}')
    with Producer(server.target, "till", model="shop") as producer:
        producer.push_labels("item", ["lamp", "mug"], ["A lamp", "A mug"])
        producer.push(["ann", "ann", "bob"], ["lamp", "mug", "mug"])
        producer.flush(30)
    answer = as_json(run, "recommend", "ann", "nobody", "-k", "2", "-m", "shop")
    ann, nobody = answer["users"]
    assert ann["known"] and not nobody["known"]
    assert {item["label"] for item in ann["items"]} == {"A lamp", "A mug"}
    code, out, _ = run("recommend", "ann", "-k", "1", "-m", "shop", "--exclude", "lamp")
    assert code == 0 and "A mug" in out and "A lamp" not in out and "revision" in out


def test_ids_come_back_as_they_stand_in_the_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "sales.csv"
    file.write_text("user_id,item_id\nann,8\nann,7\nbob,8\n9,7\n")
    for name, options, items, user in (
        ("named", [], {8, 7}, "ann"),
        ("texts", ["--string-ids"], {"8", "7"}, "ann"),
        ("unnamed", ["--no-labels", "--string-ids"], {key_of("8"), key_of("7")}, "ann"),
        (
            "hidden",
            ["--secret", "pepper", "--string-ids"],
            {key_of("8", b"pepper"), key_of("7", b"pepper")},
            "ann",
        ),
    ):
        as_json(run, "models", "create", name, "--preset", "clicks_sgd", "--spec", '{"k": 8}')
        assert as_json(run, "push", str(file), *options, "-m", name)["accepted"] == 4
        again = as_json(run, "push", str(file), *options, "-m", name)
        assert (again["accepted"], again["skipped"]) == (0, 4)
        secret = options[:2] if options[:1] == ["--secret"] else []
        answer = as_json(run, "recommend", user, "-m", name, *secret)["users"][0]
        assert (answer["user"], answer["known"]) == (user, True)
        assert {item["item"] for item in answer["items"]} == items
    code, out, _ = run("recommend", "ann", "-m", "named")
    assert code == 0 and "label" not in out


def test_snapshot_verify_and_replay(run: Any, server: Any, tmp_path: Path) -> None:
    model = ratings(run, "audited")
    (tmp_path / "events.csv").write_text("\n".join(LINES) + "\n")
    # One event is rejected.
    assert run("push", str(tmp_path / "events.csv"), *push_options(model))[0] == 1
    taken = as_json(run, "snapshot", "-m", model, "--out", str(tmp_path / "copy"))
    listed = as_json(run, "snapshot", "-m", model, "--list")
    assert [entry["snapshot_id"] for entry in listed] == [taken["snapshot_id"]]
    assert as_json(run, "verify", str(tmp_path / "copy"))["root_hash"] == taken["root_hash"]
    for backend in ("cpu", "reference"):
        replayed = as_json(
            run, "verify", str(server.data / "models" / model), "--replay", "--backend", backend
        )
        assert replayed["good"] and replayed["root_hash"] == taken["root_hash"]
        assert replayed["snapshots"] == {taken["snapshot_id"]: True}
    users = tmp_path / "copy" / "users.safetensors"
    data = bytearray(users.read_bytes())
    data[-1] ^= 1
    users.write_bytes(data)
    code, _, err = run("verify", str(tmp_path / "copy"))
    assert code == 1 and "users.safetensors" in err


def test_models_are_listed_restored_and_deleted(run: Any) -> None:
    model = ratings(run, "first")
    as_json(run, "snapshot", "-m", model)
    restored = as_json(run, "models", "restore", "second", model)
    assert restored["lineage"] != as_json(run, "models", "describe", model)["lineage"]
    assert {"first", "second"} <= {entry["model"] for entry in as_json(run, "models", "list")}
    assert run("models", "delete", "second", "--yes")[0] == 0
    assert "second" not in {entry["model"] for entry in as_json(run, "models", "list")}
    assert as_json(run, "models", "describe", model, "--root-hash")["root_hash"] != ""
    code, out, _ = run("models", "list")
    assert code == 0 and "first" in out


def test_log_show_lists_what_was_logged(run: Any, server: Any, tmp_path: Path) -> None:
    model = ratings(run, "logged")
    (tmp_path / "events.csv").write_text("\n".join(LINES) + "\n")
    assert run("push", str(tmp_path / "events.csv"), *push_options(model), "--producer", "me")[0] == 1
    code, out, _ = run("log", "show", str(server.data), "-m", model, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["kind"] for row in rows[:2]] == ["SPEC", "OPEN_PRODUCER"]
    assert {row["kind"] for row in rows[2:]} == {"INTERACTIONS", "LABELS", "OPEN_PRODUCER"}
    events = [row for row in rows if row["kind"] == "INTERACTIONS"]
    assert [row["rows"] for row in events] == [2, 1, 1] and events[1]["rejected"] == 1
    assert any("leaves a note" in row["change"] for row in rows)
    code, out, _ = run("log", "show", str(server.data), "-m", model, "--last", "-n", "1")
    assert code == 0 and len(out.splitlines()) == 2 and re.search(r"INTERACTIONS\s+me", out)


def test_faults_are_one_line(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "models").mkdir()
    for arguments, names in (
        (("verify", str(tmp_path)), "missing"),
        (("log", "show", str(tmp_path)), str(tmp_path / "models" / "default" / "log")),
        (("log", "show", str(file)), "Not a directory"),
        (("verify", "--replay", str(tmp_path)), "no log"),
        (("snapshot", "--out", str(file / "below")), "Not a directory"),
        (("models", "create", "bad", "--preset", "nosuch"), "preset"),
    ):
        code, out, err = run(*arguments)
        assert code == 1 and not out.strip(), arguments
        assert re.fullmatch(r"livefactor: [^\n]*\n", err.lstrip("\n")) and names in err, (arguments, err)
        assert "Errno" not in err
    code, _, err = run("snapshot", "--out", str(file))
    assert code == 2 and err == f"livefactor: --out: {file} exists already\n"
    code, _, err = run("models", "create", "bad", "--spec", '{"k": "many"}')
    assert code == 2 and "k" in err


def test_models_alone_lists_them(run: Any) -> None:
    model = ratings(run, "listed")
    assert as_json(run, "models") == as_json(run, "models", "list")
    code, out, _ = run("models")
    assert code == 0 and model in out


def test_a_table_in_a_pipe_has_a_line_a_row(run: Any) -> None:
    name = "a" * 60
    ratings(run, name)
    code, out, _ = run("models", "list")
    (row,) = [line for line in out.splitlines() if name in line]
    assert code == 0 and len(row.split()) == 9 and len(row) > 80


def test_a_spec_shows_the_numbers_that_were_typed(run: Any) -> None:
    as_json(run, "models", "create", "typed", "--preset", "ratings_sgd", "--spec", '{"l2": 0.1, "k": 8}')
    assert as_json(run, "models", "describe", "typed")["spec"]["l2"] == 0.1
    code, out, _ = run("models", "describe", "typed")
    assert code == 0 and re.search(r"spec\.l2 +0\.1\b(?!\d)", out)


def test_a_model_that_is_not_there_lists_those_that_are(run: Any) -> None:
    ratings(run, "a-present")
    code, _, err = run("recommend", "1", "-m", "absent")
    assert code == 1 and "'absent' does not exist; there are" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [("recommend", "1"), ("models",), ("push", "events.csv"), ("snapshot",)]
)
def test_a_server_that_is_away_is_named_soon(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.csv").write_text("user_id,item_id\n1,2\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        target = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    code, _, err = run(*arguments, "--target", target)
    assert code == 1 and f"no server at {target}" in err and "`livefactor serve`" in err
    assert len(err.strip().splitlines()) == 1
    # It waits for 3 s; the rest is for a busy machine.
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("target", ["localhost:notaport", "http://localhost:50051", ":1"])
def test_a_target_that_is_none_is_one_line(run: Any, target: str) -> None:
    code, _, err = run("recommend", "1", "--target", target)
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert "--target: expected host:port" in err and target in err


def test_an_interrupted_push_says_how_to_resume_and_resumes(server: Any, run: Any, tmp_path: Path) -> None:
    model = ratings(run, "interrupted")
    file, rows = tmp_path / "events.csv", 10_000
    file.write_text(
        "customer,article,stars,at\n"
        + "".join(f"{n % 50},{n % 20},3,{1_500_000_000 + n}\n" for n in range(rows))
    )
    typed = [
        sys.executable,
        "-m",
        "livefactor",
        "push",
        str(file),
        *push_options(model),
        "--target",
        server.target,
    ]
    typed[typed.index("--batch") + 1] = "1"
    process = subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while as_json(run, "models", "describe", model)["events"] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err and "the same command goes on" in err
    acknowledged = int(re.search(r"([\d,]+) events of this run", err)[1].replace(",", ""))  # type: ignore[index]
    assert 0 < acknowledged <= as_json(run, "models", "describe", model)["events"] < rows
    options = push_options(model)
    options[options.index("--batch") + 1] = "8192"
    again = as_json(run, "push", str(file), *options)
    assert again["skipped"] >= acknowledged
    assert as_json(run, "models", "describe", model)["events"] == rows


@pytest.mark.parametrize("command", ["livefactor", "livefactor_server.cli"])
@pytest.mark.parametrize(
    "arguments", [(), ("serve",), ("models", "list"), ("push",), ("log", "show"), ("tune",)]
)
def test_help_loads_nothing_heavy(command: str, arguments: tuple[str, ...]) -> None:
    """The time of `--help` is the time of its imports."""
    code = (
        "import sys\nsys.argv = ['livefactor', *sys.argv[1:]]\n"
        f"from {command}.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numba', 'numpy', 'grpc', 'rich.table', 'rich.progress', 'pydantic', 'livefactor.channel'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--help"], capture_output=True, text=True, check=True
    )
    assert "Usage" in done.stdout and done.stderr.strip() == "[]"


def test_the_version_is_printed(run: Any) -> None:
    code, out, _ = run("--version")
    assert code == 0 and out == f"livefactor {livefactor.__version__}\n"


def test_the_default_target_is_the_clients() -> None:
    assert base.DEFAULT_TARGET == DEFAULT_TARGET
    assert columns.BATCH_EVENTS == progressive.BATCH_EVENTS


@pytest.mark.parametrize(
    ("events_per_s", "text"),
    [(None, ""), (12.3456, "12.35 events/s"), (1234.5, "1.23 k events/s"), (2_500_000, "2.50 M events/s")],
)
def test_a_rate_has_a_unit_and_two_decimals(events_per_s: float | None, text: str) -> None:
    assert base.rate(events_per_s) == text


def test_warmup_compiles_what_a_preset_needs() -> None:
    runner = click.testing.CliRunner()
    command = typer.main.get_command(app)
    done = runner.invoke(command, ["warmup", "--preset", "clicks_sgd"])
    assert done.exit_code == 0 and "kernels of clicks_sgd are compiled" in done.stdout
    refused = runner.invoke(command, ["warmup", "--preset", "best"])
    assert refused.exit_code == 2 and "clicks_sgd" in refused.stderr


def test_a_demo_whose_server_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from livefactor_server.cli.demo import run as demo

    monkeypatch.setattr(demo, "START_TIMEOUT_S", 0.0)
    result = click.testing.CliRunner().invoke(
        typer.main.get_command(app), ["demo", "--events", "1000"], catch_exceptions=False
    )
    assert result.exit_code == 1
    assert "the server did not start" in result.stderr and "Traceback" not in result.stderr
