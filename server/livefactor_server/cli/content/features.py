"""`livefactor push-features`: features of users or items, from a file."""

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


@app.command("push-features")
def push_features(
    file: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="A csv, csv.gz or parquet file, one row an id."),
    ],
    side: Annotated[str, typer.Option(help="Side of the ids: user or item.")] = "item",
    key: Annotated[
        str, typer.Option("--id", help="Column of ids. Default: user_id or item_id, after the side.")
    ] = "",
    text: Annotated[
        str, typer.Option(help="Columns of numbers that name features, as texts do: zip,year.")
    ] = "",
    separator: Annotated[
        str, typer.Option(help="Divides the texts of a field, such as | in Action|Comedy.")
    ] = "",
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Push features of items or users: every column beside that of ids is a feature.

    A text t of column c is the feature c:t. A number is the weight of the feature c. The model
    needs features (models create --features). A second run sets the same features again.
    """
    from livefactor.errors import ColumnError, InvalidArgument
    from livefactor_server.cli.content.transfer import push_bags
    from livefactor_server.files.features import FeatureFileError, read_features

    if side not in ("user", "item"):
        complain(f"--side: expected user or item, got {side}")
        raise typer.Exit(2)
    try:
        texts = [name.strip() for name in text.split(",") if name.strip()]
        ids, columns = read_features(file, key or f"{side}_id", texts, separator, string_ids)
        accepted, rejected, revision = push_bags(side, ids, columns, target, model, secret.encode())
    except (FeatureFileError, ColumnError, InvalidArgument, OSError) as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    if as_json:
        emit({"accepted": accepted, "rejected": rejected, "revision": revision})
    else:
        console().print(
            f"features of {accepted:,} {side}s accepted, {rejected:,} rejected; revision {revision}"
        )
    if rejected:
        raise typer.Exit(1)
