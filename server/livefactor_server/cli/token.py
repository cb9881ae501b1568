"""`livefactor token`: makes tokens for an access file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from livefactor_server.cli.base import Group, app, complain, say

token_app = typer.Typer(
    cls=Group, no_args_is_help=True, add_help_option=False, help="Make tokens for `serve --access FILE`."
)
app.add_typer(token_app, name="token")


@token_app.command("create")
def token_create(
    name: Annotated[str, typer.Argument(help="Name of the caller, for the server's log.")],
    role: Annotated[str, typer.Option(help="Role: producer, consumer, auditor or admin.")],
    access: Annotated[Path, typer.Option(help="Access file. It is made if it does not exist.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="Model that it covers. Repeat it for more. Without it: all models."
        ),
    ] = None,
    days: Annotated[float | None, typer.Option(help="Days after which the token expires.", min=0.01)] = None,
) -> None:
    """Print a new token, and add its hash to an access file.

    The token is shown this once. Running servers take the changed file up by themselves. To revoke
    the token, delete its grant from the file.
    """
    from livefactor_server.access.grants import AccessFileError, Grant, Role, add_grant, new_token

    if role not in list(Role):
        complain(f"--role: expected one of {', '.join(Role)}, got {role!r}")
        raise typer.Exit(2)
    token = new_token()
    expires = None if days is None else time.time() + days * 86_400
    try:
        add_grant(access, Grant(name, Role(role), frozenset(model) if model else None, expires), token)
    except AccessFileError as error:
        complain(error)
        raise typer.Exit(1) from None
    say(token)
