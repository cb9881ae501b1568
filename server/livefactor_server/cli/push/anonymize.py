"""`livefactor anonymize FILE`: an export of events that says less about people."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from livefactor_server.cli.base import AsJson, app, complain, console, emit


@app.command()
def anonymize(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A csv, csv.gz or parquet file of events.")
    ],
    key_file: Annotated[
        Path,
        typer.Option(
            "--key-file", exists=True, dir_okay=False, help="File with a secret key of 16 bytes or more."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The csv or parquet file to write.")],
    user: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    time: Annotated[str, typer.Option(help="Column of times. Needed with --period-days.")] = "",
    period_days: Annotated[
        int, typer.Option(min=0, help="Users get new pseudonyms after so many days. 0: never.")
    ] = 0,
    epsilon: Annotated[
        float, typer.Option(min=0.0, help="Randomised response: epsilon of each event. 0: items stay.")
    ] = 0.0,
    k: Annotated[int, typer.Option("-k", min=1, help="How many users should stand behind an item.")] = 5,
    drop_rare: Annotated[
        bool, typer.Option("--drop-rare", help="Leave out events of items with fewer than k users.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write events with pseudonyms instead of user ids, and report what they still say.

    It needs no server. The same key gives the same pseudonyms, so keep it secret, or delete it.
    """
    from livefactor_server.files.anonymous import Settings, anonymised, write_export
    from livefactor_server.files.events import EventFileError, Events, open_file

    if period_days and not time:
        raise typer.BadParameter("--period-days needs --time")
    names = {"user_ids": user, "item_ids": item} | ({"times": time} if period_days else {})
    try:
        key = key_file.read_bytes().strip()
        settings = Settings(period_days, epsilon, k, drop_rare)
        export = anonymised(Events(open_file(file), names), key, settings)
        write_export(out, export)
    except (EventFileError, ValueError, OSError) as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    found = export.report
    if as_json:
        emit(asdict(found) | {"events": len(export.users), "left_out": export.left_out, "out": str(out)})
        return
    lines = [
        f"wrote {len(export.users):,} events of {found.users:,} pseudonyms and {found.items:,} items to {out}",
        f"left out: {export.left_out:,} events of items with fewer than {k} users",
        f"still rare: {found.rare_items:,} items with fewer than {k} users, in "
        f"{found.events_of_rare_items:,} events (the rarest item has {found.smallest:,})",
        f"exposed: {found.exposed_users:,} pseudonyms, whose set of items fewer than {k} have",
    ]
    if epsilon:
        lines.append(
            f"epsilon is {epsilon:g} for an event, and {epsilon * export.most_events:g} for the user with most"
        )
    for line in lines:
        console().print(line, markup=False)
