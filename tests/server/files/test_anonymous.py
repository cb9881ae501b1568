"""`livefactor anonymize`: the file that it writes, its report, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.csv
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from livefactor_server.cli.app import app

EVENTS = """user_id,item_id,time
ann,mug,2024-01-05
bob,mug,2024-01-06
ann,mug,2024-02-20
cem,mug,2024-01-07
cem,tent,2024-01-08
ann,lamp,2024-01-09
bob,lamp,2024-01-10
"""


@pytest.fixture
def events(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(b"0123456789abcdef0123456789abcdef\n")
    path = tmp_path / "events.csv"
    path.write_text(EVENTS)
    return path


def run(events: Path, *options: str, out: str = "out.csv", code: int = 0) -> str:
    arguments = ["anonymize", str(events), "--key-file", str(events.parent / "key")]
    result = CliRunner().invoke(app, [*arguments, "--out", str(events.parent / out), *options])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def written(events: Path, out: str = "out.csv") -> list[tuple[str, str]]:
    table = pyarrow.csv.read_csv(events.parent / out)
    assert table.column_names == ["user_id", "item_id"]
    return [*zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)]


def test_users_get_pseudonyms_and_the_report_says_what_is_left(events: Path) -> None:
    found = json.loads(run(events, "-k", "3", "--json"))
    assert (found["users"], found["items"], found["events"]) == (3, 3, 7)
    assert (found["rare_items"], found["events_of_rare_items"], found["exposed_users"]) == (2, 3, 3)
    rows = written(events)
    assert rows == sorted(rows)
    users = {user for user, _ in rows}
    assert len(users) == 3 and all(len(user) == 32 for user in users)
    assert sorted(item for _, item in rows) == ["lamp", "lamp", "mug", "mug", "mug", "mug", "tent"]
    text = (events.parent / "out.csv").read_text()
    assert not any(name in text for name in ("ann", "bob", "cem"))


def test_rare_items_can_be_left_out_and_pseudonyms_change_with_periods(events: Path) -> None:
    text = run(events, "-k", "3", "--drop-rare", "--period-days", "30", "--time", "time", out="a.csv")
    assert "left out: 3 events of items with fewer than 3 users" in text
    assert "still rare: 0 items" in text
    rows = written(events, "a.csv")
    # The two events of ann are in two periods.
    assert len(rows) == 4 and len({user for user, _ in rows}) == 4
    run(events, "-k", "3", out="b.parquet")
    assert parquet.read_table(events.parent / "b.parquet").num_rows == 7


def test_randomised_items_are_items_of_the_file(events: Path) -> None:
    text = run(events, "--epsilon", "0.5")
    assert "epsilon is 0.5 for an event, and 1.5 for the user with most" in text
    assert {item for _, item in written(events)} <= {"mug", "tent", "lamp"}


def test_what_cannot_be_done_is_refused_and_writes_nothing(events: Path) -> None:
    assert "--period-days needs --time" in run(events, "--period-days", "3", code=2)
    assert "no item has 9 users" in run(events, "-k", "9", "--drop-rare", code=2)
    assert "no column 'who'" in run(events, "--user", "who", code=2)
    assert "at most 64, got 65" in run(events, "--epsilon", "65", code=2)
    (events.parent / "key").write_bytes(b"short\n")
    assert "at least 16 bytes, got 5" in run(events, code=2)
    assert not (events.parent / "out.csv").exists()
    (events.parent / "key").write_bytes(b"0123456789abcdef")
    (events.parent / "out.csv").write_text("mine")
    assert "out.csv exists" in run(events, code=2)
    assert (events.parent / "out.csv").read_text() == "mine"
    events.write_text("user_id,item_id\n")
    assert "there are no events" in run(events, out="c.csv", code=2)
