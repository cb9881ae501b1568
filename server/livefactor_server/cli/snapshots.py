"""`livefactor snapshot`, which asks a server, and `livefactor verify`, which reads a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    KeyCommand,
    KeyFile,
    Model,
    Target,
    app,
    complain,
    console,
    emit,
    progress,
    reason,
    table,
    use_key,
)

if TYPE_CHECKING:
    from livefactor.auditor import Auditor, SnapshotInfo


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
    encryption_key_file: KeyFile = None,
    encryption_key_command: KeyCommand = "",
) -> None:
    """Check every byte of a snapshot. With --replay, check that the log gives the model's states.

    This needs no server.
    """
    use_key(encryption_key_file, encryption_key_command)
    if replay:
        _verify_replay(path, backend, as_json)
        return
    from livefactor.errors import SnapshotInvalid
    from livefactor_server.snapshots.store import verify

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

    from livefactor.errors import SnapshotInvalid
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
    except (LogError, ReplayError, SnapshotInvalid, OSError) as error:
        complain(error)
        raise typer.Exit(1) from None
    if as_json:
        emit(report.fields())
    else:
        console().print(f"log: {report.revision} revisions, chain hash {report.log_hash.hex()}")
        if report.gap is not None:
            console().print(f"log: {report.gap}", soft_wrap=True)
            for name in report.begins_with:
                console().print(f"the replay began with snapshot {name}, which verifies")
            for name in report.lost:
                console().print(f"snapshot {name}: not compared, because its records are missing")
        console().print(f"state at revision {report.revision}: root hash {report.root_hash.hex()}")
        for name, equal in report.snapshots.items():
            console().print(
                f"snapshot {name}: {'equal to the replay' if equal else 'DIFFERS from the replay'}"
            )
        for revision, wrong in report.erasures.items():
            said = f"WRONG: {wrong}" if wrong else "is good"
            console().print(f"report of the erasure at revision {revision}: {said}", soft_wrap=True)
    if not report.good:
        raise typer.Exit(1)
