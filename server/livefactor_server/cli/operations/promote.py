"""`livefactor promote`: makes a follower the leader, after the death of its leader."""

from __future__ import annotations

from typing import Annotated

import typer

from livefactor_server.cli.base import AsJson, app, console, emit


@app.command()
def promote(
    target: Annotated[str, typer.Argument(help="Address of the follower.")],
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also while the leader still answers. What it acknowledges from then on is lost."
        ),
    ] = False,
    address: Annotated[
        str, typer.Option(help="Where others reach the follower, if not at the address above.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make a follower the leader: it begins a new term in each log, and takes updates.

    It tells the leader before, as soon as that one can be reached, to take no more.
    """
    from livefactor.models import Models

    with Models(target) as models:
        leads = models.take_lead(force=force, address=address or target)
    if as_json:
        emit([{"model": lead.model, "revision": lead.revision, "term": lead.term} for lead in leads])
        return
    for lead in leads:
        console().print(
            f"{lead.model}: {target} leads it since revision {lead.revision}, in term {lead.term}"
        )
