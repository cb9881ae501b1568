"""`livefactor models rollback`: takes a model back in place."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    Target,
    complain,
    models_app,
    progress,
)
from livefactor_server.cli.models.commands import show_description

_BATCHES = re.compile(r"(.+):(\d+)(?:-(\d+))?")


@models_app.command("rollback")
def models_rollback(
    name: Annotated[str, typer.Argument(help="The model.")],
    to: Annotated[
        str,
        typer.Option(help="Revision that comes back, or a time in UTC such as 2026-11-30T02:00:00."),
    ] = "",
    without: Annotated[
        list[str] | None,
        typer.Option(help="Batches to take out: PRODUCER:SEQUENCE or PRODUCER:FIRST-LAST. Repeatable."),
    ] = None,
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Take a model back to an earlier state, or take batches out of it, while it serves.

    The record of it stays in the log. Batches that arrive meanwhile stay, too.
    """
    if bool(to) == bool(without):
        complain("name --to or --without, and not both")
        raise typer.Exit(2)
    from rich.progress import TextColumn

    from livefactor.models import Models

    options: dict[str, Any] = _moment(to) if to else {"without": [_batches(each) for each in without or []]}
    with (
        Models(target) as models,
        progress(TextColumn("{task.completed} of {task.total} revisions")) as bar,
    ):
        task = bar.add_task("rolling back", total=None)
        found = models.roll_back(
            name, on_progress=lambda at, last: bar.update(task, total=last, completed=at), **options
        )
    show_description(found, as_json)


def _moment(text: str) -> dict[str, int]:
    if text.isascii() and text.isdigit():
        return {"to_revision": int(text)}
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        complain(f"--to: expected a revision or a time such as 2026-11-30T02:00:00, got {text!r}")
        raise typer.Exit(2) from None
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return {"to_time_us": int(aware.timestamp() * 1e6)}


def _batches(text: str) -> tuple[str, int, int]:
    found = _BATCHES.fullmatch(text)
    if found is None:
        complain(f"--without: expected PRODUCER:SEQUENCE or PRODUCER:FIRST-LAST, got {text!r}")
        raise typer.Exit(2)
    first = int(found[2])
    return found[1], first, int(found[3] or first)
