"""The `livefactor` command."""

from __future__ import annotations

import json
import logging
import queue
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from livefactor import errors
from livefactor_server.cli.settings import ServerSettings

app = typer.Typer(
    name="livefactor",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A factorization model that learns while it serves: push events in, score out, prove it later.",
)
models_app = typer.Typer(no_args_is_help=True, help="Create, list, describe, restore and delete models.")
log_app = typer.Typer(no_args_is_help=True, help="Look inside a model's log.")
app.add_typer(models_app, name="models")
app.add_typer(log_app, name="log")

console = Console()
notes = Console(stderr=True)

Target = Annotated[
    str, typer.Option("--target", envvar="LIVEFACTOR_TARGET", help="Server, as host:port or unix:/path.")
]
Model = Annotated[str, typer.Option("--model", "-m", help="Name of the model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def emit(value: Any) -> None:
    """Print a value as one line of JSON."""
    typer.echo(json.dumps(value, default=str, sort_keys=True))


def complain(text: str) -> None:
    """One line to standard error, never wrapped, so that scripts can read it."""
    typer.secho(f"livefactor: {text}", fg=typer.colors.RED, err=True)


def main() -> None:
    """Entry point: errors of the client and of settings become one line and exit code 1."""
    # Commands live in modules of their own; importing them adds them to `app`.
    from livefactor_server.cli import client, judge, log, push, tune  # noqa: F401

    try:
        app()
    except errors.LivefactorError as error:
        complain(f"{error}")
        raise SystemExit(1) from None


def _setting(name: str) -> Any:
    field = ServerSettings.model_fields[name]
    return typer.Option(
        "--" + name.replace("_", "-"),
        help=f"{field.description} [default: {field.default}]",
        show_default=False,
    )


@app.command()
def serve(
    data: Annotated[Path | None, _setting("data")] = None,
    host: Annotated[str | None, _setting("host")] = None,
    port: Annotated[int | None, _setting("port")] = None,
    metrics_port: Annotated[int | None, _setting("metrics_port")] = None,
    allow_remote: Annotated[bool | None, _setting("allow_remote")] = None,
    preset: Annotated[str | None, _setting("preset")] = None,
    spec: Annotated[Path | None, _setting("spec")] = None,
    backend: Annotated[str | None, _setting("backend")] = None,
    batch_events_max: Annotated[int | None, _setting("batch_events_max")] = None,
    queue_bytes_max: Annotated[int | None, _setting("queue_bytes_max")] = None,
    memory_bytes_max: Annotated[int | None, _setting("memory_bytes_max")] = None,
    streams_max: Annotated[int | None, _setting("streams_max")] = None,
    update_slots: Annotated[int | None, _setting("update_slots")] = None,
    score_slots: Annotated[int | None, _setting("score_slots")] = None,
    snapshot_every_events: Annotated[int | None, _setting("snapshot_every_events")] = None,
    snapshots_kept: Annotated[int | None, _setting("snapshots_kept")] = None,
    judge_record_share: Annotated[float | None, _setting("judge_record_share")] = None,
    judge_events_per_record_max: Annotated[int | None, _setting("judge_events_per_record_max")] = None,
    judge_sampled_share: Annotated[float | None, _setting("judge_sampled_share")] = None,
    judge_ranked_share: Annotated[float | None, _setting("judge_ranked_share")] = None,
    judge_window_events: Annotated[int | None, _setting("judge_window_events")] = None,
    judge_half_life_events: Annotated[int | None, _setting("judge_half_life_events")] = None,
    judge_popularity_half_life_events: Annotated[
        int | None, _setting("judge_popularity_half_life_events")
    ] = None,
    judge_hold: Annotated[bool | None, _setting("judge_hold")] = None,
    tensorboard: Annotated[Path | None, _setting("tensorboard")] = None,
    drain_s: Annotated[float | None, _setting("drain_s")] = None,
    log_level: Annotated[str | None, _setting("log_level")] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="Write the gRPC and metrics ports here, one a line, once serving.")
    ] = None,
) -> None:
    """Serve models from a data folder. Every setting is also an environment variable: LIVEFACTOR_PORT and so on."""
    given = {name: value for name, value in locals().items() if value is not None and name != "port_file"}
    try:
        settings = ServerSettings(**given)
    except ValidationError as error:
        for line in error.errors():
            complain(f"{'.'.join(map(str, line['loc']))}: {line['msg']}")
        raise typer.Exit(2) from None
    raise typer.Exit(run_server(settings, port_file))


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


def run_server(settings: ServerSettings, port_file: Path | None) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Returns the exit code."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)-8s %(name)s: %(message)s"
    )
    if settings.host not in LOOPBACK and not settings.allow_remote:
        complain(f"{settings.host} is not loopback; there is no TLS yet, so this needs --allow-remote")
        return 2
    from livefactor_kernels.backend import BackendUnavailable
    from livefactor_server import metrics
    from livefactor_server.files.specs import SpecFileError
    from livefactor_server.hosting import host as hosting
    from livefactor_server.log.store import LogError
    from livefactor_server.rpc import server
    from livefactor_server.snapshots.replay import ReplayError

    server.limit_libraries()
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        parts = settings.hosting()
        logging.getLogger("livefactor_server").info(
            "backend %s (--backend %s)", parts.engine.backend, settings.backend
        )
        models = hosting.Hosting(settings.data, parts)
        models.open_all(_report_replay)
        rpc = server.RpcServer(models, settings.service(), f"{settings.host}:{settings.port}")
        metrics_port = (
            metrics.serve_metrics(settings.host, settings.metrics_port) if settings.metrics_port >= 0 else -1
        )
    except (
        BackendUnavailable,
        hosting.DataFolderBusy,
        server.PortInUse,
        LogError,
        ReplayError,
        SpecFileError,
        OSError,
    ) as error:
        complain(f"{error}")
        return 1
    # Unlike an Event, which a second signal or one at a bad moment would lock up, it may be used inside a handler.
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: ended.put(None))
    rpc.start()
    logger = logging.getLogger("livefactor_server")
    logger.info(
        "serving gRPC on %s:%d, metrics on port %d, data in %s",
        settings.host,
        rpc.port,
        metrics_port,
        settings.data,
    )
    if port_file is not None:
        server.write_port_file(port_file, [rpc.port, metrics_port])
    ended.get()
    logger.info("draining")
    rpc.drain(settings.drain_s)
    for number in STOP_SIGNALS:  # the exit code of a clean drain is 0, however often it is asked for
        signal.signal(number, signal.SIG_IGN)
    logger.info("drained")
    return 0


def _report_replay(model: str, at: int, last: int) -> None:
    step = max(1, last // 20)
    if at == last or at // step != (at - 256) // step:
        logging.getLogger("livefactor_server").info(
            "model %s: replayed to revision %d of %d", model, at, last
        )


@app.command()
def demo(
    events: Annotated[
        int | None, typer.Option(help="Stop after so many events (default: the whole year).")
    ] = None,
) -> None:
    """Stream a real shop's year through a server, watch the list of a customer change, kill the server, prove nothing was lost."""
    from livefactor_server.cli.demo import run_demo

    raise typer.Exit(run_demo(console, events))


def table(*columns: str) -> Table:
    """A plain table."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
