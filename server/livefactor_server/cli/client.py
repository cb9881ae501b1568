"""The commands recommend and snapshot, which ask a server, and verify, which reads a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    reason,
    table,
)

if TYPE_CHECKING:
    from livefactor.auditor import Auditor, SnapshotInfo
    from livefactor.scorer import Scorer


@app.command()
def recommend(
    users: Annotated[
        list[str] | None, typer.Argument(help="User ids: integers if all of them are, else strings.")
    ] = None,
    users_file: Annotated[
        Path | None,
        typer.Option("--users", help="Take the users of a csv or parquet file; - is standard input."),
    ] = None,
    user: Annotated[str, typer.Option(help="Column of user ids in that file.")] = "user_id",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the lists to this file: .parquet or .pq, else csv."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of items for each user.")] = 10,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Id of an item to leave out. Repeat the option for more.")
    ] = None,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen", help="Leave out what the users have had (spec: history).")
    ] = False,
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Recommend the best items for users, with their labels and scores.

    Name the users, or a file of them. With --out the lists become a file.
    """
    if bool(users) == (users_file is not None):
        complain("name user ids or --users FILE, and not both")
        raise typer.Exit(2)
    from livefactor.scorer import Scorer
    from livefactor.wire.ids import ids_of_texts

    read = list if string_ids else ids_of_texts
    ids: list[Any] = _users_of(users_file, user, string_ids) if users_file is not None else read(users or [])
    options: dict[str, Any] = {"exclude": read(exclude) if exclude else None, "exclude_seen": exclude_seen}
    with Scorer(target, model=model, secret=secret.encode()) as scorer:
        if out is not None:
            _write_lists(scorer, ids, out, k, options, as_json)
            return
        answers = scorer.recommend(ids, k, **options)
    listed: list[dict[str, Any]] = [
        {"user": answer.user_id, "known": answer.known, "seen_truncated": answer.seen_truncated, "items": [
            {"item": item, "label": label, "score": float(str(score))}
            for item, label, score in zip(answer.item_ids.tolist(), answer.labels, answer.scores, strict=True)
        ]}
        for answer in answers
    ]  # fmt: skip
    if as_json:
        emit({"revision": answers.position.revision, "users": listed})
        return
    for entry in listed:
        # A string id is its own label. A column that repeats the ids would not help.
        named = any(item["label"] not in ("", item["item"]) for item in entry["items"])
        grid = table("rank", "item", *(["label"] if named else []), "score")
        for rank, item in enumerate(entry["items"], 1):
            label = [item["label"]] if named else []
            grid.add_row(str(rank), str(item["item"]), *label, f"{item['score']:.4f}")
        unknown = "" if entry["known"] else " (unknown: ranked by item bias alone)"
        console().print(f"user {entry['user']}{unknown}, revision {answers.position.revision}")
        if entry["seen_truncated"]:
            console().print(
                "the model has forgotten events of this user, so the list may hold items that they had "
                "(spec: history.users)"
            )
        console().print(grid)


def _users_of(file: Path, column: str, string_ids: bool) -> list[Any]:
    from livefactor_server.cli.items.lists import read_users

    try:
        ids, sentences = read_users(file, column, string_ids)
    except (ValueError, OSError) as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    for sentence in sentences:
        console(err=True).print(sentence, soft_wrap=True, markup=False, highlight=False)
    return ids


def _write_lists(
    scorer: Scorer, users: list[Any], out: Path, k: int, options: dict[str, Any], as_json: bool
) -> None:
    from livefactor_server.cli.items.lists import write_lists

    try:
        rows = write_lists(scorer, users, out, k, **options)
    except OSError as error:
        complain(f"{out}: {error}")
        raise typer.Exit(2) from None
    if as_json:
        emit({"users": len(users), "rows": rows, "out": str(out)})
    else:
        console().print(f"wrote {rows:,} rows for {len(users):,} users to {out}", markup=False)


def _info_fields(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "snapshot_id": info.snapshot_id, "revision": info.position.revision, "lineage": info.position.lineage.hex(),
        "root_hash": info.root_hash.hex(), "log_hash": info.log_hash.hex(), "size_bytes": info.size_bytes,
        "created_us": info.created_us, "users": info.users, "items": info.items,
    }  # fmt: skip


@app.command()
def snapshot(
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also fetch the snapshot into this new folder and verify it."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the existing snapshots. Take none.")] = False,
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Take a snapshot. The model goes on learning meanwhile."""
    if out is not None and os.path.lexists(out):
        complain(f"--out: {out} exists already")
        raise typer.Exit(2)
    from livefactor.auditor import Auditor

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
            console().print(grid)
            return
        taken = _take(auditor)
        if out is not None:
            auditor.fetch(out, taken.snapshot_id)
    if as_json:
        emit(_info_fields(taken))
    else:
        console().print(
            f"snapshot {taken.snapshot_id}: revision {taken.position.revision}, {taken.users} users, {taken.items} items"
        )
        console().print(f"root hash {taken.root_hash.hex()}")
        if out is not None:
            console().print(f"fetched to {out} and verified")


def _take(auditor: Auditor) -> SnapshotInfo:
    from rich.progress import DownloadColumn, TimeRemainingColumn

    with progress(DownloadColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("snapshot", total=None)
        return auditor.snapshot(
            on_progress=lambda p: bar.update(task, total=p.bytes_total, completed=p.bytes_done)
        )


@app.command("verify")
def verify_command(
    path: Annotated[
        Path,
        typer.Argument(help="Folder of a snapshot. With --replay: folder of a model in the data folder."),
    ],
    replay: Annotated[
        bool, typer.Option(help="Rebuild the state from the model's log alone and compare its snapshots.")
    ] = False,
    backend: Annotated[
        str, typer.Option(help="Backend of the replay: cpu, cuda, auto, or reference (plain NumPy, slow).")
    ] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Check every byte of a snapshot. With --replay, check that the log gives the model's states.

    This needs no server.
    """
    if replay:
        _verify_replay(path, backend, as_json)
        return
    from livefactor.snapshots.files import SnapshotInvalid, verify

    try:
        manifest = verify(path).manifest
    except (SnapshotInvalid, OSError) as error:
        if as_json:
            emit({"valid": False, "reason": str(error)})
        else:
            complain(f"not valid: {reason(error)}")
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
        console().print(
            f"valid: {manifest.model} at revision {manifest.revision}, {manifest.users} users, {manifest.items} items"
        )
        console().print(f"root hash {manifest.root_hash.hex()}")


def _verify_replay(folder: Path, backend: str, as_json: bool) -> None:
    from rich.progress import TextColumn

    from livefactor_kernels.backend import BackendUnavailable, choose_backend
    from livefactor_server.log.store import LogError
    from livefactor_server.snapshots import audit
    from livefactor_server.snapshots.replay import ReplayError

    try:
        backend = choose_backend(backend)
    except (BackendUnavailable, ValueError) as error:
        complain(error)
        raise typer.Exit(1) from None
    try:
        with progress(TextColumn("{task.completed}/{task.total} revisions")) as bar:
            task = bar.add_task("replay", total=None)
            report = audit.replay_model(
                folder, backend, lambda at, last: bar.update(task, total=last, completed=at)
            )
    except (LogError, ReplayError, OSError) as error:
        complain(error)
        raise typer.Exit(1) from None
    if as_json:
        emit(report.fields())
    else:
        console().print(f"log: {report.revision} revisions, chain hash {report.log_hash.hex()}")
        console().print(f"state at revision {report.revision}: root hash {report.root_hash.hex()}")
        for name, equal in report.snapshots.items():
            console().print(
                f"snapshot {name}: {'equal to the replay' if equal else 'DIFFERS from the replay'}"
            )
    if not report.good:
        raise typer.Exit(1)
