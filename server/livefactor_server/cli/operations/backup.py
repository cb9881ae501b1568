"""`livefactor backup` and `livefactor restore`: copies of a data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from livefactor_server.cli.base import AsJson, app, complain, console, emit, table


@app.command()
def backup(
    data: Annotated[Path, typer.Argument(help="Data folder of a server, which may run.")],
    to: Annotated[Path, typer.Argument(help="Folder of the backup. A further backup adds what is new.")],
    as_json: AsJson = False,
) -> None:
    """Copy what is new in a data folder to a backup, while the server goes on."""
    from livefactor_server.hosting import backup as backups

    _run(lambda: backups.back_up(data, to), as_json)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="Folder of a backup.")],
    data: Annotated[Path, typer.Argument(help="Data folder for a server. It has no models yet.")],
    as_json: AsJson = False,
) -> None:
    """Copy a backup to a new data folder, and verify its logs."""
    from livefactor_server.hosting import backup as backups

    _run(lambda: backups.restore(source, data), as_json)


def _run(work: Any, as_json: bool) -> None:
    from livefactor_server.hosting.backup import BackupError
    from livefactor_server.log.store import LogError

    try:
        made = work()
    except (BackupError, LogError) as error:
        complain(error)
        raise typer.Exit(1) from None
    if as_json:
        emit([vars(each) for each in made])
        return
    shown = table("model", "revision", "newest snapshot", "copied")
    for each in made:
        copied = f"{each.copied_bytes / 2**20:,.1f} MiB in {each.copied_files} files"
        shown.add_row(each.model, str(each.revision), each.snapshot or "none", copied)
    console().print(shown)
