"""What all commands share: command groups, common options, consoles, and one form of error.

This module and the modules of the commands import nothing that takes long. A command imports what
it needs when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from livefactor_server.text import plain

if TYPE_CHECKING:
    from rich.table import Table

    from livefactor_server.cli.screen import Screen

DEFAULT_TARGET = "127.0.0.1:50051"
"""`livefactor.channel.DEFAULT_TARGET`, which would take long to import."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that no other machine reaches."""

PIPE_WIDTH = 10_000
"""Columns of a line that is not written to a terminal: nothing is wrapped there."""


class Group(TyperGroup):
    """A group of commands without options.

    If `--help` were an option of the group, the help of every command would be slow: Typer loads
    Pydantic to convert the value of an option that was not given.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Splits the arguments into those of the group and the rest."""
        if args[:1] == ["--help"]:
            typer.echo(ctx.get_help())
            raise typer.Exit
        return super().parse_args(ctx, args)


class ListByDefault(Group):
    """A group that runs its command `list` if none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Splits the arguments into those of the group and the rest."""
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


class Commands(Group):
    """All commands, and `--version`.

    Errors of the client and of the system become one line, with exit code 1.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Splits the arguments into those of the group and the rest."""
        if args[:1] == ["--version"]:
            typer.echo(f"livefactor {version('livefactor')}")
            raise typer.Exit
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of the output has enough, as in `| head`.
            raise
        except Exception as error:
            if not _is_fault(error):
                raise
            complain(error)
            raise typer.Exit(1) from None


def _is_fault(error: Exception) -> bool:
    """Whether an error is a fault of the system or a server, and not of this code."""
    # If no client was at work, its import would slow `--help` down.
    errors = sys.modules.get("livefactor.errors")
    return isinstance(error, OSError) or (errors is not None and isinstance(error, errors.LivefactorError))


app = typer.Typer(
    name="livefactor",
    cls=Commands,
    no_args_is_help=True,
    add_help_option=False,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A recommendation model that learns while it serves. Push events, ask for recommendations, and"
    " prove later which model gave them. `livefactor --version` prints the version.",
)
models_app = typer.Typer(
    cls=ListByDefault,
    add_help_option=False,
    help="Create, list, describe, restore and delete models. Without a command: list them.",
)
log_app = typer.Typer(cls=Group, no_args_is_help=True, add_help_option=False, help="Show the log of a model.")
app.add_typer(models_app, name="models")
app.add_typer(log_app, name="log")


def _checked_target(value: str) -> str:
    if value == DEFAULT_TARGET:
        return value
    from livefactor.channel import parse_targets

    try:
        parse_targets(value)
    except ValueError as error:
        complain(f"--{error}")
        raise typer.Exit(2) from None
    return value


Target = Annotated[
    str,
    typer.Option(
        "--target",
        envvar="LIVEFACTOR_TARGET",
        callback=_checked_target,
        help="Address of the server: host:port or unix:/path; several with commas.",
    ),
]
Model = Annotated[str, typer.Option("--model", "-m", help="Name of the model.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--encryption-key-file",
        envvar="LIVEFACTOR_ENCRYPTION_KEY_FILE",
        show_envvar=False,
        help="File with the key of an encrypted data folder.",
    ),
]
KeyCommand = Annotated[
    str,
    typer.Option(
        "--encryption-key-command",
        envvar="LIVEFACTOR_ENCRYPTION_KEY_COMMAND",
        show_envvar=False,
        help="Command that prints this key.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Secret = Annotated[
    str,
    typer.Option(
        "--secret",
        envvar="LIVEFACTOR_SECRET",
        help="Secret with which ids that are text are hashed. All producers use the same.",
    ),
]

StringIds = Annotated[bool, typer.Option(help="Read all ids as strings, also those that look like integers.")]


def emit(value: Any) -> None:
    """Prints a value as one line of JSON."""
    typer.echo(json.dumps(value, default=str, sort_keys=True))


def complain(trouble: str | Exception) -> None:
    """Prints one line to standard error. It is never wrapped, so that scripts can read it."""
    text = trouble if isinstance(trouble, str) else reason(trouble)
    typer.secho(f"livefactor: {plain(text)}", fg=typer.colors.RED, err=True)


def reason(error: Exception) -> str:
    """What an error says. One of the system names the file first, and no number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def say(line: str) -> None:
    """Prints one line to standard output. It is never wrapped."""
    typer.echo(plain(line))


def console(err: bool = False) -> Screen:
    """A console on standard output, or on standard error with `err`.

    It wraps lines only on a terminal. It prints strings as text and knows no markup.
    """
    from livefactor_server.cli.screen import Screen

    stream = sys.stderr if err else sys.stdout
    return Screen(stderr=err, width=None if stream.isatty() else PIPE_WIDTH)


def table(*columns: str) -> Table:
    """A table without lines."""
    from rich.table import Table

    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def progress(*columns: Any) -> Any:
    """A progress bar (`rich.progress.Progress`) on standard error, which disappears at its end.

    `columns` follow the description, the bar and the percentage. If standard error is not a
    terminal, the bar prints nothing.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    shown: Sequence[Any] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(show_speed=False),
        *columns,
    )
    screen = console(err=True)
    return Progress(*shown, console=screen, transient=True, disable=not screen.is_terminal)


def rate(events_per_s: float | None) -> str:
    """A rate of events as text, such as "1.25 M events/s". Empty if the rate is unknown or 0."""
    if not events_per_s:
        return ""
    for scale, unit in ((1e6, "M "), (1e3, "k ")):
        if events_per_s >= scale:
            return f"{events_per_s / scale:.2f} {unit}events/s"
    return f"{events_per_s:.2f} events/s"


def use_key(file: Path | None, command: str) -> None:
    """Sets the key of encrypted data for this command, if one is given. A bad one ends it."""
    if file is None and not command:
        return
    from livefactor_server.hosting.keys import BadKey, read_key
    from livefactor_server.log import sealing

    try:
        sealing.use(read_key(file, command))
    except BadKey as error:
        complain(error)
        raise typer.Exit(2) from None
