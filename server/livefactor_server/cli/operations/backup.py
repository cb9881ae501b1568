"""`livefactor backup` and `livefactor restore`: copies of a data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from livefactor_server.cli.base import (
    AsJson,
    KeyCommand,
    KeyFile,
    app,
    complain,
    console,
    emit,
    table,
    use_key,
)


@app.command()
def backup(
    data: Annotated[Path, typer.Argument(help="Data folder of a server, which may run.")],
    to: Annotated[Path, typer.Argument(help="Folder of the backup. A further backup adds what is new.")],
    as_json: AsJson = False,
    encryption_key_file: KeyFile = None,
    encryption_key_command: KeyCommand = "",
) -> None:
    """Copy what is new in a data folder to a backup, while the server goes on."""
    use_key(encryption_key_file, encryption_key_command)
    from livefactor_server.hosting import backup as backups

    _run(lambda: backups.back_up(data, to), as_json)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="Folder of a backup.")],
    data: Annotated[Path, typer.Argument(help="Data folder for a server. It has no models yet.")],
    as_json: AsJson = False,
    encryption_key_file: KeyFile = None,
    encryption_key_command: KeyCommand = "",
) -> None:
    """Copy a backup to a new data folder, and verify its logs."""
    use_key(encryption_key_file, encryption_key_command)
    from livefactor_server.hosting import backup as backups

    _run(lambda: backups.restore(source, data), as_json)


@app.command()
def encrypt(
    source: Annotated[Path, typer.Argument(help="Data folder that no server uses, or a backup.")],
    data: Annotated[Path, typer.Argument(help="New data folder, which is encrypted.")],
    encryption_key_file: KeyFile = None,
    encryption_key_command: KeyCommand = "",
    old_key_file: Annotated[
        Path | None, typer.Option(help="File with the key of the source, if it is encrypted.")
    ] = None,
) -> None:
    """Make an encrypted copy of a data folder, or one with another key. The models are the same."""
    from livefactor_server.hosting.backup import BackupError
    from livefactor_server.hosting.encrypting import encrypt as encrypted
    from livefactor_server.hosting.keys import BadKey, read_key
    from livefactor_server.log.store import LogError

    try:
        new, old = read_key(encryption_key_file, encryption_key_command), read_key(old_key_file, "")
        if new is None:
            raise BadKey("give the new key: --encryption-key-file or --encryption-key-command")
        for name, revision in encrypted(source, data, old, new):
            console().print(f"{name}: encrypted up to revision {revision}")
    except BadKey as error:
        complain(error)
        raise typer.Exit(2) from None
    except (BackupError, LogError) as error:
        complain(error)
        raise typer.Exit(1) from None


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
