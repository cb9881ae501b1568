"""`livefactor forget`: forgets users and items."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

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


@app.command()
def forget(
    user: Annotated[
        list[str] | None, typer.Option(help="A user's id: an integer or a string. Repeatable.")
    ] = None,
    item: Annotated[list[str] | None, typer.Option(help="An item's id. Repeatable.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it costs, and change nothing.")
    ] = False,
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Forget users and items: as if the model had never seen them.

    The server goes on if this command ends. The same command then waits for the report.
    """
    from rich.progress import TextColumn

    from livefactor.models import Models
    from livefactor.wire.ids import ids_of_texts

    if not user and not item:
        complain("name --user or --item")
        raise typer.Exit(2)
    users, items = (list(each or []) if string_ids else ids_of_texts(each or []) for each in (user, item))
    named: dict[str, Any] = {"users": users, "items": items, "secret": secret.encode()}
    with Models(target) as models:
        if dry_run:
            _show_cost(asdict(models.forget_cost(model, **named)), as_json)
            return
        with progress(TextColumn("{task.description} {task.completed} of {task.total}")) as bar:
            task = bar.add_task("erase", total=None)

            def tell(stage: str, done: int, total: int) -> None:
                bar.update(task, description=stage, completed=done, total=total)

            found = models.forget(model, on_progress=tell, **named)
    if as_json:
        emit(found.fields)
    else:
        _show_report(found.fields)


def _show_cost(cost: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(cost)
        return
    screen = console()
    screen.print(f"{cost['records']} records name them: {cost['rows']} rows, {cost['events']} of them events")
    begun = f", from the snapshot at revision {cost['begins_at']} on" if cost["begins_at"] else ""
    screen.print(f"{cost['revisions']} revisions would be replayed{begun}", soft_wrap=True)
    if cost["put_back_bytes"]:
        screen.print(f"{cost['put_back_bytes']:,} bytes of archived segments would be put back before")
    screen.print(
        f"{cost['segments']} segments of the log ({cost['segment_bytes']:,} bytes) would be rewritten, and "
        f"{cost['snapshots']} snapshots removed",
        soft_wrap=True,
    )
    screen.print(f"it would take about {cost['seconds']:.1f} s; nothing was changed")


def _show_report(fields: dict[str, Any]) -> None:
    screen = console()
    screen.print(
        f"forgotten at revision {fields['erase']}: {fields['rows']} rows of {fields['records']} records are gone",
        soft_wrap=True,
    )
    screen.print(f"the state without them is in force since revision {fields['erased']}")
    screen.print(f"state at revision {fields['revision']}: root hash {fields['root_hash']}", soft_wrap=True)
    screen.print(f"without the answers to producers: {fields['learned_root_hash']}", soft_wrap=True)
    if fields.get("began_with"):
        screen.print(
            f"replayed from snapshot {fields['began_with']} on, which never knew them", soft_wrap=True
        )
    if fields.get("put_back"):
        screen.print(f"{len(fields['put_back'])} archived segments were put back into the log")
    lists = {
        "segments": "rewritten",
        "archives_changed": "rewritten",
        "snapshots": "removed",
        "tails": "removed",
    }
    for name, what in lists.items():
        if fields.get(name):
            screen.print(f"{name.replace('_changed', '')} {what}: {', '.join(fields[name])}", soft_wrap=True)
    for path in fields["archives"]:
        screen.print(f"not changed: {path}; rewrite or delete this copy", soft_wrap=True)
