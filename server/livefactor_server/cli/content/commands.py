"""`livefactor push-embeddings` and `livefactor encode`: vectors of items, from files or texts."""

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
    progress,
)

Item = Annotated[str, typer.Option(help="Column of item ids.")]


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
    item: Item = "item_id",
    vector: Annotated[
        str, typer.Option(help="Column or tensor of the vectors. Default: the only one, or embedding.")
    ] = "",
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Push vectors of items, such as embeddings of their descriptions.

    The first vectors decide their dimension. A second run sets the same vectors again.
    """
    from livefactor.errors import ColumnError, InvalidArgument
    from livefactor_server.cli.content.transfer import push_vectors
    from livefactor_server.files.vectors import VectorFileError, read_vectors

    try:
        found, vectors = read_vectors(file, ids, item, vector, string_ids)
        accepted, rejected, position = push_vectors(found, vectors, target, model, secret.encode())
    except (VectorFileError, ColumnError, InvalidArgument, OSError) as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    if as_json:
        emit({"accepted": accepted, "rejected": rejected, "revision": position})
    else:
        console().print(f"{accepted:,} vectors accepted, {rejected:,} rejected; revision {position}")
    if rejected:
        raise typer.Exit(1)


@app.command()
def encode(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="A csv, csv.gz or parquet file of items.")
    ],
    text: Annotated[str, typer.Option(help="Columns of text, separated by commas: title,description.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The parquet file to write. Default: FILE.vectors.parquet."),
    ] = None,
    item: Item = "item_id",
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a sentence-transformers model. Default: MiniLM, which needs no network."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of texts that are encoded at once.")] = 64,
    string_ids: StringIds = False,
    as_json: AsJson = False,
) -> None:
    """Encode texts of items as vectors with a pretrained language model, for push-embeddings.

    It needs the extra `text` and no server.
    """
    from rich.progress import TextColumn, TimeRemainingColumn

    from livefactor_server.files.encoding import Encoder, EncoderError
    from livefactor_server.files.vectors import VectorFileError, read_texts, write_vectors

    target = out or file.with_name(f"{file.name.split('.')[0]}.vectors.parquet")
    try:
        columns = [name.strip() for name in text.split(",") if name.strip()]
        ids, texts = read_texts(file, item, columns, string_ids)
        model = Encoder(encoder)
        with progress(TextColumn("{task.completed:,} of {task.total:,} texts"), TimeRemainingColumn()) as bar:
            task = bar.add_task("encode", total=len(texts))
            vectors = model.encode(texts, batch, lambda done: bar.update(task, completed=done))
        write_vectors(target, ids, vectors)
    except (VectorFileError, EncoderError, OSError) as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    if as_json:
        emit({"items": len(texts), "dimension": vectors.shape[1], "out": str(target)})
        return
    console().print(f"wrote {len(texts):,} vectors of dimension {vectors.shape[1]} to {target}", markup=False)
