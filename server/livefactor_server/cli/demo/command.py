"""`livefactor demo`: the command. `run` does the work, and imports what takes long."""

from __future__ import annotations

from typing import Annotated

import typer

from livefactor_server.cli.base import app, complain, console


@app.command()
def demo(
    events: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many events. Default: the whole year.")
    ] = None,
) -> None:
    """Stream one year of a real shop's purchases through a server.

    The demo shows how a customer's list changes, kills the server, and checks that nothing was
    lost.
    """
    from livefactor_server.cli.demo.run import run_demo

    try:
        code = run_demo(console(), events)
    except RuntimeError as error:
        complain(str(error))
        code = 1
    raise typer.Exit(code)
