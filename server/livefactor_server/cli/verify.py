"""`livefactor verify`, which reads the folder of a snapshot or of a model, and needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livefactor_server.cli.base import (
    AsJson,
    KeyCommand,
    KeyFile,
    app,
    complain,
    console,
    emit,
    progress,
    reason,
    use_key,
)

if TYPE_CHECKING:
    from livefactor.snapshots.checkpoint import Checkpoint


def checkpoint_of(snapshot: Path) -> Path:
    """The file of the signed checkpoint beside a fetched snapshot."""
    return snapshot.with_name(snapshot.name + ".checkpoint.json")


@app.command("verify")
def verify_command(
    path: Annotated[
        Path,
        typer.Argument(help="Folder of a snapshot, or of a model in the data folder."),
    ],
    replay: Annotated[
        bool,
        typer.Option(
            help="Of a model: rebuild the state from its log alone and compare its snapshots. Of a snapshot in a"
            " model's folder: replay the log from the snapshot before it, and compare."
        ),
    ] = False,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Ed25519 public key in PEM form, with which the checkpoints must be signed."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="Signed checkpoint. Repeat it for more: with a model's folder all must be of one history. Without"
            " it: the one beside the snapshot."
        ),
    ] = None,
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
    if checkpoint and public_key is None:
        complain("--checkpoint needs --public-key")
        raise typer.Exit(2)
    is_model = (path / "log").is_dir()
    if is_model and public_key is not None:
        _check_history(path, public_key, checkpoint or [], as_json and not replay)
    if replay and not is_model and (path.parent.parent / "log").is_dir():
        _replay_snapshot(path, backend, as_json)
        if public_key is None:
            return
    elif replay:
        _verify_replay(path, backend, as_json)
        return
    elif is_model and public_key is not None:
        return
    from livefactor.errors import SnapshotInvalid
    from livefactor_server.snapshots.store import verify

    try:
        manifest = verify(path).manifest
        if public_key is not None:
            # A client's container has no kernels, which the module of the signatures imports.
            from livefactor_server.snapshots.signing import check_signature

            key = _key(public_key)
            for each in _checkpoints(checkpoint or [_beside(path)]):
                check_signature(each, key)
                each.check_fits(manifest)
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
        "signed": public_key is not None,
    }
    if as_json:
        emit(facts)
    else:
        console().print(
            f"valid: {manifest.model} at revision {manifest.revision}, {manifest.users} users, {manifest.items} items"
        )
        console().print(f"root hash {manifest.root_hash.hex()}")
        if public_key is not None:
            console().print("its checkpoint is signed with the given key")


def _beside(snapshot: Path) -> Path:
    """The checkpoint beside a snapshot: fetched with it, or in the data folder."""
    own = checkpoint_of(snapshot)
    return own if own.exists() else snapshot.with_name(f"{snapshot.name}.signed")


def _checkpoints(paths: list[Path]) -> list[Checkpoint]:
    from livefactor.snapshots.checkpoint import Checkpoint

    return [Checkpoint.from_json(path.read_bytes()) for path in paths]


def _key(path: Path) -> Any:
    from livefactor_server.snapshots.signing import public_key_of

    try:
        return public_key_of(path.read_bytes())
    except (OSError, ValueError) as error:
        complain(f"--public-key: {path}: {error}")
        raise typer.Exit(2) from None


def _check_history(folder: Path, public_key: Path, paths: list[Path], as_json: bool) -> None:
    """Checks that signed checkpoints are of the history in a model's log."""
    from livefactor.errors import SnapshotInvalid
    from livefactor_server.log.store import LogError
    from livefactor_server.snapshots.signing import check_log

    if not paths:
        complain("--public-key with a model's folder needs --checkpoint")
        raise typer.Exit(2)
    key = _key(public_key)
    try:
        found = _checkpoints(paths)
        missing = check_log(folder, found, key)
    except (SnapshotInvalid, LogError, OSError) as error:
        if as_json:
            emit({"valid": False, "reason": str(error)})
        else:
            complain(f"not valid: {reason(error)}")
        raise typer.Exit(1) from None
    revisions = sorted(each.revision for each in found)
    if as_json:
        emit({"valid": True, "checkpoints": revisions, "not_compared": missing})
        return
    for revision in revisions:
        said = (
            "its record is gone, not compared" if revision in missing else "signed, and the log has its hash"
        )
        console().print(f"checkpoint at revision {revision}: {said}")


def _replay_snapshot(path: Path, backend: str, as_json: bool) -> None:
    """Replays the log from the snapshot before the given one, and compares the states."""
    from livefactor.errors import SnapshotInvalid
    from livefactor_kernels.backend import BackendUnavailable, choose_backend
    from livefactor_server.log.store import LogError
    from livefactor_server.snapshots import audit
    from livefactor_server.snapshots.replay import ReplayError

    try:
        found = audit.replay_snapshot(path, choose_backend(backend))
    except (BackendUnavailable, ValueError, LogError, ReplayError, SnapshotInvalid, OSError) as error:
        complain(error)
        raise typer.Exit(1) from None
    if as_json:
        emit(found.fields())
    else:
        since = f"snapshot {found.parent}" if found.parent else "the beginning of the log"
        console().print(f"replayed revisions {found.since + 1} to {found.revision} from {since}")
        console().print("equal to the replay" if found.equal else "DIFFERS from the replay")
    if not found.equal:
        raise typer.Exit(1)


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
