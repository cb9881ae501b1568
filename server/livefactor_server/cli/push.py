"""`livefactor push FILE`: send a csv or parquet file, exactly once, resuming where an earlier run ended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from livefactor.channel import DEFAULT_TARGET
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from livefactor_server.cli.app import AsJson, Model, Target, app, complain, console, emit, notes
from livefactor_server.files.events import TIME_UNITS, Conversion, Rows, open_events


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
    labels: Annotated[
        bool, typer.Option(help="Send the text of ids that are hashed, so that answers give it back.")
    ] = True,
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
    if time_unit not in TIME_UNITS:
        complain("--time-unit: expected s, ms or us")
        raise typer.Exit(2)
    try:
        total, batches = open_events(file, wanted, batch)
        conversion = Conversion(string_ids, secret.encode(), time_unit).check()
        fields = {"rejected": 0, "accepted": 0}
        with Producer(
            target,
            producer or _producer_id(file, wanted, batch),
            model=model,
            secret=secret.encode(),
            labels=labels,
            batch=BatchSettings(events_max=batch, latency_ms_max=0.0),
        ) as sender:
            skipped = sender.last_sequence
            position = _send(sender, batches, total, skipped, conversion, fields)
    except ValueError as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    if as_json:
        emit({**fields, "skipped_batches": skipped, "revision": position})
    else:
        done = f"{fields['accepted']:,} events accepted, {fields['rejected']:,} rejected"
        console.print(f"{done}, {skipped} batches had been applied before; revision {position}")


def _send(
    sender: Producer,
    batches: Iterator[Rows],
    total: int,
    skipped: int,
    conversion: Conversion,
    counts: dict[str, int],
) -> int:
    shown = (
        TextColumn("push"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.speed} events/s"),
        TimeElapsedColumn(),
    )
    receipts = []
    with Progress(*shown, console=notes, transient=True) as bar:
        task = bar.add_task("", total=total or None)
        for number, rows in enumerate(batches, 1):
            if number > skipped:
                columns: dict[str, Any] = conversion.columns_with_texts(rows)
                receipts.append(sender.push(**columns))
                if len(receipts) >= 64:
                    _count(receipts.pop(0).result(), counts)
            bar.advance(task, len(rows))
        for receipt in receipts:
            _count(receipt.result(), counts)
    return sender.flush().revision


def _count(ack: Any, counts: dict[str, int]) -> None:
    counts["accepted"] += ack.accepted
    counts["rejected"] += ack.rejected_count


def _producer_id(file: Path, wanted: dict[str, str], batch: int) -> str:
    identity = repr((file.name, file.stat().st_size, sorted(wanted.items()), batch))
    return f"push-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"
