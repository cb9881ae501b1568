"""What `livefactor tune` does: read the events, search, judge the winner, write the spec file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn

from livefactor_kernels.spec.model import KERNEL_SEMANTICS
from livefactor_server.cli.base import complain, console, emit, progress, table
from livefactor_server.files import specs as spec_files
from livefactor_server.rpc.server import limit_libraries
from livefactor_server.tuning import events, pictures, plan, search, starts
from livefactor_server.tuning.metrics import METRICS
from livefactor_server.tuning.report import Report, Row, make_report, shown_fields
from livefactor_server.tuning.rules import RULES, TASKS, field_of

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

SHOWN_TRIALS = 5


class Command(NamedTuple):
    """The arguments and options of the command."""

    file: Path
    columns: dict[str, str]
    string_ids: bool
    secret: str
    task: str
    metric: str
    rules: list[str]
    batch: int
    part: float
    warm_up: float
    judged: int
    trials: int
    minutes: float
    seed: int
    study: Path
    out: Path
    as_json: bool
    separator: str = ""
    context_weight: float = 1.0


def run(asked: Command) -> None:
    """Runs the command. Raises typer.Exit after a wrong argument or an interrupt."""
    if lacking := search.missing():
        complain(lacking)
        raise typer.Exit(2)
    limit_libraries()
    until = time.monotonic() + 60.0 * asked.minutes if asked.minutes else float("inf")
    try:
        read = read_file(asked.file, asked.columns, asked.string_ids, asked.secret, asked.separator)
        chosen = task_of(asked.task, read)
        settings = plan.Settings(
            _metric(asked.metric, chosen), asked.batch, asked.part, asked.warm_up, asked.judged, asked.seed,
            asked.context_weight,
        )  # fmt: skip
        rules, left_out = read.rules(chosen, asked.rules)
        if left_out:
            console(err=True).print(
                f"these rules are left out, because they reject rows of this file: {', '.join(left_out)}"
            )
        judge = plan.Plan(read.stream, settings)
        folder = asked.study
        first = starts.starts(chosen, rules, read.stream.values)
        done = _search(folder, read, judge, chosen, first, rules, asked.trials, until)
        report = _finish(judge, done, chosen, sum(start.preset != "" for start in first), until)
        spec_files.write_spec(
            asked.out,
            judge.with_context(report.spec),
            RULES[report.rule].preset,
            report.notes(asked.file.name),
        )
        pictures.draw(asked.out.with_suffix(".svg"), done, judge.metric, report.lines())
    except ValueError as error:
        complain(f"{asked.file}: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        complain("interrupted; the same command resumes with the interrupted trial")
        raise typer.Exit(130) from None
    if asked.as_json:
        emit(
            {
                **report.fields(),
                "spec": str(asked.out),
                "picture": str(asked.out.with_suffix(".svg")),
                "study": str(folder),
            }
        )
        return
    console().print(_grid(report, done, judge))
    if report.reason:
        console().print(report.reason, soft_wrap=True)
    console().print(
        f"wrote {asked.out} and {asked.out.with_suffix('.svg')}; serve it: livefactor serve --spec {asked.out}",
        soft_wrap=True,
    )


def bar_of(*columns: Any) -> Progress:
    """A progress bar with the number of events and the time."""
    bar: Progress = progress(MofNCompleteColumn(), *columns, TimeElapsedColumn())
    return bar


def read_file(
    file: Path, columns: dict[str, str], string_ids: bool, secret: str, separator: str = ""
) -> events.EventFile:
    """Reads the events of a file, and says what it found."""
    with bar_of() as bar:
        task = bar.add_task("events read", total=None)
        read = events.read_events(
            file,
            columns,
            string_ids,
            secret.encode(),
            on_events=lambda at, total: bar.update(task, completed=at, total=total or None),
            on_kinds=lambda sentence: console(err=True).print(sentence, soft_wrap=True),
            separator=separator,
        )
    found = ", ".join(f"{field} from {name}" for field, name in read.names.items())
    console(err=True).print(f"{len(read.stream):,} events; columns: {found}", soft_wrap=True)
    return read


def task_of(task: str, read: events.EventFile) -> str:
    """The task that was asked for, or the one that the values suggest. Raises ValueError."""
    if task and task not in TASKS:
        raise ValueError(f"--task: expected one of {', '.join(TASKS)}, got {task!r}")
    if task == "ratings" and "values" not in read.names:
        raise ValueError("--task ratings needs a column of values (--value)")
    if not task:
        task = read.task()
        console(err=True).print(f"task: {task}, guessed from the values; --task names another one")
    return task


def _metric(metric: str, task: str) -> str:
    ranking = [name for name in METRICS if name != "rmse"]
    if metric not in ranking:
        raise ValueError(f"--metric: expected {' or '.join(ranking)}, got {metric!r}")
    return "rmse" if task == "ratings" else metric


def _search(
    folder: Path,
    read: events.EventFile,
    judge: plan.Plan,
    task: str,
    first: list[starts.Start],
    rules: list[str],
    trials: int,
    until: float,
) -> list[search.FinishedTrial]:
    chosen = judge.settings
    presets = [one.preset for one in first if one.preset]
    settings = {
        "events": read.digest, "task": task, "rules": rules, "presets": presets,
        "metric": chosen.metric, "batch": chosen.batch_events,
        "part": chosen.part, "warm-up": chosen.warm_up, "judged": chosen.judged_max, "seed": chosen.seed,
        "kernel semantics": KERNEL_SEMANTICS,
    }  # fmt: skip
    if read.stream.context is not None:
        settings["context weight"] = chosen.context_weight
    metric = judge.metric
    with (
        search.open_study(folder, settings, metric.larger_is_better) as study,
        bar_of(TextColumn("{task.fields[best]}")) as bar,
    ):
        task_trials = bar.add_task("trials", total=max(trials, len(presets)), best="")
        task_events = bar.add_task("events of this trial", total=judge.search_events, best="")
        before = len(search.finished_trials(study))
        if before:
            console(err=True).print(f"the study in {folder} goes on after {before} trials")

        def on_trial(done: list[search.FinishedTrial]) -> None:
            best = search.best_first(done, judge)
            words = (
                f"best {metric.label} {best[0].value:.4f} ({best[0].rule})"
                if best
                else "the presets come first"
            )
            bar.update(task_trials, completed=len(done), best=words)

        def on_events(learned: int) -> None:
            bar.update(task_events, completed=learned)

        started = time.monotonic()
        done = search.search(study, judge, first, rules, trials, until, on_events, on_trial)
    console(err=True).print(
        f"{len(done)} trials, {len(done) - before} of them in this run, which took {time.monotonic() - started:.0f} s"
    )
    return done


def _finish(
    judge: plan.Plan, done: list[search.FinishedTrial], task: str, presets: int, until: float
) -> Report:
    """Judges the best trial and the best preset once each on the rest of the stream."""
    with bar_of() as bar:
        bars = [
            bar.add_task(f"rest of the stream: {name}", total=len(judge.stream))
            for name in ("best trial", "best preset")
        ]

        def on_events(at: int, learned: int) -> None:
            bar.update(bars[at], completed=learned)

        return make_report(judge, done, task, presets, until, on_events)


def _grid(report: Report, done: list[search.FinishedTrial], judge: plan.Plan) -> Table:
    others = [
        Row.of_trial(one, f"preset {one.preset}" if one.preset else "")
        for one in search.best_first(done, judge)
        if one.spec not in (report.winner.spec, report.preset.spec)
    ][: SHOWN_TRIALS - 1]
    rows = [report.winner, *others, report.preset, report.naive]
    fields = shown_fields(rows)
    grid = table(judge.metric.label, "search", "rest", "M/s", "rule", *fields.values())
    grid.columns[0].min_width = 10
    for column in grid.columns[1:]:
        column.no_wrap = True
    for row in rows:
        rest = "" if row.rest is None else f"{row.rest:.4f}"
        speed = f"{row.events_per_s / 1e6:.2f}" if row.events_per_s else ""
        spec = [f"{field_of(row.spec, field):.4g}" for field in fields] if row.spec else []
        grid.add_row(row.name, f"{row.search:.4f}", rest, speed, row.rule, *spec)
    return grid
