"""`livefactor serve` and `livefactor warmup`."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from livefactor_kernels.spec.names import PRESET_NAMES
from livefactor_server.cli.base import app, complain, console, progress
from livefactor_server.cli.serve.settings import ServerSettings, parameters, unknown_variables

PortFile = Annotated[
    Path | None,
    typer.Option(help="Write the ports of gRPC and metrics here, one per line, when the server is ready."),
]


def serve(port_file: PortFile = None, **settings: Any) -> None:
    """Serve the models of a data folder until SIGTERM.

    Each setting is also an environment variable, for example LIVEFACTOR_PORT for --port.
    """
    if unknown := unknown_variables(os.environ):
        for line in unknown:
            complain(line)
        raise typer.Exit(2)
    from livefactor_server.cli.serve.process import run_server

    raise typer.Exit(run_server(ServerSettings(**settings), port_file))


_PORT_FILE = inspect.Parameter("port_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=PortFile)
serve.__signature__ = inspect.Signature([*parameters(), _PORT_FILE])  # type: ignore[attr-defined]
app.command()(serve)


@app.command()
def warmup(
    preset: Annotated[
        list[str] | None,
        typer.Option(help="Compile for this preset. Repeat the option for more. Default: all presets."),
    ] = None,
    backend: Annotated[str, typer.Option(help="Backend to compile for: cpu, cuda or auto.")] = "cpu",
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Compile for every processor of the level x86-64-v3, into the installed package. So a copy of"
            " the package, as in an image, starts at once on other machines.",
        ),
    ] = False,
) -> None:
    """Compile the kernels of presets, so that the first start of a server does not wait for them.

    Compiled kernels are kept on disk. A server whose spec needs other kernels compiles those.
    """
    for name in preset or []:
        if name not in PRESET_NAMES:
            complain(f"--preset: expected one of {', '.join(PRESET_NAMES)}, got {name!r}")
            raise typer.Exit(2)
    if baseline and backend != "cpu":
        complain(f"--baseline: expected --backend cpu, got {backend!r}")
        raise typer.Exit(2)
    import time

    from livefactor_kernels.backend import BackendUnavailable, choose_backend
    from livefactor_kernels.spec.presets import preset as spec_of
    from livefactor_server.hosting import baseline as baselines
    from livefactor_server.hosting.compiling import compile_missing
    from livefactor_server.hosting.kernels import Plan

    names = preset or list(PRESET_NAMES)
    began = time.monotonic()
    try:
        plan = Plan(choose_backend(backend), tuple((f"preset {name}", spec_of(name)) for name in names))
    except (BackendUnavailable, ValueError) as error:
        complain(error)
        raise typer.Exit(1) from None
    with progress() as bar:
        task = bar.add_task("looking for compiled kernels", total=None)

        def report(name: str, number: int, total: int) -> None:
            text = f"compiling {name} ({number} of {total})"
            bar.update(task, description=text, completed=number - 1, total=total)

        if baseline:
            try:
                folder = baselines.make(plan, report)
            except (baselines.BaselineError, OSError) as error:
                complain(error)
                raise typer.Exit(1) from None
        else:
            compile_missing(plan, report)
            for step in plan.rest():
                step.run()
    where = f" into {folder}" if baseline else ""
    console().print(
        f"the kernels of {', '.join(names)} are compiled{where}; this took {time.monotonic() - began:.1f} s",
        soft_wrap=True,
    )
