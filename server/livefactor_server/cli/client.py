"""Commands that talk to a server: recommend, snapshot, models; and verify, which needs none."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from livefactor.auditor import Auditor, SnapshotInfo
from livefactor.channel import DEFAULT_TARGET
from livefactor.models import ModelDescription, Models
from livefactor.scorer import Scorer
from livefactor.snapshots.files import SnapshotInvalid, verify
from livefactor_server.cli.app import (
    AsJson,
    Model,
    Target,
    app,
    complain,
    console,
    emit,
    models_app,
    notes,
    table,
)
from livefactor_server.cli.judge import show_hold, show_judgement
from livefactor_server.files.specs import read_changes

Secret = Annotated[
    str,
    typer.Option("--secret", envvar="LIVEFACTOR_SECRET", help="Key for string ids, as the producers use it."),
]


def as_id(text: str, string_ids: bool) -> int | str:
    """An id from the command line: a number, or with `string_ids` any text."""
    return text if string_ids or not text.isdecimal() else int(text)


@app.command()
def recommend(
    users: Annotated[list[str], typer.Argument(help="User ids: numbers, or text that is hashed to a key.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Items for each user.")] = 10,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Item ids to leave out; repeat the option.")
    ] = None,
    string_ids: Annotated[bool, typer.Option(help="Hash ids even if they look like numbers.")] = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """The best items for users, with their labels and scores."""
    with Scorer(target, model=model, secret=secret.encode()) as scorer:
        answers = scorer.recommend(
            [as_id(user, string_ids) for user in users],
            k,
            exclude=[as_id(item, string_ids) for item in exclude or []] or None,
        )
    listed: list[dict[str, Any]] = [
        {"user": answer.user_id, "known": answer.known, "items": [
            {"item": item, "label": label, "score": float(str(score))}
            for item, label, score in zip(answer.item_ids.tolist(), answer.labels, answer.scores, strict=True)
        ]}
        for answer in answers
    ]  # fmt: skip
    if as_json:
        emit({"revision": answers.position.revision, "users": listed})
        return
    for entry in listed:
        # A string id is its own label, and a column that repeats the one beside it helps nobody.
        named = any(item["label"] not in ("", item["item"]) for item in entry["items"])
        grid = table("rank", "item", *(["label"] if named else []), "score")
        for rank, item in enumerate(entry["items"], 1):
            label = [item["label"]] if named else []
            grid.add_row(str(rank), str(item["item"]), *label, f"{item['score']:.4f}")
        unknown = "" if entry["known"] else " (unknown: ranked by item bias alone)"
        console.print(f"user {entry['user']}{unknown}, revision {answers.position.revision}")
        console.print(grid)


def _info_fields(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "snapshot_id": info.snapshot_id, "revision": info.position.revision, "lineage": info.position.lineage.hex(),
        "root_hash": info.root_hash.hex(), "log_hash": info.log_hash.hex(), "size_bytes": info.size_bytes,
        "created_us": info.created_us, "users": info.users, "items": info.items,
    }  # fmt: skip


@app.command()
def snapshot(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also fetch it into this new folder, and verify it.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the snapshots there are; take none.")] = False,
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Take a snapshot while the model goes on learning."""
    with Auditor(target, model=model) as auditor:
        if listing:
            infos = [_info_fields(info) for info in auditor.list()]
            if as_json:
                emit(infos)
                return
            grid = table("snapshot", "revision", "users", "items", "bytes", "root hash")
            for info in infos:
                grid.add_row(
                    *(
                        str(info[name])
                        for name in ("snapshot_id", "revision", "users", "items", "size_bytes")
                    ),
                    info["root_hash"][:16],
                )
            console.print(grid)
            return
        taken = _take(auditor)
        if out is not None:
            auditor.fetch(out, taken.snapshot_id)
    if as_json:
        emit(_info_fields(taken))
    else:
        console.print(
            f"snapshot {taken.snapshot_id}: revision {taken.position.revision}, {taken.users} users, {taken.items} items"
        )
        console.print(
            f"root hash {taken.root_hash.hex()}" + (f"\nfetched to {out} and verified" if out else "")
        )


def _take(auditor: Auditor) -> SnapshotInfo:
    with Progress(
        TextColumn("snapshot"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=notes,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)
        return auditor.snapshot(
            on_progress=lambda p: bar.update(task, total=p.bytes_total, completed=p.bytes_done)
        )


@app.command("verify")
def verify_command(
    path: Annotated[
        Path,
        typer.Argument(help="A snapshot's folder, or a model's folder in a server's data with --replay."),
    ],
    replay: Annotated[
        bool, typer.Option(help="Rebuild the state from the model's log alone, and compare its snapshots.")
    ] = False,
    backend: Annotated[
        str, typer.Option(help="What replays: cpu, cuda, auto, or reference (plain NumPy, slow).")
    ] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Check a snapshot's every byte; or, with --replay, prove that a log gives the model's states. Needs no server."""
    if replay:
        _verify_replay(path, backend, as_json)
        return
    try:
        manifest = verify(path).manifest
    except (SnapshotInvalid, OSError) as error:
        if as_json:
            emit({"valid": False, "reason": str(error)})
        else:
            complain(f"not valid: {error}")
        raise typer.Exit(1) from None
    facts = {
        "valid": True,
        "model": manifest.model,
        "revision": manifest.revision,
        "lineage": str(manifest.lineage),
        "root_hash": manifest.root_hash.hex(),
        "users": manifest.users,
        "items": manifest.items,
    }
    if as_json:
        emit(facts)
    else:
        console.print(
            f"valid: {manifest.model} at revision {manifest.revision}, {manifest.users} users, {manifest.items} items"
        )
        console.print(f"root hash {manifest.root_hash.hex()}")


def _verify_replay(folder: Path, backend: str, as_json: bool) -> None:
    from livefactor_kernels.backend import BackendUnavailable, choose_backend
    from livefactor_server.log.store import LogError
    from livefactor_server.snapshots import audit
    from livefactor_server.snapshots.replay import ReplayError

    try:
        backend = choose_backend(backend)
    except (BackendUnavailable, ValueError) as error:
        complain(f"{error}")
        raise typer.Exit(1) from None
    try:
        with Progress(
            TextColumn("replay"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} revisions"),
            console=notes,
            transient=True,
        ) as bar:
            task = bar.add_task("", total=None)
            report = audit.replay_model(
                folder, backend, lambda at, last: bar.update(task, total=last, completed=at)
            )
    except (LogError, ReplayError, OSError) as error:
        complain(f"{error}")
        raise typer.Exit(1) from None
    if as_json:
        emit(report.fields())
    else:
        console.print(f"log: {report.revision} revisions, chain hash {report.log_hash.hex()}")
        console.print(f"state at revision {report.revision}: root hash {report.root_hash.hex()}")
        for name, equal in report.snapshots.items():
            console.print(f"snapshot {name}: {'equal to the replay' if equal else 'DIFFERS from the replay'}")
    if not report.good:
        raise typer.Exit(1)


# ---------------------------------------------------------------------- models


def _description_fields(model: ModelDescription) -> dict[str, Any]:
    return {
        "model": model.name, "revision": model.position.revision, "lineage": model.position.lineage.hex(), "users": model.users,
        "items": model.items, "events": model.events, "backend": model.backend, "log_hash": model.log_hash.hex(),
        "log_bytes": model.log_bytes, "memory_bytes": model.memory_bytes, "writable": model.writable,
        "root_hash": model.root_hash.hex(), "spec": model.spec, "adapted_rate": model.adapted_rate,
        "judgement": model.judgement and asdict(model.judgement), "hold": model.hold and asdict(model.hold),
    }  # fmt: skip


def _show(model: ModelDescription, as_json: bool) -> None:
    fields = _description_fields(model)
    if as_json:
        emit(fields)
        return
    spec = fields.pop("spec")
    del fields["judgement"], fields["hold"]  # shown below
    grid = table("", "")
    for name, value in fields.items():
        if value is not None:
            grid.add_row(name, str(value))
    for name, value in spec.items():
        grid.add_row(f"spec.{name}", json.dumps(value) if isinstance(value, dict) else str(value))
    console.print(grid)
    if model.judgement is not None and model.judgement.judged_events:
        show_judgement(model.judgement)
    if model.hold is not None:
        show_hold(model.hold)


@models_app.command("list")
def models_list(target: Target = DEFAULT_TARGET, as_json: AsJson = False) -> None:
    """Every model of the server."""
    with Models(target) as models:
        listed = models.list()
    if as_json:
        emit([_description_fields(model) for model in listed])
        return
    grid = table("model", "revision", "users", "items", "events", "loss", "k", "log bytes", "memory bytes")
    for model in listed:
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
    console.print(grid)


@models_app.command("create")
def models_create(
    name: Annotated[str, typer.Argument(help="1-64 of a-z 0-9 _ -, starting with a letter.")],
    preset: Annotated[
        str,
        typer.Option(
            help="ratings, clicks, purchases or news; faster, not as good: ratings_sgd, clicks_sgd, purchases_sgd."
        ),
    ] = "",
    spec: Annotated[
        str,
        typer.Option(
            help='Changes to the preset, as JSON: \'{"k": 32, "optimizer": {"learning_rate": 0.1}}\'; or a spec file (TOML).'
        ),
    ] = "{}",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Create an empty model."""
    try:
        named, changes = ("", json.loads(spec)) if spec.lstrip()[:1] == "{" else read_changes(Path(spec))
        with Models(target) as models:
            _show(models.create(name, preset or named, **changes), as_json)
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        complain(f"spec: {error}")
        raise typer.Exit(2) from None


@models_app.command("describe")
def models_describe(
    name: Annotated[str, typer.Argument(help="The model.")] = "default",
    root_hash: Annotated[bool, typer.Option(help="Hash the whole state, too.")] = False,
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Describe a model: its spec, position, sizes."""
    with Models(target) as models:
        _show(models.describe(name, with_root_hash=root_hash), as_json)


@models_app.command("restore")
def models_restore(
    name: Annotated[str, typer.Argument(help="The new model.")],
    source: Annotated[str, typer.Argument(help="The model whose snapshot it begins with.")],
    snapshot_id: Annotated[str, typer.Option("--snapshot", help="The newest, if none is named.")] = "",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Make a new model from a snapshot."""
    with Models(target) as models:
        _show(models.restore(name, source, snapshot_id), as_json)


@models_app.command("delete")
def models_delete(
    name: Annotated[str, typer.Argument(help="The model.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    target: Target = DEFAULT_TARGET,
) -> None:
    """Delete a model with its log and snapshots. There is no way back."""
    if not yes:
        typer.confirm(f"Delete {name} with its log and all snapshots?", abort=True)
    with Models(target) as models:
        models.delete(name)
