"""`livefactor models producers`: who sends to a model, and how far each one is behind."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from livefactor_server.cli.base import DEFAULT_TARGET, AsJson, Target, console, emit, models_app, table


@models_app.command("producers")
def models_producers(
    name: Annotated[str, typer.Argument(help="The model.")] = "default",
    count: Annotated[int, typer.Option("-n", min=1, max=1000, help="Most producers to list.")] = 20,
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """List the producers that sent last, and how far each one is behind.

    `waiting` counts batches that are not applied yet. `behind` is how old the last event was when
    it arrived. Both are counted from the start of the server on.
    """
    from livefactor.models import Models

    with Models(target) as models:
        found = models.producers(name, limit=count)
    if as_json:
        emit([asdict(each) | {"behind_s": each.behind_s} for each in found])
        return
    grid = table("producer", "last batch", "sequence", "waiting", "behind", "rejected rows")
    for each in found:
        arrived = "–"
        if each.arrived_us is not None:
            arrived = f"{datetime.fromtimestamp(each.arrived_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"
        behind = "–" if each.behind_s is None else f"{each.behind_s:,.1f} s"
        grid.add_row(each.id, arrived, str(each.last_sequence), str(each.waiting), behind, str(each.rejected))
    console().print(grid)
