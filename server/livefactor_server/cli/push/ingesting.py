"""`livefactor ingest`: events from files that grow, HTTP, Kafka, NATS and Redis."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livefactor_server.cli.base import AsJson, app, complain, console, emit

if TYPE_CHECKING:
    from livefactor.ingest.ingester import Status


@app.command()
def ingest(
    config: Annotated[Path, typer.Option(help="TOML file with the sources and their mappings.")],
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for the journal and the dead letters; by default beside the TOML file."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Read the TOML file, and ingest nothing.")] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Read the dead letters once more, and nothing else.")
    ] = False,
    until_idle: Annotated[
        float | None,
        typer.Option(help="End after so many seconds without an event; by default it never ends.", min=0.1),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ingest events from where they are, each exactly once: files, HTTP, Kafka, NATS, Redis.

    Ctrl-C ends it after what was read is applied. It then goes on where it stopped. Brokers and
    HTTP need the extra `ingest`.
    """
    from livefactor.ingest.config import ConfigError, read_config
    from livefactor.ingest.dead_letters import DeadLettersFull
    from livefactor.ingest.ingester import Ingester
    from livefactor.ingest.journal import JournalError
    from livefactor.ingest.sources import SourceError

    try:
        settings = read_config(config)
        if check:
            _say(f"{config}: {len(settings.sources)} sources, model {settings.model!r}")
            return
        folder = state or config.resolve().parent / f".{config.stem}-state"
        ingester = Ingester(settings, folder, replay=replay, say=_say, on_status=_show)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _ending(ingester, number))
        counts = ingester.run(until_idle)
    except ConfigError as error:
        complain(f"{config}: {error}")
        raise typer.Exit(2) from None
    except (JournalError, SourceError, DeadLettersFull) as error:
        complain(str(error))
        raise typer.Exit(1) from None
    result = {"read": counts.read, "pushed": counts.pushed, "filtered": counts.filtered}
    result |= {"dead_letters": counts.dead, "pushed_again": counts.again}
    if as_json:
        emit(result)
    else:
        _say(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in result.items()))
    if counts.dead:
        _say(f"the dead letters are in {folder}")


def _ending(ingester: Any, number: int) -> Any:
    def end(*_: object) -> None:
        ingester.stop()
        # A second signal ends the process at once. Nothing is lost: the journal has what counts.
        signal.signal(number, signal.SIG_DFL)

    return end


def _show(status: Status) -> None:
    behind = ", ".join(
        f"{name} {'?' if left is None else f'{left:,}'} {unit} behind"
        for name, (left, unit) in status.behind.items()
    )
    counts = status.counts
    _say(f"{counts.pushed:,} events pushed, {counts.dead:,} dead letters, {status.waiting:,} wait; {behind}")


def _say(text: str) -> None:
    console(err=True).print(f"livefactor ingest: {text}")
