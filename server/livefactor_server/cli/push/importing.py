"""`livefactor import`: a model begins with the factors of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    Model,
    Secret,
    StringIds,
    Target,
    app,
    complain,
    console,
    emit,
)

_IDS = "Ids of the {}: a .npy file, or text with one id a line. Default: the array {}_ids of FILE."


@app.command("import")
def import_factors(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="Factors: a .npz or .safetensors file. With --svd: events."
        ),
    ],
    svd: Annotated[
        int,
        typer.Option("--svd", min=0, help="Factorise a csv or parquet file of events to so many factors."),
    ] = 0,
    user_ids: Annotated[Path | None, typer.Option(exists=True, help=_IDS.format("users", "user"))] = None,
    item_ids: Annotated[Path | None, typer.Option(exists=True, help=_IDS.format("items", "item"))] = None,
    user: Annotated[str, typer.Option(help="With --svd: column of user ids.")] = "",
    item: Annotated[str, typer.Option(help="With --svd: column of item ids.")] = "",
    value: Annotated[str, typer.Option(help="With --svd: column of values.")] = "",
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Let a model without events begin with the factors of another model.

    The arrays are named as implicit and LightFM name them: user_factors or user_embeddings,
    user_biases, user_ids, and the same for items.
    """
    from livefactor.errors import ColumnError, InvalidArgument, NotFound
    from livefactor_server.cli.push.factors import HasEvents, push_factors
    from livefactor_server.files.events import EventFileError
    from livefactor_server.files.factors import read_factors, svd_factors
    from livefactor_server.files.vectors import VectorFileError
    from livefactor_server.tuning.events import read_events

    key, texts = secret.encode(), dict[str, list[str]]()
    try:
        if svd:
            names = {"user_ids": user, "item_ids": item, "values": value}
            events = read_events(file, names, string_ids, key, with_texts=not key)
            stream, texts = events.stream, events.texts or {}
            parts = svd_factors(stream.user_keys, stream.item_keys, stream.values, svd)
        else:
            parts = read_factors(file, {"user": user_ids, "item": item_ids}, string_ids)
        done = push_factors(parts, target, model, key, texts)
    except (VectorFileError, EventFileError, ColumnError, InvalidArgument, HasEvents, OSError) as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    except NotFound as error:
        complain(str(error))
        raise typer.Exit(2) from None
    if as_json:
        emit(done._asdict())
    else:
        console().print(
            f"{done.users:,} users and {done.items:,} items begin with {done.dimension} factors, "
            f"{done.rejected:,} rejected; revision {done.revision}"
        )
    if done.rejected:
        raise typer.Exit(1)
