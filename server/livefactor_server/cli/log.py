"""`livefactor log`: show the log of a model.

The command only reads, so a server may use the log at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from livefactor_server.cli.base import (
    AsJson,
    KeyCommand,
    KeyFile,
    Model,
    complain,
    emit,
    log_app,
    say,
    use_key,
)


@log_app.command("show")
def show(
    data: Annotated[Path, typer.Argument(help="Data folder of a server, or the folder of a log.")],
    model: Model = "default",
    from_revision: Annotated[int, typer.Option("--from", min=0, help="First revision to show.")] = 0,
    count: Annotated[
        int, typer.Option("-n", "--count", min=0, help="Number of records to show. 0 shows all.")
    ] = 0,
    last: Annotated[
        bool, typer.Option(help="Show the last --count records (20 by default) instead of the first.")
    ] = False,
    as_json: AsJson = False,
    encryption_key_file: KeyFile = None,
    encryption_key_command: KeyCommand = "",
) -> None:
    """List the records of a log, verify them, and say where the log is damaged."""
    use_key(encryption_key_file, encryption_key_command)
    from livefactor_server.changes import show as log_show
    from livefactor_server.log.store import LogError
    from livefactor_server.snapshots.replay import log_folder

    models = data / "models"
    folder = log_folder(models / model) if models.is_dir() else data
    try:
        shown: Iterable[dict[str, Any]] = log_show.rows(
            folder, from_revision, None if last else count or None
        )
        if last:
            shown = deque(shown, count or 20)
        damaged = _print(shown, as_json)
    except (LogError, OSError) as error:
        complain(error)
        raise typer.Exit(1) from None
    if damaged:
        raise typer.Exit(1)


def _print(shown: Iterable[dict[str, Any]], as_json: bool) -> bool:
    from livefactor_server.changes import show as log_show

    damaged = False

    def watched() -> Iterable[dict[str, Any]]:
        nonlocal damaged
        for row in shown:
            damaged = damaged or log_show.is_damaged(row)
            yield row

    if as_json:
        for row in watched():
            emit(row)
    else:
        for line in log_show.plain_lines(watched()):
            say(line)
    return damaged
