"""`livefactor tune FILE`: search for a spec on a file of events and write it for `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livefactor_server.cli import columns
from livefactor_server.cli.base import AsJson, Secret, app


@app.command()
def tune(
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
    metric: Annotated[
        str, typer.Option(help="Metric for clicks and purchases: recall (recall@10) or ndcg (NDCG@10).")
    ] = "recall",
    rule: Annotated[
        list[str] | None, typer.Option(help="Try only this rule. Repeat the option for more.")
    ] = None,
    batch: columns.Batch = columns.BATCH_EVENTS,
    part: Annotated[
        float,
        typer.Option(min=0.05, max=0.95, help="Share of the stream that the search uses: its beginning."),
    ] = 0.6,
    warm_up: Annotated[
        float,
        typer.Option(min=0.0, max=0.9, help="Share of that part that is learned before judging starts."),
    ] = 0.2,
    judged: columns.Judged = 20_000,
    trials: Annotated[
        int,
        typer.Option(min=1, help="Number of trials, with the presets and those of an interrupted run."),
    ] = 60,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Be done after this many minutes, with reading the file, the presets, the trials and the figures"
            " of the rest. 0 means no limit.",
        ),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the search. The same seed tries the same specs.")
    ] = 0,
    study: Annotated[
        Path | None,
        typer.Option(help="Folder of the trials. Default: the name of --out with the suffix .study."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The spec file. The picture is written beside it, with the suffix .svg."
        ),
    ] = Path("tuned.toml"),
    as_json: AsJson = False,
) -> None:
    """Search the rule, learning rates, k, regularisation and negatives on your own events.

    The same command resumes an interrupted search.
    """
    from livefactor_server.cli.tune import run
    from livefactor_server.files.events import CONTEXT

    names = {"user_ids": user, "item_ids": item, "values": value, "weights": weight}
    names |= {"event_types": event_type, "times": time_column}
    names |= {CONTEXT + column: column for column in context or ()}
    command = run.Command(
        file, names, string_ids, secret, task, metric, rule or [], batch, part, warm_up, judged, trials,
        minutes, seed, study or out.with_suffix(".study"), out, as_json, separator, context_weight,
    )  # fmt: skip
    run.run(command)
