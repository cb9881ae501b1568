"""`livefactor push`: a file is known by its content, and every fault says what was applied."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import pyarrow as pa
import pytest
import typer.main
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from livefactor import Auditor, Models, Producer, load
from livefactor_server.cli.app import app
from livefactor_server.cli.push import transfer

LINES = [
    "customer,article,stars,at",
    "7,lamp,4,1500000100",
    "7,mug,5,1500000101",
    "8,mug,nan,1500000102",
    "9,lamp,3,1500000103",
    "9,vase,1,1500000104",
]
OPTIONS = ("--user", "customer", "--item", "article", "--value", "stars", "--time", "at", "--batch", "2")

Push = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def model(server: Any) -> Iterator[str]:
    with Models(server.target) as models:
        models.create("pushed", "ratings_sgd", k=8, limits={"users_max": 1000})
        yield "pushed"
        models.delete("pushed")


@pytest.fixture
def push(server: Any, model: str) -> Push:
    """A function that pushes: it gives the exit code, the answer as JSON, and the error output."""
    runner = click.testing.CliRunner()

    def call(file: Path | str, *options: str, given: bytes | None = None) -> tuple[int, dict[str, Any], str]:
        typed = ["push", str(file), "-m", model, "--json", *options]
        result = runner.invoke(
            typer.main.get_command(app), typed, given, env={"LIVEFACTOR_TARGET": server.target}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, json.loads(result.stdout or "{}"), result.stderr

    return call


@pytest.fixture
def events(server: Any, model: str) -> Callable[[], int]:
    """The number of events that the model has learned from."""

    def count() -> int:
        with Models(server.target) as models:
            return models.describe(model).events

    return count


def numbered(rows: range) -> str:
    return "".join(f"{n % 50},i{n % 20},3,{1_500_000_000 + n}\n" for n in rows)


def test_a_second_run_sends_nothing_and_says_so(push: Push, tmp_path: Path, server: Any, model: str) -> None:
    file = tmp_path / "events.csv"
    file.write_text(LINES[0] + "\n" + numbered(range(5)))
    assert push(file, *OPTIONS)[1]["accepted"] == 5
    for name in (file, file.rename(tmp_path / "renamed.csv")):
        if name.exists():
            code, answer, _ = push(name, *OPTIONS)
            assert (code, answer["accepted"], answer["skipped"]) == (0, 0, 5)
    runner = click.testing.CliRunner()
    typed = ["push", str(tmp_path / "renamed.csv"), "-m", model, *OPTIONS, "--target", server.target]
    said = runner.invoke(typer.main.get_command(app), typed).stdout
    assert said.startswith("nothing was sent: all 5 events of ")


@pytest.mark.parametrize("first", [1, 2, 3, 7, 8])
def test_a_file_that_grows_goes_on_where_it_ended(
    push: Push, events: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Whether the last batch was full, and wherever the last mark stands."""
    monkeypatch.setattr(transfer, "MARK_EVERY", 3)
    file, have = tmp_path / "events.csv", 0
    for rows in (first, first + 1, first + 9, first + 9, first + 30):
        file.write_text(LINES[0] + "\n" + numbered(range(rows)))
        code, answer, _ = push(file, *OPTIONS)
        assert (code, answer["skipped"], answer["accepted"]) == (0, have, rows - have)
        have = rows
        assert events() == have


@pytest.mark.parametrize("at", [1, 5, 29, 31])
def test_a_file_that_was_changed_is_refused(
    push: Push, events: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(transfer, "MARK_EVERY", 3)
    file = tmp_path / "events.csv"
    lines = [LINES[0], *numbered(range(32)).splitlines()]
    file.write_text("\n".join(lines))
    assert push(file, *OPTIONS)[1]["accepted"] == 32
    for changed in (
        [*lines[: at + 1], "7,other,3,1500000999", *lines[at + 1 :]],
        [*lines[:at], *lines[at + 1 :]],
    ):
        file.write_text("\n".join([*changed, "7,further,3,1500000999"]))
        code, answer, err = push(file, *OPTIONS)
        if changed[1] == lines[1]:
            assert code == 2 and answer["accepted"] == 0 and events() == 32
            assert "rows are not those that producer push-" in err and "--producer NAME" in err
    file.write_text("\n".join(lines[:-1]))
    assert push(file, *OPTIONS)[0] == 2, "shorter than what was sent"


def test_other_options_or_other_ids_are_a_change(push: Push, events: Any, tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    text = "customer,article,stars,at\n1,2,3,1500000000\n3,4,5,1500000000\n"
    file.write_text(text)
    assert push(file, *OPTIONS)[1]["accepted"] == 2
    assert push(file, *OPTIONS[:6], "--batch", "2")[0] == 2, "without the column of times"
    assert push(file, *OPTIONS, "--string-ids")[0] == 2
    file.write_text(text + "ann,4,5,1500000000\n")
    code, _, err = push(file, *OPTIONS)
    assert code == 2 and "a new id turned a column of integers into strings" in err
    assert "customer holds strings, because line 4 has 'ann'" in err and events() == 2
    file.write_text(text + "9,4,5,1500000000\n")
    code, answer, _ = push(file, *OPTIONS[:-1], "64")
    assert (code, answer["accepted"]) == (0, 1), "the size of batches may change"


def test_another_file_with_the_same_first_event_needs_a_name(push: Push, events: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "events.csv", tmp_path / "b" / "events.csv"
    for file, last in ((first, "9,lamp,3,1500000001\n"), (second, "8,vase,3,1500000001\n")):
        file.parent.mkdir()
        file.write_text("customer,article,stars,at\n7,lamp,3,1500000000\n" + last)
    assert push(first, *OPTIONS)[1]["accepted"] == 2
    assert push(second, *OPTIONS)[0] == 2
    assert push(second, *OPTIONS, "--producer", "second")[1]["accepted"] == 2
    assert push(second, *OPTIONS, "--producer", "second")[1]["skipped"] == 2
    second.write_text("customer,article,stars,at\n1,lamp,3,1500000000\n")
    assert push(second, *OPTIONS)[1]["accepted"] == 1, "other content is another file"
    assert events() == 5


def test_a_producer_that_pushed_no_file_is_not_taken_over(
    push: Push, tmp_path: Path, server: Any, model: str
) -> None:
    with Producer(server.target, "till", model=model) as producer:
        producer.push([1], [2], 3.0)
    file = tmp_path / "events.csv"
    file.write_text("\n".join(LINES))
    code, _, err = push(file, *OPTIONS, "--producer", "till")
    assert code == 2 and "till has sent 1 batches that are not from a file" in err


def test_a_rejected_row_gives_exit_code_1_and_its_line(push: Push, tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text("\n".join(LINES))
    code, answer, _ = push(file, *OPTIONS)
    assert (code, answer["accepted"], answer["rejected"]) == (1, 4, 1)
    (reject,) = answer["rejects"]
    assert (reject["row"], reject["place"], reject["reason"]) == (3, "line 4", "NOT_FINITE")
    assert answer["ids"] == ["customer holds integers", "article holds strings, because line 2 has 'lamp'"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("7,lamp", "line 9: expected 4 fields, got 2"),
        ("7,,3,1500000000", "line 9, column article: the id is missing"),
        ("7,lamp,three,1500000000", "line 9, column stars: expected a number, got 'three'"),
        ("7,lamp,3,1500000000000", "line 9, column at: .* --time-unit ms"),
    ],
)
def test_a_fault_says_what_was_applied_and_a_corrected_file_goes_on(
    push: Push, events: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.setattr("livefactor_server.files.delimited.BLOCK_BYTES", 64)
    file = tmp_path / "events.csv"
    good, rest = LINES[0] + "\n" + numbered(range(7)), numbered(range(8, 20))
    file.write_text(good + line + "\n" + rest)
    code, answer, err = push(file, *OPTIONS)
    assert code == 2 and events() == answer["accepted"] and re.search(said, err), err
    # A line with too few fields is found before anything is sent, while it is decided what the ids
    # are.
    if "fields" not in said:
        assert f"{answer['accepted']} events of this run were applied" in err and "goes on there" in err
        assert answer["accepted"] > 0
    file.write_text(good + numbered(range(7, 8)) + rest)
    code, again, _ = push(file, *OPTIONS)
    assert (code, again["skipped"]) == (0, answer["accepted"]) and events() == 20


def test_check_reads_all_before_anything_is_sent(push: Push, events: Any, tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text(LINES[0] + "\n" + numbered(range(9)) + "7,,3,1500000000\n")
    code, _, err = push(file, *OPTIONS, "--check")
    assert code == 2 and "line 11, column article" in err and events() == 0
    file.write_text(LINES[0] + "\n" + numbered(range(9)))
    assert push(file, *OPTIONS, "--check")[1]["accepted"] == 9
    assert push("-", *OPTIONS, "--check", given=file.read_bytes())[0] == 2


def test_a_stream_is_pushed_once_and_goes_on(push: Push, events: Any, tmp_path: Path) -> None:
    text = (LINES[0] + "\n" + numbered(range(9))).encode()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(text), daemon=True).start()
    assert push(pipe, *OPTIONS)[1]["accepted"] == 9
    assert push("/dev/null", *OPTIONS)[0] == 2
    file = tmp_path / "events.csv"
    file.write_bytes(text + numbered(range(9, 12)).encode())
    assert push(file, *OPTIONS)[1]["accepted"] == 3 and events() == 12


def test_a_file_without_events_and_no_file_are_faults(push: Push, tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    for text, said in (
        (LINES[0], "has no events"),
        ("a,b\n1,2\n", "no column 'customer'; the columns are a, b"),
    ):
        file.write_text(text)
        code, _, err = push(file, *OPTIONS)
        assert code == 2 and said in err
    assert push(tmp_path / "missing.csv")[0] == 2
    assert push(tmp_path)[0] == 2


def test_parquet_gives_what_csv_gives(push: Push, server: Any, tmp_path: Path) -> None:
    rows = [line.split(",") for line in LINES[1:]]
    columns = {
        "customer": [int(row[0]) for row in rows],
        "article": [row[1] for row in rows],
        "stars": [float(row[2]) for row in rows],
        "at": pa.array([int(row[3]) * 1000 for row in rows], pa.timestamp("ms")),
    }
    packed = io.BytesIO()
    parquet.write_table(pa.table(columns), packed)
    (tmp_path / "events.pq").write_bytes(packed.getvalue())
    (tmp_path / "events.csv").write_text("\n".join(LINES) + "\n")
    states = []
    for name in ("pq", "csv"):
        with Models(server.target) as models:
            models.create(name, "ratings_sgd", k=8)
        answer = push(tmp_path / f"events.{name}", *OPTIONS, "-m", name)[1]
        assert answer["accepted"] == 4
        with Auditor(server.target, model=name) as auditor:
            auditor.fetch(tmp_path / f"{name}-copy", auditor.snapshot().snapshot_id)
        loaded = load(tmp_path / f"{name}-copy")
        states.append(
            (loaded.user_ids.tolist(), loaded.item_ids.tolist(), loaded.user_factors.tobytes(), loaded.mean)
        )
    assert states[0] == states[1]


@pytest.mark.parametrize("name", ["lists.csv", "lists.parquet"])
def test_lists_of_all_users_of_a_file_become_a_file(
    push: Push, server: Any, model: str, tmp_path: Path, name: str
) -> None:
    events, out = tmp_path / "events.csv", tmp_path / name
    events.write_text(LINES[0] + "\n" + numbered(range(2_000)).replace(",i", ",item "))
    assert push(events, *OPTIONS[:-1], "1000")[0] == 0
    runner = click.testing.CliRunner()
    typed = ["recommend", "--users", str(events), "--user", "customer", "--out", str(out), "-k", "3"]
    done = runner.invoke(
        typer.main.get_command(app), [*typed, "--json", "-m", model, "--target", server.target]
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"users": 50, "rows": 150, "out": str(out)}
    lists = parquet.read_table(out) if name.endswith(".parquet") else arrow_csv.read_csv(out)
    assert lists.column("user_id").to_pylist() == [user for user in range(50) for _ in range(3)]
    assert lists.column("rank").to_pylist() == [1, 2, 3] * 50
    assert set(lists.column("item_id").to_pylist()) <= {f"item {n}" for n in range(20)}
    both = runner.invoke(typer.main.get_command(app), [*typed, "7", "--target", server.target])
    assert both.exit_code == 2 and "name user ids or --users FILE, and not both" in both.stderr
    assert not [*tmp_path.glob("*.tmp")]
