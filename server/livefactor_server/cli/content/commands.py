"""`livefactor push-embeddings`: vectors of items or users, from a file."""

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


@app.command("push-embeddings")
def push_embeddings(
    file: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="Vectors: a .npy, .parquet or .safetensors file."),
    ],
    ids: Annotated[
        Path | None,
        typer.Option(
            "--ids", exists=True, help="Ids of the vectors: a .npy file, or text with one id a line."
        ),
    ] = None,
    side: Annotated[str, typer.Option(help="Side of the ids: user or item.")] = "item",
    item: Annotated[
        str, typer.Option("--item", "--id", help="Column of ids. Default: user_id or item_id.")
    ] = "",
    vector: Annotated[
        str, typer.Option(help="Column or tensor of the vectors. Default: the only one, or embedding.")
    ] = "",
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Push vectors of items or users, such as embeddings of descriptions.

    The first vectors decide their dimension. A second run sets the same vectors again.
    """
    from livefactor.errors import ColumnError, InvalidArgument
    from livefactor_server.cli.content.transfer import push_vectors
    from livefactor_server.files.vectors import VectorFileError, hash_of, read_vectors

    if side not in ("user", "item"):
        complain(f"--side: expected user or item, got {side}")
        raise typer.Exit(2)
    try:
        found, vectors = read_vectors(file, ids, item or f"{side}_id", vector, string_ids)
        parts = found, vectors, hash_of(file)
        accepted, rejected, position = push_vectors(*parts, target, model, secret.encode(), side)
    except (VectorFileError, ColumnError, InvalidArgument, OSError) as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    if as_json:
        emit({"accepted": accepted, "rejected": rejected, "revision": position})
    else:
        console().print(f"{accepted:,} vectors accepted, {rejected:,} rejected; revision {position}")
    if rejected:
        raise typer.Exit(1)
