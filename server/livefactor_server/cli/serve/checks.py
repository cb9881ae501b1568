"""Checks of the values of settings. Each one returns the value, or refuses it with a reason."""

from __future__ import annotations

import typer

from livefactor_kernels.spec.names import PRESET_NAMES


def known_preset(value: str) -> str:
    """The name of a preset, or "".

    Raises:
        BadParameter: it is none.
    """
    if value and value not in PRESET_NAMES:
        raise typer.BadParameter(f"expected one of {', '.join(PRESET_NAMES)}, or '', got {value!r}")
    return value


def known_policy(value: str) -> str:
    """The text of a policy of retention, or "".

    Raises:
        BadParameter: it is none.
    """
    from livefactor_server.hosting.retaining.retention import Policy, PolicyError

    try:
        if value:
            Policy.of(value)
    except PolicyError as error:
        raise typer.BadParameter(str(error)) from None
    return value


def known_archive(value: str) -> str:
    """A folder, or a URL at which segments can be archived.

    Raises:
        BadParameter: it is none.
    """
    from livefactor_server.hosting.retaining.archive import BadArchive, place_of

    try:
        place_of(value)
    except BadArchive as error:
        raise typer.BadParameter(str(error)) from None
    return value
