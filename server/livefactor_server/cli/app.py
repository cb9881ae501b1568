"""The `livefactor` command with all its commands."""

from __future__ import annotations

import logging

# The import of a module adds its commands to `app`.
from livefactor_server.cli import (  # noqa: F401
    challenging,
    client,
    evaluate,
    judge,
    log,
    models,
    push,
    serve,
    token,
    tune,
)
from livefactor_server.cli.base import app
from livefactor_server.cli.items import embeddings, similar  # noqa: F401
from livefactor_server.cli.operations import doctor, health  # noqa: F401
from livefactor_server.text import PlainFormatter


def main() -> None:
    """Entry point of the command."""
    # The client logs what a server said. No command but `serve` sets up logging.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PlainFormatter("livefactor: %(message)s"))
    app()
