"""`livefactor tune FILE`: search a spec on a file of events, test-then-learn, and write it for `serve --spec`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from livefactor_kernels.spec.model import KERNEL_SEMANTICS
from livefactor_server.cli.app import AsJson, app, complain, console, emit, notes, table
from livefactor_server.files import specs as spec_files
from livefactor_server.files.events import Conversion
from livefactor_server.rpc.server import limit_libraries
from livefactor_server.tuning import events, pictures, plan, search
from livefactor_server.tuning.metrics import METRICS
from livefactor_server.tuning.progressive import BATCH_EVENTS
from livefactor_server.tuning.report import Report, Row, make_report, shown_fields
from livefactor_server.tuning.rules import RULES, TASKS, field_of

SHOWN_TRIALS = 5


@app.command()
def tune(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="csv, csv.gz or parquet, oldest event first.")
    ],
    user: Annotated[str, typer.Option(help="Column of user ids. Default: user_id or user.")] = "",
    item: Annotated[str, typer.Option(help="Column of item ids. Default: item_id or item.")] = "",
    value: Annotated[
        str, typer.Option(help="Column of values (ratings, 0/1). Default: value or rating, if there.")
    ] = "",
    weight: Annotated[str, typer.Option(help="Column of weights. Default: weight, if there.")] = "",
    event_type: Annotated[
        str,
        typer.Option(
            help="Column of event types: checked, no rule learns from it. Default: event_type or type."
        ),
    ] = "",
    time_column: Annotated[
        str,
        typer.Option(
            "--time", help="Column of times, which orders the events. Default: time or timestamp, if there."
        ),
    ] = "",
    string_ids: Annotated[bool, typer.Option(help="Hash ids as text even if they are numbers.")] = False,
    secret: Annotated[str, typer.Option(envvar="LIVEFACTOR_SECRET", help="Key for string ids.")] = "",
    task: Annotated[
        str, typer.Option(help="ratings, clicks or purchases. Default: as the values look.")
    ] = "",
    metric: Annotated[str, typer.Option(help="For clicks and purchases: recall or ndcg, of 10.")] = "recall",
    rule: Annotated[
        list[str] | None, typer.Option(help="Try this rule alone; repeat the option for more.")
    ] = None,
    batch: Annotated[
        int,
        typer.Option(min=1, max=65_536, help="Events that are judged together, then learned as one record."),
    ] = BATCH_EVENTS,
    part: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Share of the stream, its first, that is searched on.")
    ] = 0.6,
    warm_up: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of that part that is learned and not judged.")
    ] = 0.2,
    judged: Annotated[
        int, typer.Option(min=1, help="About so many events are judged: a sample, if there are more.")
    ] = 20_000,
    trials: Annotated[
        int, typer.Option(min=1, help="Trials in all, those of an interrupted run included.")
    ] = 60,
    minutes: Annotated[
        float, typer.Option(min=0.0, help="Begin no trial after so many minutes; 0: no limit.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the search: the same seed tries the same specs.")] = 0,
    study: Annotated[
        Path | None, typer.Option(help="Folder of the trials. Default: beside --out, named .study.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The spec file; the picture goes beside it, as .svg.")
    ] = Path("tuned.toml"),
    as_json: AsJson = False,
) -> None:
    """Search learning rates, k, regularisation, negatives and rule on your own events; run again, it goes on where it was."""
    if lacking := search.missing():
        complain(lacking)
        raise typer.Exit(2)
    columns = {"user_ids": user, "item_ids": item, "values": value, "weights": weight}
    columns |= {"event_types": event_type, "times": time_column}
    limit_libraries()
    try:
        read = _read(file, columns, Conversion(string_ids, secret.encode()).check())
        chosen = _task(task, read)
        settings = plan.Settings(_metric(metric, chosen), batch, part, warm_up, judged, seed)
        rules, left_out = read.rules(chosen, rule or [])
        if left_out:
            notes.print(f"left out, since they reject rows of this file: {', '.join(left_out)}")
        judge = plan.Plan(read.stream, settings)
        folder = study or out.with_suffix(".study")
        done = _search(folder, read, judge, chosen, rules, trials, minutes)
        report = _finish(judge, done, chosen)
        spec_files.write_spec(out, report.spec, RULES[report.rule].preset, report.notes(file.name))
        pictures.draw(out.with_suffix(".svg"), done, judge.metric, report.lines())
    except ValueError as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on with the trial that was under way")
        raise typer.Exit(130) from None
    if as_json:
        emit(
            {
                **report.fields(),
                "spec": str(out),
                "picture": str(out.with_suffix(".svg")),
                "study": str(folder),
            }
        )
        return
    console.print(_grid(report, done, judge))
    console.print(
        f"wrote {out} and {out.with_suffix('.svg')}; serve it: livefactor serve --spec {out}", soft_wrap=True
    )


def _bar(*columns: Any) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *columns,
        TimeElapsedColumn(),
        console=notes,
        transient=True,
    )


def _read(file: Path, columns: dict[str, str], conversion: Conversion) -> events.EventFile:
    with _bar() as bar:
        task = bar.add_task("events read", total=None)
        read = events.read_events(
            file, columns, conversion, lambda at, total: bar.update(task, completed=at, total=total or None)
        )
    found = ", ".join(f"{field} from {name}" for field, name in read.names.items())
    notes.print(f"{len(read.stream):,} events: {found}", soft_wrap=True)
    return read


def _task(task: str, read: events.EventFile) -> str:
    if task and task not in TASKS:
        raise ValueError(f"--task: expected one of {', '.join(TASKS)}, got {task!r}")
    if task == "ratings" and "values" not in read.names:
        raise ValueError("--task ratings: needs a column of values (--value)")
    if not task:
        task = read.task()
        notes.print(f"task: {task}, as the values look (--task)")
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
    rules: list[str],
    trials: int,
    minutes: float,
) -> list[search.FinishedTrial]:
    chosen = judge.settings
    settings = {
        "events": read.digest, "task": task, "rules": rules, "metric": chosen.metric, "batch": chosen.batch_events,
        "part": chosen.part, "warm-up": chosen.warm_up, "judged": chosen.judged_max, "seed": chosen.seed,
        "kernel semantics": KERNEL_SEMANTICS,
    }  # fmt: skip
    metric = judge.metric
    with (
        search.open_study(folder, settings, metric.larger_is_better) as study,
        _bar(TextColumn("{task.fields[best]}")) as bar,
    ):
        task_trials = bar.add_task("trials", total=trials, best="")
        task_events = bar.add_task("events of this trial", total=judge.searched, best="")
        before = len(search.finished_trials(study))
        if before:
            notes.print(f"{folder}: goes on after {before} trials")

        def on_trial(done: list[search.FinishedTrial]) -> None:
            best = search.best_first(done, judge)
            words = f"best {metric.label} {best[0].value:.4f} ({best[0].rule})" if best else ""
            bar.update(task_trials, completed=len(done), best=words)

        def on_events(learned: int) -> None:
            bar.update(task_events, completed=learned)

        started = time.monotonic()
        done = search.search(study, judge, rules, trials, minutes, on_events, on_trial)
    notes.print(f"{len(done)} trials, {len(done) - before} of them now, {time.monotonic() - started:.0f} s")
    return done


def _finish(judge: plan.Plan, done: list[search.FinishedTrial], task: str) -> Report:
    """The winner and the preset on the rest of the stream, once each."""
    with _bar() as bar:
        bars = [bar.add_task(f"the rest: {name}", total=len(judge.stream)) for name in ("winner", "preset")]
        return make_report(judge, done, task, lambda at, learned: bar.update(bars[at], completed=learned))


def _grid(report: Report, done: list[search.FinishedTrial], judge: plan.Plan) -> Table:
    others = [Row.of_trial(one) for one in search.best_first(done, judge)[1:SHOWN_TRIALS]]
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
