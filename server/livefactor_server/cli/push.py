"""`livefactor push FILE`: send a csv or parquet file exactly once.

A second run resumes where the first one ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    Model,
    Secret,
    Target,
    app,
    complain,
    console,
    emit,
    progress,
    rate,
)

if TYPE_CHECKING:
    from livefactor.pushing.batching import Receipt
    from livefactor.pushing.producer import Producer
    from livefactor_server.files.events import Conversion, Rows

RECEIPTS_MAX = 64
"""Maximum number of batches that wait for their acknowledgement."""


@app.command()
def push(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="A csv, csv.gz or parquet file, the oldest event first."
        ),
    ],
    user: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    value: Annotated[str, typer.Option(help="Column of values: ratings, or 0 and 1.")] = "",
    weight: Annotated[str, typer.Option(help="Column of weights.")] = "",
    event_type: Annotated[str, typer.Option(help="Column of event types, which are numbers.")] = "",
    time: Annotated[str, typer.Option(help="Column of times.")] = "",
    time_unit: Annotated[str, typer.Option(help="Unit of the times: s, ms or us since 1970.")] = "s",
    string_ids: Annotated[
        bool, typer.Option(help="Hash all ids as text, also those that are numbers.")
    ] = False,
    secret: Secret = "",
    labels: Annotated[
        bool, typer.Option(help="Send the text of ids that are hashed, so that answers give it back.")
    ] = True,
    producer: Annotated[
        str,
        typer.Option(
            help="Id of the producer. The same file and id resume. Default: made from the name and the size of the file."
        ),
    ] = "",
    batch: Annotated[
        int,
        typer.Option(min=1, max=65_536, help="Number of events in a batch. Use the same number to resume."),
    ] = 8192,
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Push a file of events exactly once.

    After a crash or an interrupt, the same command resumes: it skips the batches that were applied.
    """
    names = {
        "user_ids": user,
        "item_ids": item,
        "values": value,
        "weights": weight,
        "event_types": event_type,
        "times": time,
    }
    wanted = {field: column for field, column in names.items() if column}
    from livefactor.pushing.batching import BatchSettings
    from livefactor.pushing.producer import Producer
    from livefactor_server.files.events import TIME_UNITS, Conversion, open_events

    if time_unit not in TIME_UNITS:
        complain("--time-unit: expected s, ms or us")
        raise typer.Exit(2)
    sent = Sent()
    try:
        total, batches = open_events(file, wanted, batch)
        conversion = Conversion(string_ids, secret.encode(), time_unit).check()
        with Producer(
            target,
            producer or _producer_id(file, wanted, batch),
            model=model,
            secret=secret.encode(),
            labels=labels,
            batch=BatchSettings(events_max=batch, latency_ms_max=0.0),
        ) as sender:
            skipped = sender.last_sequence
            position = _send(sender, batches, total or _lines(file), skipped, conversion, sent)
    except ValueError as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        sent.collect_done()
        complain(
            f"interrupted after {sent.accepted + sent.rejected:,} events of this run were acknowledged;"
            " the same command resumes"
        )
        raise typer.Exit(130) from None
    if as_json:
        counts = {"accepted": sent.accepted, "rejected": sent.rejected}
        emit({**counts, "skipped_batches": skipped, "revision": position})
    else:
        done = f"{sent.accepted:,} events accepted, {sent.rejected:,} rejected"
        console().print(f"{done}, {skipped} batches had been applied before; revision {position}")


@dataclass(slots=True)
class Sent:
    """What was pushed.

    `accepted` and `rejected` count events of acknowledged batches. `receipts` are the batches that
    still wait for an acknowledgement.
    """

    accepted: int = 0
    rejected: int = 0
    receipts: list[Receipt] = field(default_factory=list)

    def collect(self, waiting_max: int) -> None:
        """Counts the first acknowledgements, until at most `waiting_max` receipts are left."""
        while len(self.receipts) > waiting_max:
            self._count_first()

    def collect_done(self) -> None:
        """Counts the acknowledgements that have arrived. It does not wait."""
        while self.receipts and self.receipts[0].done() and self.receipts[0].exception(0) is None:
            self._count_first()

    def _count_first(self) -> None:
        ack = self.receipts[0].result()
        self.receipts.pop(0)
        self.accepted += ack.accepted
        self.rejected += ack.rejected_count


def _send(
    sender: Producer, batches: Iterator[Rows], total: int, skipped: int, conversion: Conversion, sent: Sent
) -> int:
    import time

    from rich.progress import TextColumn, TimeElapsedColumn

    began = time.monotonic()
    rows_sent = 0
    with progress(TextColumn("{task.fields[rate]}"), TimeElapsedColumn()) as bar:
        task = bar.add_task("push", total=total or None, rate="")
        for number, rows in enumerate(batches, 1):
            if number > skipped:
                columns: dict[str, Any] = conversion.columns_with_texts(rows)
                sent.receipts.append(sender.push(**columns))
                sent.collect(RECEIPTS_MAX)
                rows_sent += len(rows)
            bar.update(task, advance=len(rows), rate=rate(rows_sent / (time.monotonic() - began)))
        sent.collect(0)
    return sender.flush().revision


def _lines(file: Path) -> int:
    """The approximate number of events in a csv file.

    It is 0 for a compressed file, which counting would decompress twice.
    """
    if file.suffix == ".gz":
        return 0
    with file.open("rb") as data:
        lines = sum(block.count(b"\n") for block in iter(lambda: data.read(1 << 20), b""))
    return max(0, lines - 1)


def _producer_id(file: Path, wanted: dict[str, str], batch: int) -> str:
    identity = repr((file.name, file.stat().st_size, sorted(wanted.items()), batch))
    return f"push-{hashlib.sha256(identity.encode()).hexdigest()[:24]}"
