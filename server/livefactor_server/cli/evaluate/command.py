"""`livefactor evaluate FILE`: how good presets and specs are on a file of events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livefactor_server.cli import columns
from livefactor_server.cli.base import AsJson, Secret, app


@app.command()
def evaluate(
    file: columns.File,
    user: columns.User = "",
    item: columns.Item = "",
    value: columns.Value = "",
    weight: columns.Weight = "",
    event_type: columns.EventType = "",
    time_column: columns.Time = "",
    context: columns.Context = None,
    separator: columns.Separator = "",
    context_weight: columns.ContextWeight = 1.0,
    string_ids: columns.StringIds = False,
    secret: Secret = "",
    task: columns.Task = "",
    preset: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluate this preset. Repeat the option for more. Default: all that fit the values."
        ),
    ] = None,
    spec: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help="Evaluate the spec of this file. Repeat the option for more."
        ),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            help="Judge this share at the end of the file without learning it. With 0 each batch is judged, then"
            " learned.",
        ),
    ] = 0.0,
    warm_up: Annotated[
        float,
        typer.Option(min=0.0, max=0.9, help="Share of the file that is learned before judging starts."),
    ] = 0.1,
    batch: columns.Batch = columns.BATCH_EVENTS,
    judged: columns.Judged = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample of judged events.")] = 0,
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture (SVG): each method over the judged events.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page (HTML): figures, pictures, groups of events and settings."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how good livefactor is on your own events, beside most-popular and implicit's iALS.

    It needs no server. iALS is there with pip install "livefactor[bench]".
    """
    from livefactor_server.cli.evaluate import comparison
    from livefactor_server.files.events import CONTEXT

    names = {"user_ids": user, "item_ids": item, "values": value, "weights": weight}
    names |= {"event_types": event_type, "times": time_column}
    names |= {CONTEXT + column: column for column in context or ()}
    comparison.run(
        comparison.Command(
            file, names, string_ids, secret, task, preset or [], spec or [], held_out, warm_up, batch, judged,
            seed, picture, report, as_json, separator, context_weight,
        )
    )  # fmt: skip
