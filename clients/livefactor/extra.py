"""The server extra: finds what the server registered, without an import of the server."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from livefactor.errors import ServerMissing

INSTALL_HINT = 'pip install "livefactor[server]"'


def load_entry_point(group: str) -> Callable[..., Any]:
    """Load what the server registered under `group`.

    Raises ServerMissing, which names the pip command.
    """
    found = list(entry_points(group=group))
    if not found:
        raise ServerMissing(f"the server is not installed: {INSTALL_HINT}")
    try:
        return found[0].load()  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        # The code of the server is in every wheel; the packages it needs come with the extra.
        raise ServerMissing(f"the server's module {error.name} is not installed: {INSTALL_HINT}") from error
