"""`livefactor models features` and `drop-features`: what features carry weight, and which go."""

from __future__ import annotations

from typing import Annotated

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    Target,
    complain,
    console,
    emit,
    models_app,
    table,
)

Side = Annotated[str, typer.Option(help="Whose features: user, item or context.")]


def _require_side(side: str) -> None:
    if side not in ("user", "item", "context"):
        complain(f"--side: expected user, item or context, got {side}")
        raise typer.Exit(2)


@models_app.command("features")
def models_features(
    name: Annotated[str, typer.Argument(help="The model.")] = "default",
    side: Side = "item",
    count: Annotated[int, typer.Option("-n", min=1, max=4096, help="Most features to list.")] = 20,
    weakest: Annotated[
        bool, typer.Option("--weakest", help="List those that carry the least weight.")
    ] = False,
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """List the features that carry the most weight, or the least.

    The strength is the length of the row of factors of a feature. 0: nothing was learned of it.

    Of context it says how far the events with the feature are from other events; 1 is chance.
    """
    from livefactor.models import Models

    _require_side(side)
    with Models(target) as models:
        found = models.features(name, side, limit=count, weakest_first=weakest)
    if as_json:
        emit([{"name": each.name, "ids": each.ids, "strength": each.strength} for each in found])
        return
    grid = table("feature", "events" if side == "context" else f"{side}s", "strength")
    for each in found:
        grid.add_row(each.name, str(each.ids), f"{each.strength:.4g}")
    console().print(grid)


@models_app.command("drop-features")
def models_drop_features(
    name: Annotated[str, typer.Argument(help="The model.")],
    features: Annotated[list[str], typer.Argument(help="Names of features.")],
    side: Side = "item",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Take features out of all users or items, or forget features of context. It is in the log."""
    from livefactor.pushing.producer import Producer

    _require_side(side)
    with Producer(target, "drop-features", model=name) as producer:
        ack = producer.drop_features(side, features).result()
    if as_json:
        emit({"dropped": ack.accepted, "revision": ack.position.revision})
        return
    console().print(f"dropped; revision {ack.position.revision}")
