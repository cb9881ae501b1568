"""`livefactor encode` and `livefactor adapt`: vectors of texts, by a language model."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    KeyCommand,
    KeyFile,
    Model,
    Secret,
    StringIds,
    Target,
    app,
    complain,
    console,
    emit,
    progress,
    say,
    use_key,
)

if TYPE_CHECKING:
    from livefactor_server.tuning.adapting.augmenting import Augmentation

Items = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="A csv, csv.gz or parquet file of items.")
]
Text = Annotated[str, typer.Option(help="Columns of text, separated by commas: title,description.")]
Item = Annotated[str, typer.Option(help="Column of item ids.")]
EncoderFolder = Annotated[
    Path | None,
    typer.Option(
        "--encoder", help="Folder of a sentence-transformers model. Default: MiniLM, which needs no network."
    ),
]
Dropout = Annotated[
    float, typer.Option("--word-dropout", min=0.0, max=0.9, help="Share of words that a variant leaves out.")
]
Synonyms = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Synonyms for variants: text, a word and its synonyms a line, with commas.",
    ),
]
HookName = Annotated[
    str, typer.Option("--hook", help="module:function, which gives a text in other words, for variants.")
]


@app.command()
def encode(
    file: Items,
    text: Text,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The parquet file to write. Default: FILE.vectors.parquet."),
    ] = None,
    item: Item = "item_id",
    encoder: EncoderFolder = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Folder of an adapter that `livefactor adapt` wrote, such as adapters/2."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of texts that are encoded at once.")] = 64,
    variants: Annotated[
        int,
        typer.Option(min=0, max=64, help="Average each vector with those of so many variants of the text."),
    ] = 0,
    word_dropout: Dropout = 0.1,
    synonyms: Synonyms = None,
    hook: HookName = "",
    string_ids: StringIds = False,
    as_json: AsJson = False,
) -> None:
    """Encode texts of items as vectors with a pretrained language model, for push-embeddings.

    It needs the extra `text` and no server.
    """
    from rich.progress import TextColumn, TimeRemainingColumn

    from livefactor_server.files.encoding import Encoder, EncoderError
    from livefactor_server.files.vectors import VectorFileError, read_texts, write_vectors
    from livefactor_server.tuning.adapting.adapter import AdapterError, load, read_adapter
    from livefactor_server.tuning.adapting.augmenting import encode_averaged

    target = out or file.with_name(f"{file.name.split('.')[0]}.vectors.parquet")
    try:
        ids, texts = read_texts(file, item, _names(text), string_ids)
        augmentation = _augmentation(word_dropout, synonyms, hook)
        found = None if adapter is None else read_adapter(adapter)
        model = Encoder(encoder)
        if found is not None:
            load(model, found)
        digest = model.digest() if found is None else found.digest
        with progress(TextColumn("{task.completed:,} of {task.total:,} texts"), TimeRemainingColumn()) as bar:
            task = bar.add_task("encode", total=len(texts))
            vectors = encode_averaged(
                model, texts, augmentation, variants, batch, lambda done: bar.update(task, completed=done)
            )
        write_vectors(target, ids, vectors, digest)
    except (VectorFileError, EncoderError, AdapterError, OSError) as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    if as_json:
        emit({"items": len(texts), "dimension": vectors.shape[1], "out": str(target), "encoder_hash": digest})
        return
    console().print(f"wrote {len(texts):,} vectors of dimension {vectors.shape[1]} to {target}", markup=False)


@app.command()
def adapt(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Data folder of a server.")],
    file: Items,
    text: Text,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model's adapters.")] = Path(
        "adapters"
    ),
    item: Item = "item_id",
    encoder: EncoderFolder = None,
    steps: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Number of batches that are learned.")
    ] = 300,
    batch: Annotated[
        int, typer.Option(min=2, max=4096, help="Pairs of history and next item in a batch.")
    ] = 48,
    learning_rate: Annotated[
        float, typer.Option(min=1e-7, max=0.1, help="Learning rate at the first batch.")
    ] = 5e-4,
    rank: Annotated[int, typer.Option(min=1, max=256, help="Rank of the matrices of a first adapter.")] = 8,
    word_dropout: Dropout = 0.1,
    synonyms: Synonyms = None,
    hook: HookName = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    push: Annotated[bool, typer.Option(help="Push the vectors to the model.")] = True,
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
    encryption_key_file: KeyFile = None,
    encryption_key_command: KeyCommand = "",
) -> None:
    """Train a language model on the events of a model's log, and push the new vectors of its items.

    A second run continues with the events since. It needs the extra `adapt`. The log is only read,
    so a server may use it at the same time.
    """
    use_key(encryption_key_file, encryption_key_command)
    from rich.progress import TimeRemainingColumn

    from livefactor.errors import ColumnError
    from livefactor_server.files.encoding import EncoderError
    from livefactor_server.files.vectors import VectorFileError, read_texts
    from livefactor_server.log.store import LogError
    from livefactor_server.tuning.adapting import run
    from livefactor_server.tuning.adapting.adapter import AdapterError
    from livefactor_server.tuning.adapting.training import Training

    try:
        ids, texts = read_texts(file, item, _names(text), string_ids)
        training = Training(
            steps=steps, batch=batch, learning_rate=learning_rate, rank=rank, seed=seed,
            augmentation=_augmentation(word_dropout, synonyms, hook),
        )  # fmt: skip
        job = run.Job(data / "models" / model, out, ids, texts, secret.encode(), encoder, training)
        with progress(TimeRemainingColumn()) as bar:
            task = bar.add_task("read the log", total=None)
            found = run.adapt(
                job, lambda what, at, total: bar.update(task, description=what, completed=at, total=total)
            )
    except (VectorFileError, EncoderError, AdapterError, ColumnError, LogError, OSError) as error:
        complain(error)
        raise typer.Exit(2) from None
    told: dict[str, Any] = {
        "adapter": str(found.adapter.folder), "hash": found.adapter.digest, "pairs": found.pairs,
        "revision": found.adapter.facts.revision, "recall_before": found.before, "recall_after": found.after,
    }  # fmt: skip
    if not as_json:
        say(f"{found.pairs:,} new pairs up to revision {told['revision']} trained {told['adapter']}")
        say(
            f"recall@{run.LIST} of the last of them by the texts alone: {found.before:.4f} -> {found.after:.4f}"
        )
        say(f"hash {found.adapter.digest}")
    if push:
        told |= _push(found, ids, target, model, secret, as_json)
    if as_json:
        emit(told)
    if told.get("rejected"):
        raise typer.Exit(1)


def _push(found: Any, ids: Any, target: str, model: str, secret: str, as_json: bool) -> dict[str, int]:
    """Pushes the vectors of a run. If that fails, it says how to push them again."""
    from livefactor.errors import LivefactorError
    from livefactor_server.cli.content.transfer import push_vectors
    from livefactor_server.tuning.adapting.adapter import VECTORS

    digest = bytes.fromhex(found.adapter.digest)
    try:
        accepted, rejected, revision = push_vectors(
            ids, found.vectors, digest, target, model, secret.encode()
        )
    except LivefactorError as error:
        complain(error)
        complain(f"push all vectors again with: livefactor push-embeddings {found.adapter.folder / VECTORS}")
        raise typer.Exit(1) from None
    if not as_json:
        say(f"{accepted:,} vectors accepted, {rejected:,} rejected; revision {revision}")
    return {"accepted": accepted, "rejected": rejected, "pushed_revision": revision}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _augmentation(word_dropout: float, synonyms: Path | None, hook: str) -> Augmentation:
    """The augmentation of the options. A hook that cannot be imported ends the command."""
    from livefactor_server.tuning.adapting.augmenting import Augmentation, read_synonyms

    found = None
    if hook:
        module, _, name = hook.partition(":")
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            complain(f"--hook {hook}: expected module:function ({error})")
            raise typer.Exit(2) from None
    return Augmentation(word_dropout, read_synonyms(synonyms) if synonyms else {}, hook=found)
