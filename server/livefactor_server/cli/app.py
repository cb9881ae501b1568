"""The `livefactor` command with all its commands."""

from __future__ import annotations

import logging

from livefactor_server.cli.base import app
from livefactor_server.text import PlainFormatter

# The import of a module adds its commands to `app`. Their order is that of `--help`.
# ruff: isort: off
from livefactor_server.cli.models import challengers  # noqa: F401
from livefactor_server.cli.recommend import command as recommend  # noqa: F401
from livefactor_server.cli.recommend import explain  # noqa: F401
from livefactor_server.cli import snapshots, verify  # noqa: F401
from livefactor_server.cli.evaluate import command as evaluate  # noqa: F401
from livefactor_server.cli.models import judge  # noqa: F401
from livefactor_server.cli import log  # noqa: F401
from livefactor_server.cli.models import commands as models  # noqa: F401
from livefactor_server.cli.push import anonymize, command as push, ingesting  # noqa: F401
from livefactor_server.cli.models import forget, quarantine, rollback  # noqa: F401
from livefactor_server.cli.models import features as model_features, privacy, producers as model_producers  # noqa: F401
from livefactor_server.cli.push import importing  # noqa: F401
from livefactor_server.cli.serve import command as serve  # noqa: F401
from livefactor_server.cli.demo import command as demo  # noqa: F401
from livefactor_server.cli import token  # noqa: F401
from livefactor_server.cli.tune import command as tune  # noqa: F401
from livefactor_server.cli.content import commands as embeddings  # noqa: F401
from livefactor_server.cli.content import encode, features  # noqa: F401
from livefactor_server.cli import similar  # noqa: F401
from livefactor_server.cli.operations import backup, console, doctor, health, promote  # noqa: F401
from livefactor_server.cli.top import command as top  # noqa: F401
# ruff: isort: on


def main() -> None:
    """Entry point of the command."""
    # The client logs what a server said. No command but `serve` sets up logging.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PlainFormatter("livefactor: %(message)s"))
    app()
