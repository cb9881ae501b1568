"""`livefactor quarantine`: lists, accepts and drops the batches that wait for a decision."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from livefactor_server.cli.base import DEFAULT_TARGET, AsJson, Model, Target, app, console, emit, table

quarantine_app = typer.Typer(help="Batches that are unlike the others and wait.", no_args_is_help=True)
app.add_typer(quarantine_app, name="quarantine")

Revisions = Annotated[list[int], typer.Argument(help="Revisions of the batches, as the list has them.")]


@quarantine_app.command("list")
def quarantine_list(
    model: Model = "default", target: Target = DEFAULT_TARGET, as_json: AsJson = False
) -> None:
    """List the batches that wait, the oldest first."""
    from livefactor.models import Models

    with Models(target) as models:
        found = models.quarantine(model)
    if as_json:
        emit([asdict(each) for each in found])
        return
    grid = table("revision", "producer", "sequence", "arrived", "rows", "outlier", "value", "bound")
    for each in found:
        arrived = f"{datetime.fromtimestamp(each.time_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"
        known = (each.producer, str(each.sequence), arrived)
        figures = (each.figure, f"{each.value:.4g}", f"{each.bound:.4g}")
        if not each.in_log:
            known, figures = ("–", "–", "–"), ("not in the log", "–", "–")
        grid.add_row(str(each.revision), *known, str(each.rows), *figures)
    console().print(grid)


@quarantine_app.command("accept")
def quarantine_accept(
    revisions: Revisions, model: Model = "default", target: Target = DEFAULT_TARGET, as_json: AsJson = False
) -> None:
    """Let the model learn batches now."""
    _decide(revisions, True, model, target, as_json)


@quarantine_app.command("drop")
def quarantine_drop(
    revisions: Revisions, model: Model = "default", target: Target = DEFAULT_TARGET, as_json: AsJson = False
) -> None:
    """Drop batches: the model never learns them. They stay in the log."""
    _decide(revisions, False, model, target, as_json)


def _decide(revisions: list[int], accept: bool, model: str, target: str, as_json: bool) -> None:
    from livefactor.models import Models

    with Models(target) as models:
        made = models.decide(revisions, accept, model)
    if as_json:
        emit(
            [
                {
                    "revision": each.revision,
                    "decided_at": each.position.revision,
                    "accepted": each.accepted,
                    "rejected": each.rejected,
                }
                for each in made
            ]
        )
        return
    for each in made:
        what = f"accepted, {each.accepted} rows learned, {each.rejected} rejected" if accept else "dropped"
        console().print(f"batch at revision {each.revision}: {what}; revision {each.position.revision}")
