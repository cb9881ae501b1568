"""`livefactor models privacy`: the budget of differential privacy, and what of it is spent."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from livefactor_server.cli.base import DEFAULT_TARGET, AsJson, Target, console, emit, models_app, table

if TYPE_CHECKING:
    from livefactor.results.privacy import PrivacyBudget


@models_app.command("privacy")
def models_privacy(
    name: Annotated[str, typer.Argument(help="The model.")] = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Show the budget of differential privacy, and what of it is spent.

    The epsilons are those of a user who contributed to every release.
    """
    from livefactor.models import Models

    with Models(target) as models:
        found = models.privacy(name)
    if as_json:
        emit(asdict(found))
        return
    grid = table("", "releases", "epsilon")
    grid.add_row("spent in this window", str(found.releases), f"{found.spent_epsilon:.4f}")
    grid.add_row("budget of a window", str(found.releases_max), f"{found.epsilon:.4f}")
    grid.add_row("spent in all windows", str(found.all_releases), f"{found.all_epsilon:.4f}")
    console().print(grid)
    console().print(f"delta {found.delta:g}; window {_window(found)}")
    console().print(
        f"a contribution has a norm of at most {found.clip:g}, and the noise a standard deviation of "
        f"{found.noise * found.clip:g}; the next release has number {found.next_release}"
    )


def _window(found: PrivacyBudget) -> str:
    if not found.window_seconds:
        return "without an end"
    ends = (found.window + 1) * found.window_seconds
    try:
        until = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError):
        until = f"{ends} s after 1970"
    return f"of {found.window_seconds} s, until {until}"
