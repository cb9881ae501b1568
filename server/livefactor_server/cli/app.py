"""The `livefactor` command with all its commands."""

from __future__ import annotations

# The import of a module adds its commands to `app`.
from livefactor_server.cli import client, evaluate, judge, log, models, push, serve, tune  # noqa: F401
from livefactor_server.cli.base import app


def main() -> None:
    """Entry point of the command."""
    app()
