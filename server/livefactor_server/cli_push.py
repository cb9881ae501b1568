"""`livefactor push FILE`: send a csv or parquet file, exactly once, resuming where an earlier run ended."""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from livefactor.batching import BatchSettings
from livefactor.channel import DEFAULT_TARGET
from livefactor.producer import Producer
from livefactor_server.cli import AsJson, Model, Target, app, complain, console, emit, notes

Column = dict[str, list[Any]]


@app.command()
def push(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="csv, csv.gz or parquet, oldest event first.")
    ],
    user: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    value: Annotated[str, typer.Option(help="Column of values (ratings, 0/1).")] = "",
    weight: Annotated[str, typer.Option(help="Column of weights.")] = "",
    event_type: Annotated[str, typer.Option(help="Column of event types, numbers.")] = "",
    time: Annotated[str, typer.Option(help="Column of times.")] = "",
    time_unit: Annotated[str, typer.Option(help="s, ms or us since 1970, of the time column.")] = "s",
    string_ids: Annotated[bool, typer.Option(help="Hash ids as text even if they are numbers.")] = False,
    secret: Annotated[str, typer.Option(envvar="LIVEFACTOR_SECRET", help="Key for string ids.")] = "",
    producer: Annotated[
        str,
        typer.Option(
            help="Producer id; the same file and id resume. Default: from the file's name and size."
        ),
    ] = "",
    batch: Annotated[
        int, typer.Option(min=1, max=65_536, help="Events a batch; keep it when resuming.")
    ] = 8192,
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Push a file of events. Run it again after a crash: batches that were applied are skipped by their sequence."""
    names = {
        "user_ids": user,
        "item_ids": item,
        "values": value,
        "weights": weight,
        "event_types": event_type,
        "times": time,
    }
    wanted = {field: column for field, column in names.items() if column}
    if time_unit not in _UNITS:
        complain("--time-unit: expected s, ms or us")
        raise typer.Exit(2)
    try:
        total, batches = _open(file, wanted, batch)
        fields = {"rejected": 0, "accepted": 0}
        with Producer(
            target,
            producer or _producer_id(file, wanted, batch),
            model=model,
            secret=secret.encode(),
            batch=BatchSettings(events_max=batch, latency_ms_max=0.0),
        ) as sender:
            skipped = sender.last_sequence
            position = _send(
                sender, batches, total, skipped, batch, _Conversion(string_ids, _UNITS[time_unit]), fields
            )
    except KeyError as error:
        complain(f"{file}: there is no column {error}")
        raise typer.Exit(2) from None
    except ValueError as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    if as_json:
        emit({**fields, "skipped_batches": skipped, "revision": position})
    else:
        done = f"{fields['accepted']:,} events accepted, {fields['rejected']:,} rejected"
        console.print(f"{done}, {skipped} batches had been applied before; revision {position}")


_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}


class _Conversion:
    """Text or numbers of a file to what `Producer.push` takes."""

    def __init__(self, string_ids: bool, unit: int) -> None:
        self._string_ids = string_ids
        self._unit = unit

    def columns(self, rows: Column) -> dict[str, Any]:
        """Convert the columns of one batch."""
        return {field: self._column(field, values) for field, values in rows.items()}

    def _column(self, field: str, values: list[Any]) -> list[Any]:
        if field in ("user_ids", "item_ids"):
            if self._string_ids:
                return [str(value) for value in values]
            if all(isinstance(value, int) or str(value).isdecimal() for value in values):
                return [int(value) for value in values]
            return [str(value) for value in values]
        if field == "times":
            return [int(value) * self._unit for value in values]
        return [int(value) if field == "event_types" else float(value) for value in values]


def _send(
    sender: Producer,
    batches: Iterator[Column],
    total: int,
    skipped: int,
    batch: int,
    conversion: _Conversion,
    counts: dict[str, int],
) -> int:
    columns = (
        TextColumn("push"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.speed} events/s"),
        TimeElapsedColumn(),
    )
    receipts = []
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task("", total=total or None)
        for number, rows in enumerate(batches, 1):
            size = len(rows["user_ids"])
            if number > skipped:
                receipts.append(sender.push(**conversion.columns(rows)))
                if len(receipts) >= 64:
                    _count(receipts.pop(0).result(), counts)
            bar.advance(task, size)
        for receipt in receipts:
            _count(receipt.result(), counts)
    return sender.flush().revision


def _count(ack: Any, counts: dict[str, int]) -> None:
    counts["accepted"] += ack.accepted
    counts["rejected"] += ack.rejected_count


def _producer_id(file: Path, wanted: dict[str, str], batch: int) -> str:
    identity = repr((file.name, file.stat().st_size, sorted(wanted.items()), batch))
    return f"push-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"


def _open(file: Path, wanted: dict[str, str], batch: int) -> tuple[int, Iterator[Column]]:
    if file.suffix == ".parquet":
        return _open_parquet(file, wanted, batch)
    return 0, _csv_batches(file, wanted, batch)


def _csv_batches(file: Path, wanted: dict[str, str], batch: int) -> Iterator[Column]:
    opener: Any = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8", newline="") as text:
        reader = csv.reader(text)
        header = next(reader, [])
        places = {}
        for field, column in wanted.items():
            if column not in header:
                raise KeyError(column)
            places[field] = header.index(column)
        rows: Column = {field: [] for field in wanted}
        for line in reader:
            if len(line) != len(header):
                raise ValueError(f"line {reader.line_num}: expected {len(header)} fields, got {len(line)}")
            for field, place in places.items():
                rows[field].append(line[place])
            if len(rows["user_ids"]) == batch:
                yield rows
                rows = {field: [] for field in wanted}
        if rows["user_ids"]:
            yield rows


def _open_parquet(file: Path, wanted: dict[str, str], batch: int) -> tuple[int, Iterator[Column]]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ValueError('reading parquet needs pyarrow: pip install "livefactor[parquet]"') from None
    source = parquet.ParquetFile(file)
    for column in wanted.values():
        if column not in source.schema_arrow.names:
            raise KeyError(column)

    def batches() -> Iterator[Column]:
        for part in source.iter_batches(batch, columns=list(wanted.values())):
            yield {field: part.column(column).to_pylist() for field, column in wanted.items()}

    return source.metadata.num_rows, batches()
