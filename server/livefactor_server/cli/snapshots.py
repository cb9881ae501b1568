"""`livefactor snapshot`, which asks a server for a snapshot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    Model,
    Target,
    app,
    complain,
    console,
    emit,
    progress,
    table,
)
from livefactor_server.cli.verify import checkpoint_of

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
            if taken.checkpoint:
                checkpoint_of(out).write_bytes(taken.checkpoint)
    if as_json:
        emit(_info_fields(taken))
    else:
        console().print(
            f"snapshot {taken.snapshot_id}: revision {taken.position.revision}, {taken.users} users, {taken.items} items"
        )
        console().print(f"root hash {taken.root_hash.hex()}")
        if out is not None:
            console().print(f"fetched to {out} and verified")
            if taken.checkpoint:
                console().print(f"signed checkpoint in {checkpoint_of(out)}")


def _take(auditor: Auditor) -> SnapshotInfo:
    from rich.progress import DownloadColumn, TimeRemainingColumn

    with progress(DownloadColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("snapshot", total=None)
        return auditor.snapshot(
            on_progress=lambda p: bar.update(task, total=p.bytes_total, completed=p.bytes_done)
        )
