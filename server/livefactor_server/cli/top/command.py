"""The command `livefactor top`."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

import typer

from livefactor_server.cli.base import LOOPBACK, app, complain


@app.command()
def top(
    metrics: Annotated[
        str, typer.Argument(help="Address of the metrics port of the server.")
    ] = "http://127.0.0.1:50052/metrics",
    every: Annotated[float, typer.Option(help="Seconds between two readings.", min=0.2)] = 2.0,
) -> None:
    """Show the models of a server: events and calls a second, times, lag and memory.

    LIVEFACTOR_TOKEN and LIVEFACTOR_CA are used as by all commands. It needs the extra `top`.
    """
    try:
        from livefactor_server.cli.top.screen import Top
    except ModuleNotFoundError:
        complain('livefactor top needs textual: pip install "livefactor[top]"')
        raise typer.Exit(2) from None
    from livefactor_server.cli.top.figures import read

    parts = urlsplit(metrics)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        complain(f"metrics: expected http://host:port/metrics, got {metrics!r}")
        raise typer.Exit(2)
    token = os.environ.get("LIVEFACTOR_TOKEN", "")
    if token and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        complain("a token is not sent in plain text to another machine: use https://")
        raise typer.Exit(2)
    ca = os.environ.get("LIVEFACTOR_CA", "")
    Top(partial(read, metrics, token, "" if ca == "system" else ca), metrics, every).run()
