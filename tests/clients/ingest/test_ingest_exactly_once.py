"""An ingester that dies anywhere and starts again: every event is applied once.

The server is the fake one, which knows sequences. A crash is an exception at one of the places that
write or send.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fake_server import FakeServer
from livefactor.ingest.config import ConfigError, FieldRule, IngestConfig, Join, SourceConfig, read_config
from livefactor.ingest.dead_letters import DeadLetters, DeadLettersFull
from livefactor.ingest.ingester import Ingester
from livefactor.ingest.intake import Counts
from livefactor.ingest.journal import Entry, Journal, JournalError
from livefactor.ingest.sources import SourceError
from livefactor.ingest.sources.files import FileSource
from livefactor.pushing.producer import Producer
from livefactor.wire.keys import keys_of

IDLE_S = 0.2
FIELDS = {"user": FieldRule(("u",), "integer"), "item": FieldRule(("i",), "integer")}


class Crash(BaseException):
    """The process is gone."""


def config(fake: FakeServer, folder: Path, **changes: Any) -> IngestConfig:
    sources = tuple(
        SourceConfig(name, "file", "json", {"path": f"{name}.jsonl"}, FIELDS) for name in ("a", "b")
    )
    settings = {"batch_events": 64, "sources": sources, **changes}
    return IngestConfig(model="m", producer="p", target=fake.target, folder=folder, **settings)


def ingest(settings: IngestConfig, **options: Any) -> Counts:
    ingester = Ingester(settings, settings.folder / "state", **options)
    return ingester.run(IDLE_S)


def write(folder: Path, name: str, events: list[Any]) -> list[tuple[int, int]]:
    with (folder / f"{name}.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return [(event["u"], event["i"]) for event in events if isinstance(event, dict) and "i" in event]


def letters(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "state" / "dead-letters.jsonl").read_text().splitlines()]


def events(first: int, count: int) -> list[dict[str, int]]:
    return [{"u": first + n, "i": n % 10} for n in range(count)]


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
@pytest.mark.parametrize(
    ("place", "name"),
    [(Journal, "append"), (Producer, "push"), (Producer, "flush"), (DeadLetters, "write")],
    ids=["journal", "push", "flush", "letters"],
)
def test_a_crash_loses_and_doubles_nothing(
    fake: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: type,
    name: str,
    delay_s: float,
) -> None:
    settings = config(fake, tmp_path, delay_s=delay_s)
    expected = Counter(write(tmp_path, "a", [*events(0, 150), "no event", *events(150, 30)]))
    expected += Counter(write(tmp_path, "b", events(1000, 170)))
    original = getattr(place, name)
    for crash_at in (1, 2, 3):
        for after in (False, True):
            left = [crash_at]

            def broken(
                self: Any, *args: Any, left: list[int] = left, after: bool = after, **kwargs: Any
            ) -> Any:
                left[0] -= 1
                if left[0] == 0 and not after:
                    raise Crash
                result = original(self, *args, **kwargs)
                if left[0] == 0:
                    raise Crash
                return result

            monkeypatch.setattr(place, name, broken)
            try:
                ingest(settings)
            except Crash:
                pass
            finally:
                monkeypatch.setattr(place, name, original)
            expected += Counter(write(tmp_path, "a", events(2000 + 100 * crash_at + 50 * after, 20)))
    ingest(settings)
    assert Counter(fake.applied) == expected
    assert [each["reason"] for each in letters(tmp_path)] == ["expected a JSON object, got str"]


def test_a_file_that_grows_goes_on_where_it_ended(fake: FakeServer, tmp_path: Path) -> None:
    settings = config(fake, tmp_path)
    first = write(tmp_path, "a", events(0, 100)) + write(tmp_path, "b", [])
    assert ingest(settings).pushed == 100
    second = write(tmp_path, "a", events(100, 30))
    counts = ingest(settings)
    assert (counts.pushed, counts.again) == (30, 0)
    assert Counter(fake.applied) == Counter(first + second)


def test_a_file_that_became_shorter_is_refused(fake: FakeServer, tmp_path: Path) -> None:
    settings = config(fake, tmp_path)
    write(tmp_path, "a", events(0, 100)), write(tmp_path, "b", [])
    ingest(settings)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(SourceError, match="has become shorter"):
        ingest(settings)


def test_a_journal_that_does_not_fit_the_server_is_refused(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livefactor.ingest.journal.BYTES_MAX", 1)
    settings = config(fake, tmp_path)
    write(tmp_path, "b", [])
    for _ in range(3):
        write(tmp_path, "a", events(0, 10))
        ingest(settings)
    with pytest.raises(JournalError, match="the state folder is not its own"):
        Ingester(settings, tmp_path / "other").run(IDLE_S)
    fake.producers.clear()
    with pytest.raises(JournalError, match="was set back or made anew"):
        ingest(settings)


def test_two_ingesters_cannot_share_a_folder(fake: FakeServer, tmp_path: Path) -> None:
    with Journal(tmp_path / "state"), pytest.raises(JournalError, match="another ingester uses this folder"):
        ingest(config(fake, tmp_path))


def test_a_torn_line_of_the_journal_is_cut_off_and_a_damaged_one_is_refused(
    fake: FakeServer, tmp_path: Path
) -> None:
    settings = config(fake, tmp_path)
    expected = write(tmp_path, "a", events(0, 100)) + write(tmp_path, "b", [])
    ingest(settings)
    journal = tmp_path / "state" / "journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:20])
    expected += write(tmp_path, "a", events(100, 10))
    ingest(settings)
    assert Counter(fake.applied) == Counter(expected)
    journal.write_bytes(whole[:5] + b"?" + whole[6:] + whole)
    with pytest.raises(JournalError, match="line 1 is damaged"):
        ingest(settings)


def test_a_long_journal_is_written_anew(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livefactor.ingest.journal.BYTES_MAX", 4000)
    settings = config(fake, tmp_path)
    expected = write(tmp_path, "a", events(0, 5000)) + write(tmp_path, "b", [])
    ingest(settings)
    assert Counter(fake.applied) == Counter(expected)
    assert (tmp_path / "state" / "journal").stat().st_size < 20_000


def test_dead_letters_have_reasons_and_are_replayed(fake: FakeServer, tmp_path: Path) -> None:
    write(tmp_path, "a", [*events(0, 3), {"u": "x", "i": 1}, 7, {"u": 4, "item": 5}])
    write(tmp_path, "b", [])
    settings = config(fake, tmp_path)
    assert ingest(settings).dead == 3
    assert [(each["number"], each["reason"]) for each in letters(tmp_path)] == [
        (4, "expected a JSON object, got int"),
        (3, "user: expected an integer, got 'x'"),
        (5, "item: field 'i' is missing"),
    ]
    mended = tuple(
        SourceConfig(
            each.name, "file", "json", each.options, {**FIELDS, "item": FieldRule(("item",), "integer")}
        )
        for each in settings.sources
    )
    told: list[str] = []
    counts = ingest(config(fake, tmp_path, sources=mended), replay=True, say=told.append)
    assert (counts.pushed, counts.dead) == (1, 2)
    assert fake.applied[-1] == (4, 5)
    assert "were read again" in told[-1]
    # What failed again is a dead letter again; without letters a replay does nothing.
    assert [each["reason"] for each in letters(tmp_path)] == [
        "expected a JSON object, got int",
        "user: expected an integer, got 'x'",
    ]


def test_rows_that_the_server_rejects_are_dead_letters_too(fake: FakeServer, tmp_path: Path) -> None:
    write(tmp_path, "a", events(0, 100)), write(tmp_path, "b", [])
    fake.reject_users = {3, 70}
    settings = config(fake, tmp_path)
    assert ingest(settings).dead == 2
    assert sorted(each["event"]["user"] for each in letters(tmp_path)) == [3, 70]
    assert all(each["reason"].startswith("the server rejected the row: ") for each in letters(tmp_path))
    fake.reject_users = set()
    assert ingest(settings, replay=True).pushed == 2
    assert Counter(user for user, _ in fake.applied) == Counter(range(100))


def test_dead_letters_are_limited(fake: FakeServer, tmp_path: Path) -> None:
    write(tmp_path, "a", [{"u": "x" * 500, "i": 1}] * 3000), write(tmp_path, "b", [])
    with pytest.raises(DeadLettersFull, match="the limit of 1 MB is reached"):
        ingest(config(fake, tmp_path, dead_letters_mb_max=1))


def test_a_mapping_that_names_a_missing_field_is_refused_with_those_that_are_there(
    fake: FakeServer, tmp_path: Path
) -> None:
    write(tmp_path, "a", [{"u": 1, "sku": 2}]), write(tmp_path, "b", [])
    with pytest.raises(ConfigError, match="the first event has no field 'i'; it has u, sku"):
        ingest(config(fake, tmp_path))
    assert fake.applied == []


def test_rows_of_several_sources_go_in_the_order_of_their_times(fake: FakeServer, tmp_path: Path) -> None:
    timed = {**FIELDS, "time": FieldRule(("t",), "s")}
    sources = tuple(
        SourceConfig(name, "file", "json", {"path": f"{name}.jsonl"}, timed) for name in ("a", "b")
    )
    start = 1_700_000_000
    write(tmp_path, "a", [{"u": n, "i": 0, "t": start + n} for n in range(0, 100, 2)])
    write(tmp_path, "b", [{"u": n, "i": 0, "t": start + n} for n in range(1, 100, 2)])
    ingest(config(fake, tmp_path, sources=sources, delay_s=1.0))
    assert [user for user, _ in fake.applied] == list(range(100))


def test_events_are_joined_with_those_of_another_source(fake: FakeServer, tmp_path: Path) -> None:
    join = Join(("order",), "orders", ("id",), 0.3)
    sources = (
        SourceConfig("lines", "file", "json", {"path": "lines.jsonl"}, FIELDS, join=join),
        SourceConfig("orders", "file", "json", {"path": "orders.jsonl"}, {}),
    )
    settings = config(fake, tmp_path, sources=sources)
    (tmp_path / "lines.jsonl").write_text(
        '{"order": 1, "i": 5}\n{"order": 2, "i": 6}\n{"order": 9, "i": 7}\n'
    )
    (tmp_path / "orders.jsonl").write_text('{"id": 1, "u": 41}\n{"id": 2, "u": 42}\n')
    ingest(settings)
    assert sorted(fake.applied) == [(41, 5), (42, 6)]
    assert [each["reason"] for each in letters(tmp_path)] == [
        "join: source 'orders' had no event with the id 9 within 0.3 s"
    ]
    # After a restart the orders are still known.
    with (tmp_path / "lines.jsonl").open("a") as file:
        file.write('{"order": 2, "i": 8}\n')
    ingest(settings)
    assert sorted(fake.applied) == [(41, 5), (42, 6), (42, 8)]


def test_string_ids_and_csv(fake: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "sources.toml").write_text(
        f"""
        model = "m"
        producer = "p"
        target = "{fake.target}"
        [[sources]]
        name = "shop"
        kind = "file"
        path = "shop.csv"
        format = "csv"
        fields = {{user = "customer", item = "sku"}}
        """
    )
    (tmp_path / "shop.csv").write_text("sku,customer\ntea,ann\nmilk,bob\n")
    ingest(read_config(tmp_path / "sources.toml"))
    users, items = keys_of(["ann", "bob"]).tolist(), keys_of(["tea", "milk"]).tolist()
    assert fake.applied == list(zip(users, items, strict=True))


def test_a_source_that_fails_ends_the_ingester_with_its_error(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SourceError("gone")

    write(tmp_path, "a", events(0, 3)), write(tmp_path, "b", [])
    monkeypatch.setattr(FileSource, "run", fail)
    with pytest.raises(SourceError, match="gone"):
        ingest(config(fake, tmp_path))


def test_the_journal_gives_back_batches_of_equal_rows(tmp_path: Path) -> None:
    """Columns of one value are written as one value. Those of an older journal were not."""
    batches = [[["u"] * n, [7] * n, [1.0] * n, [1.0, *[2.0] * (n - 1)]] for n in (1, 2, 5)]
    with Journal(tmp_path / "state") as journal:
        for sequence, rows in enumerate([*batches, []], 1):
            journal.append(Entry(sequence, rows, {}))
    assert (tmp_path / "state" / "journal").read_text().count("1.0") == 6
    with Journal(tmp_path / "state") as journal:
        assert [entry.rows for entry in journal.entries] == [*batches, []]
