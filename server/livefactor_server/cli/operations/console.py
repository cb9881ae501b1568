"""`livefactor console`: the pages that show a running server to people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from livefactor_server.cli.base import DEFAULT_TARGET, LOOPBACK, Target, app, complain, console


@app.command("console")
def show_console(
    target: Target = DEFAULT_TARGET,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. An address other than loopback needs TLS, or --insecure."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the pages.", min=0, max=65_535)] = 50_053,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Name that stands in the address bar of a browser; give it once for each name."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain of the pages, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the pages, PEM.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address other than loopback without TLS.")
    ] = False,
) -> None:
    """Show the models of a running server in a browser.

    Where the server asks for tokens, people log in with theirs. A token of the environment is not
    used. LIVEFACTOR_CA names the authorities of the server. It needs the extra `console`.
    """
    from livefactor_server.console.serving import Address, serve_pages

    if (tls_cert is None) != (tls_key is None):
        complain("--tls-cert and --tls-key need each other")
        raise typer.Exit(2)
    if host not in LOOPBACK and tls_cert is None and not insecure:
        complain(
            f"{host} is not loopback, so it needs TLS (--tls-cert, --tls-key); --insecure shows it in plain text"
        )
        raise typer.Exit(2)
    files = ("" if path is None else str(path) for path in (tls_cert, tls_key))
    ca = os.environ.get("LIVEFACTOR_CA", "")
    address = Address(target, host, port, tuple(name or ()), ca, *files)
    scheme = "http" if tls_cert is None else "https"
    console().print(f"livefactor console: {scheme}://{host}:{port} shows {target}; Ctrl-C ends it")
    try:
        serve_pages(address)
    except ModuleNotFoundError as error:
        complain(f'livefactor console needs {error.name}: pip install "livefactor[console]"')
        raise typer.Exit(2) from None
