"""`livefactor doctor`: checks the machine and the settings before a server runs on it."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from livefactor_server.cli.base import AsJson, app, console, emit, table
from livefactor_server.cli.serve.settings import ServerSettings, parameters

SETTINGS = ("data", "host", "port", "metrics_port", "memory_bytes_max")
"""The settings of a server that the checks need."""

STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def doctor(as_json: AsJson = False, **settings: Any) -> None:
    """Check whether a server can run here, and how well, and say what to do.

    Give it the options of `livefactor serve`, or their environment variables. It writes 32 MiB to
    the disk of the data folder, and removes them. The exit code is 1 if a server cannot run.
    """
    from rich.text import Text

    from livefactor_server.cli.operations.findings import State

    found = findings(ServerSettings(**settings))
    if as_json:
        emit([{**finding._asdict(), "figures": dict(finding.figures)} for finding in found])
    else:
        shown = table("", "check", "what was found")
        for finding in found:
            shown.add_row(Text(finding.state, STYLES[finding.state]), finding.check, finding.text)
            if finding.remedy:
                shown.add_row("", "", f"→ {finding.remedy}")
        console().print(shown)
    if any(finding.state is State.FAULT for finding in found):
        raise typer.Exit(1)


def findings(settings: ServerSettings) -> list[Any]:
    """The findings of all checks for a server with these settings."""
    from livefactor_server.cli.operations import disk_checks, host_checks

    found = [
        host_checks.check_versions(),
        host_checks.check_cores(),
        host_checks.check_memory(settings.memory_bytes_max),
        host_checks.check_huge_pages(),
        host_checks.check_clock(),
        host_checks.check_kernels(),
        host_checks.check_files(),
        host_checks.check_port("--port", settings.host, settings.port),
    ]
    if settings.metrics_port >= 0:
        found.append(host_checks.check_port("--metrics-port", settings.host, settings.metrics_port))
    return [*found, *disk_checks.check_folder(settings.data)]


_AS_JSON = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
doctor.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [*(each for each in parameters() if each.name in SETTINGS), _AS_JSON]
)
app.command()(doctor)
