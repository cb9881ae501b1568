"""`livefactor models`: create, list, describe, restore and delete models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livefactor_kernels.spec.names import PRESET_NAMES
from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    Target,
    complain,
    console,
    emit,
    models_app,
    progress,
    table,
)
from livefactor_server.cli.models.judge import show_hold, show_judgement

if TYPE_CHECKING:
    from livefactor.models import ModelDescription
    from livefactor.results.descriptions import LogGap


def _description_fields(model: ModelDescription) -> dict[str, Any]:
    return {
        "model": model.name, "revision": model.position.revision, "lineage": model.position.lineage.hex(), "users": model.users,
        "items": model.items, "events": model.events, "backend": model.backend, "log_hash": model.log_hash.hex(),
        "log_bytes": model.log_bytes, "memory_bytes": model.memory_bytes, "writable": model.writable,
        "root_hash": model.root_hash.hex(), "spec": model.spec, "adapted_rate": model.adapted_rate,
        "judgement": model.judgement and asdict(model.judgement), "hold": model.hold and asdict(model.hold),
        "fault": model.fault, "spec_id": model.spec_id, "spec_revision": model.spec_revision,
        "earlier_specs": [asdict(each) for each in model.earlier_specs],
        "log_gap": model.log_gap and _gap_fields(model.log_gap), "skipped": model.skipped,
        "term": model.term, "leader": model.leader,
    }  # fmt: skip


def _gap_fields(gap: LogGap) -> dict[str, Any]:
    return {**asdict(gap), "snapshot_root_hash": gap.snapshot_root_hash.hex()}


def _gap_text(gap: LogGap) -> str:
    text = f"the log lacks revisions {gap.first_revision} to {gap.last_revision}"
    if not gap.time_us:
        return text
    day = datetime.fromtimestamp(gap.time_us / 1e6, UTC).strftime("%Y-%m-%d")
    done = "archived" if gap.archived else "deleted"
    return (
        f"{text}, which were {done} on {day}; the snapshot at revision {gap.snapshot_revision} vouches "
        f"for them (root hash {gap.snapshot_root_hash.hex()})"
    )


def _show_fault(model: ModelDescription) -> None:
    """Prints why a model is not served and what an operator can do."""
    console().print(f"{model.name} IS NOT SERVED: {model.fault}", soft_wrap=True)
    console().print(
        f"`livefactor models restore {model.name} {model.name}` restores it from its newest snapshot, "
        f"`livefactor snapshot --list -m {model.name}` lists the snapshots",
        soft_wrap=True,
    )


def show_description(model: ModelDescription, as_json: bool) -> None:
    """Prints the description of a model, or why it is not served."""
    fields = _description_fields(model)
    if as_json:
        emit(fields)
        return
    if model.fault:
        _show_fault(model)
        return
    spec = fields.pop("spec")
    # A judgement and a hold are shown below the table.
    for name in ("judgement", "hold", "fault", "earlier_specs", "log_gap", "skipped"):
        del fields[name]
    grid = table("field", "value")
    for name, value in fields.items():
        if value is not None:
            grid.add_row(name, str(value))
    for name, value in spec.items():
        grid.add_row(f"spec.{name}", json.dumps(value) if isinstance(value, dict) else str(value))
    console().print(grid)
    for earlier in model.earlier_specs:
        what = f"rule {earlier.spec['rule']}, loss {earlier.spec['loss']}, k {earlier.spec['k']}"
        console().print(f"earlier: spec {earlier.spec_id} since revision {earlier.revision}, {what}")
    for first, last in model.skipped:
        console().print(f"rolled back: revisions {first} to {last} have no effect")
    if model.log_gap is not None:
        console().print(_gap_text(model.log_gap), soft_wrap=True)
    if model.judgement is not None and model.judgement.judged_events:
        show_judgement(model.judgement)
    if model.hold is not None:
        show_hold(model.hold)


FEATURES_SIZE = 1 << 16
"""Most distinct features of each side with --features."""
FEATURES_EVENTS = 8.0
"""`features.prior_events` with --features (docs/content.md)."""


@models_app.command("list")
def models_list(target: Target = DEFAULT_TARGET, as_json: AsJson = False) -> None:
    """List the models of the server."""
    from livefactor.models import Models

    with Models(target) as models:
        listed = models.list()
    if as_json:
        emit([_description_fields(model) for model in listed])
        return
    grid = table("model", "revision", "users", "items", "events", "loss", "k", "log bytes", "memory bytes")
    for model in listed:
        if model.fault:
            grid.add_row(model.name, "not served")
            continue
        grid.add_row(
            model.name,
            str(model.position.revision),
            str(model.users),
            str(model.items),
            str(model.events),
            str(model.spec["loss"]),
            str(model.spec["k"]),
            str(model.log_bytes),
            str(model.memory_bytes),
        )
    console().print(grid)
    for model in listed:
        if model.fault:
            _show_fault(model)


@models_app.command("create")
def models_create(
    name: Annotated[str, typer.Argument(help="Name: 1 to 64 of a-z 0-9 _ -, the first one a letter.")],
    preset: Annotated[
        str,
        typer.Option(help=f"One of {', '.join(PRESET_NAMES)}. Default: the server's."),
    ] = "",
    spec: Annotated[
        str,
        typer.Option(
            help='Changes to the preset as JSON, such as \'{"k": 32, "optimizer": {"learning_rate": 0.1}}\', or a spec file (TOML).'
        ),
    ] = "{}",
    embedding_dim: Annotated[
        int,
        typer.Option(min=0, help="Numbers of an item's vector (spec: embeddings.dimension). 0: no vectors."),
    ] = 0,
    features: Annotated[
        bool,
        typer.Option("--features", help="Take features of users and items (spec: features.size)."),
    ] = False,
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Create an empty model."""
    from livefactor.models import Models

    with spec_errors(), Models(target) as models:
        named, changes = read_spec(spec)
        if embedding_dim:
            changes["embeddings"] = {**changes.get("embeddings", {}), "dimension": embedding_dim}
        if features:
            given = changes.get("features", {})
            changes["features"] = {"size": FEATURES_SIZE, "prior_events": FEATURES_EVENTS, **given}
        show_description(models.create(name, preset or named, **changes), as_json)


def read_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """The preset ("" for none) and the changes of an option: JSON, or the name of a TOML file."""
    from livefactor_server.files.specs import read_changes

    return ("", json.loads(spec)) if spec.lstrip()[:1] == "{" else read_changes(Path(spec))


@contextmanager
def spec_errors() -> Iterator[None]:
    """Turns an invalid spec into one line and exit code 2."""
    from livefactor.errors import LivefactorError

    try:
        yield
    except LivefactorError:
        # The server's text says what it is about.
        raise
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        complain(f"spec: {error}")
        raise typer.Exit(2) from None


@models_app.command("promote")
def models_promote(
    name: Annotated[str, typer.Argument(help="The model.")],
    preset: Annotated[
        str, typer.Option(help=f"One of {', '.join(PRESET_NAMES)}. Default: the spec in force.")
    ] = "",
    spec: Annotated[str, typer.Option(help="Changes to it as JSON, or a spec file (TOML).")] = "{}",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Give a model another spec while it serves.

    The server first learns the whole log with it, beside the live model. End the command to give
    up.
    """
    from rich.progress import TextColumn

    from livefactor.models import Models

    with (
        spec_errors(),
        Models(target) as models,
        progress(TextColumn("{task.completed} of {task.total} revisions")) as bar,
    ):
        named, changes = read_spec(spec)
        task = bar.add_task("promote", total=None)
        found = models.promote(
            name,
            preset or named,
            on_progress=lambda at, last: bar.update(task, total=last, completed=at),
            **changes,
        )
    show_description(found, as_json)


@models_app.command("describe")
def models_describe(
    name: Annotated[str, typer.Argument(help="The model.")] = "default",
    root_hash: Annotated[bool, typer.Option(help="Also hash the whole state.")] = False,
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Describe a model: its spec, its position, its sizes and what the judge says."""
    from livefactor.models import Models

    with Models(target) as models:
        show_description(models.describe(name, with_root_hash=root_hash), as_json)


@models_app.command("restore")
def models_restore(
    name: Annotated[str, typer.Argument(help="The new model, or the name of a model that cannot be opened.")],
    source: Annotated[str, typer.Argument(help="The model that the snapshot was taken from.")],
    snapshot_id: Annotated[
        str, typer.Option("--snapshot", help="Id of the snapshot. Default: the newest.")
    ] = "",
    revision: Annotated[
        int | None, typer.Option(min=0, help="Take the state at this revision in place of a snapshot.")
    ] = None,
    time: Annotated[
        datetime | None,
        typer.Option(help="Take the state at this time (UTC), such as 2026-11-30T02:00:00."),
    ] = None,
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Make a new model from a snapshot, or from an earlier state of a model.

    For a model that cannot be opened, name it twice. Its old folder is set aside and not deleted.
    """
    from livefactor.models import Models

    with Models(target) as models:
        time_us = None if time is None else int(time.replace(tzinfo=UTC).timestamp() * 1e6)
        show_description(
            models.restore(name, source, snapshot_id, revision=revision, time_us=time_us), as_json
        )


@models_app.command("delete")
def models_delete(
    name: Annotated[str, typer.Argument(help="The model.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    target: Target = DEFAULT_TARGET,
) -> None:
    """Delete a model with its log and snapshots. This cannot be undone.

    The folder of a model that cannot be opened is set aside and not deleted.
    """
    if not yes:
        typer.confirm(f"Delete {name} with its log and all snapshots?", abort=True)
    from livefactor.models import Models

    with Models(target) as models:
        models.delete(name)
