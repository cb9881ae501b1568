"""The arguments of the commands that read a file of events to the end: tune and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BATCH_EVENTS = 512
"""`livefactor_server.tuning.progressive.BATCH_EVENTS`, which would take long to import."""

File = Annotated[
    Path,
    typer.Argument(
        exists=True, dir_okay=False, help="A csv, csv.gz or parquet file, the oldest event first."
    ),
]
User = Annotated[str, typer.Option(help="Column of user ids. Default: user_id or user.")]
Item = Annotated[str, typer.Option(help="Column of item ids. Default: item_id or item.")]
Value = Annotated[
    str,
    typer.Option(help="Column of values: ratings, or 0 and 1. Default: value or rating, if it exists."),
]
Weight = Annotated[str, typer.Option(help="Column of weights. Default: weight, if it exists.")]
EventType = Annotated[
    str,
    typer.Option(
        help="Column of event types. It is checked, but no rule learns from it. Default: event_type or type."
    ),
]
Time = Annotated[
    str,
    typer.Option(
        "--time",
        help="Column of times, by which the events are ordered. Default: time or timestamp, if it exists.",
    ),
]
Context = Annotated[
    list[str] | None,
    typer.Option(help="Column of context, such as the query. Repeat the option for more."),
]
Separator = Annotated[
    str, typer.Option(help="Divides a field of context into several features, such as ' ' for queries.")
]
ContextWeight = Annotated[float, typer.Option(min=0.0, help="Multiplies what the context adds to scores.")]
StringIds = Annotated[bool, typer.Option(help="Hash all ids as text, also those that are numbers.")]
Task = Annotated[
    str, typer.Option(help="ratings, clicks, purchases or news. Default: guessed from the values.")
]
Batch = Annotated[
    int,
    typer.Option(
        min=1, max=65_536, help="Number of events that are first judged, then learned as one record."
    ),
]
Judged = Annotated[
    int, typer.Option(min=1, help="About this many events are judged. If there are more, they are sampled.")
]
