"""`livefactor push FILE`: send the events of a file or a stream exactly once.

A second run goes on where the first one ended, also if the file has grown meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    Model,
    Secret,
    Target,
    app,
    complain,
    console,
    emit,
)

if TYPE_CHECKING:
    from livefactor_server.cli.push.transfer import Push

REJECTS_SHOWN = 5


def _existing(file: Path) -> Path:
    if str(file) != "-" and (not file.exists() or file.is_dir()):
        raise typer.BadParameter(f"{file} is {'a folder' if file.is_dir() else 'not there'}")
    return file


@app.command()
def push(
    file: Annotated[
        Path,
        typer.Argument(
            callback=_existing,
            help="A csv or parquet file, also compressed, the oldest event first. - is standard input.",
        ),
    ],
    user: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    value: Annotated[str, typer.Option(help="Column of values: ratings, or 0 and 1.")] = "",
    weight: Annotated[str, typer.Option(help="Column of weights.")] = "",
    event_type: Annotated[str, typer.Option(help="Column of event types, which are numbers.")] = "",
    time: Annotated[
        str, typer.Option(help="Column of times: ISO 8601, timestamps, or integers since 1970.")
    ] = "",
    context: Annotated[
        list[str] | None,
        typer.Option(help="Column of context, such as the hour or the query. Repeat the option for more."),
    ] = None,
    separator: Annotated[
        str, typer.Option(help="Divides a field of context into several features, such as ' ' for queries.")
    ] = "",
    time_unit: Annotated[
        str, typer.Option(help="Unit of times that are integers: s, ms, us or ns since 1970.")
    ] = "s",
    string_ids: Annotated[
        bool,
        typer.Option(
            help="Read all ids as strings. Default: a csv column holds integers if all its ids are integers."
        ),
    ] = False,
    secret: Secret = "",
    labels: Annotated[
        bool, typer.Option(help="Send the text of ids that are hashed, so that answers give it back.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Read the whole file before anything is sent.")
    ] = False,
    producer: Annotated[
        str, typer.Option(help="Id of the producer. Default: made from the first event of the file.")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, max=65_536, help="Number of events in a batch.")] = 8192,
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Push a file of events exactly once.

    The same command goes on where the last run ended, after a crash and after the file has grown. A
    file that was changed in what was pushed already is refused. The exit code is 0 if every event
    was accepted.
    """
    from livefactor_server.files.events import CONTEXT

    names = {
        "user_ids": user, "item_ids": item, "values": value, "weights": weight, "event_types": event_type,
        "times": time, **{CONTEXT + column: column for column in context or ()},
    }  # fmt: skip
    from livefactor_server.cli.push.transfer import Push

    one = Push(
        file,
        {field: column for field, column in names.items() if column},
        string_ids,
        time_unit,
        secret.encode(),
        batch,
        separator,
    )
    _run(one, check, {"target": target, "producer": producer, "model": model, "labels": labels}, as_json)
    _report(one, as_json)
    if one.rejected:
        raise typer.Exit(1)


def _run(one: Push, check: bool, options: dict[str, Any], as_json: bool) -> None:
    """Sends the file. Raises typer.Exit after a fault, and says what was applied."""
    from livefactor.errors import ColumnError, InvalidArgument, LivefactorError

    correct = "correct the file and run the same command: it goes on there"
    try:
        if check:
            one.check()
        one.send(**options)
        return
    except KeyboardInterrupt:
        fault, code, then = "interrupted", 130, "the same command goes on there"
    except (LivefactorError, ValueError, OSError) as error:
        if isinstance(error, LivefactorError) and not isinstance(error, ColumnError | InvalidArgument):
            if not one.is_open:
                raise
            fault, code, then = str(error), 1, "the same command goes on there"
        else:
            fault, code, then = f"{one.file}: {error}", 2, correct
    one.collect_done()
    if as_json:
        emit({**one.counts(), "error": fault})
    if one.is_open:
        fault += f"; {one.acknowledged:,} events of this run were applied or rejected, up to row {one.row:,}; {then}"
    complain(fault)
    raise typer.Exit(code)


def _report(one: Push, as_json: bool) -> None:
    if as_json:
        emit(one.counts())
        return
    if not one.acknowledged:
        said = f"nothing was sent: all {one.skipped:,} events of {one.file} had been applied before"
        console().print(said, markup=False)
        return
    before = f", {one.skipped:,} had been applied before" if one.skipped else ""
    console().print(
        f"{one.accepted:,} events accepted, {one.rejected:,} rejected{before}; revision {one.revision}"
    )
    if one.held:
        console().print(
            f"{one.held:,} of the accepted events wait in quarantine, because their batches are unlike the ones "
            "before; they have no effect until they are accepted: `livefactor quarantine list`",
            soft_wrap=True,
        )
    rejects = one.rejects()
    for reject in rejects[:REJECTS_SHOWN]:
        complain(f"rejected: {reject['place']}: {reject['text']} ({reject['reason']})")
    if one.rejected > REJECTS_SHOWN:
        complain(f"rejected: {one.rejected - REJECTS_SHOWN:,} more; --json lists the first {len(rejects)}")
