"""The screen of `livefactor top`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.widgets import DataTable, Footer, Static

from livefactor_server.cli.top.figures import ModelFigures, Reading, models
from livefactor_server.text import plain

COLUMNS = (
    "model", "state", "revision", "events/s", "calls/s", "refused/s", "score p99", "update p99", "lag",
    "users", "items", "memory",
)  # fmt: skip


class Top(App[None]):
    """A table of the models, which is read anew every `every_s` seconds."""

    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit"), ("r", "read", "Read now")]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, source: Callable[[], Reading], where: str, every_s: float) -> None:
        super().__init__()
        self._source, self._where, self._every_s = source, where, every_s
        self._before: Reading | None = None

    def compose(self) -> ComposeResult:
        """The parts of the screen."""
        yield Static(f"livefactor top  {plain(self._where)}", id="where")
        yield DataTable(id="models", cursor_type="row")
        yield Static("", id="trouble")
        yield Footer()

    def on_mount(self) -> None:
        """Reads for the first time."""
        self.query_one(DataTable).add_columns(*COLUMNS)
        self.action_read()
        self.set_interval(self._every_s, self.action_read)

    @work(thread=True, exclusive=True)
    def action_read(self) -> None:
        """Reads the metrics in a thread."""
        try:
            reading = self._source()
        except (OSError, ValueError) as error:
            self.call_from_thread(self._complain, str(error))
            return
        self.call_from_thread(self._show, reading)

    def _complain(self, trouble: str) -> None:
        self.query_one("#trouble", Static).update(Text(plain(trouble), "bold red"))

    def _show(self, reading: Reading) -> None:
        self.query_one("#trouble", Static).update("")
        table = self.query_one(DataTable)
        table.clear()
        for figures in models(self._before or reading, reading):
            table.add_row(*cells(figures))
        self._before = reading


def cells(figures: ModelFigures) -> list[Text]:
    """The cells of a model's row."""
    state = Text(figures.state, "green" if figures.state == "serving" else "bold red")
    numbers = (
        f"{figures.revision:,}",
        f"{figures.events_per_s:,.0f}",
        f"{figures.calls_per_s:,.0f}",
        f"{figures.refused_per_s:,.0f}",
        duration(figures.score_p99_s),
        duration(figures.update_p99_s),
        f"{figures.lag_records:,}",
        f"{figures.users:,}",
        f"{figures.items:,}",
        f"{figures.memory_bytes / 2**20:,.0f} MiB",
    )
    return [Text(plain(figures.model)), state, *(Text(number, justify="right") for number in numbers)]


def duration(seconds: float) -> str:
    """A time as text: the upper bound of a bucket."""
    if math.isnan(seconds):
        return "-"
    return "> 5 s" if math.isinf(seconds) else f"≤ {1000 * seconds:,.4g} ms"
