"""What `livefactor evaluate` does: read the events, judge each method, show the figures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset
from livefactor_server.cli.base import complain, console, emit, rate, table
from livefactor_server.cli.tune.run import bar_of, read_file, task_of
from livefactor_server.engine.ratings import spec_after
from livefactor_server.files import specs as spec_files
from livefactor_server.rpc.server import limit_libraries
from livefactor_server.tuning import events, opponents, page, pictures
from livefactor_server.tuning.evaluation import Evaluation, Protocol, Result
from livefactor_server.tuning.plan import with_context
from livefactor_server.tuning.starts import starts

if TYPE_CHECKING:
    from rich.table import Table


class Command(NamedTuple):
    """The arguments and options of the command."""

    file: Path
    columns: dict[str, str]
    string_ids: bool
    secret: str
    task: str
    presets: list[str]
    specs: list[Path]
    held_out: float
    warm_up: float
    batch: int
    judged: int
    seed: int
    picture: Path | None
    report: Path | None
    as_json: bool
    separator: str = ""
    context_weight: float = 1.0


def run(asked: Command) -> None:
    """Runs the command. Raises typer.Exit after a wrong argument or an interrupt."""
    if (asked.picture or asked.report) and find_spec("matplotlib") is None:
        complain('a picture needs matplotlib: pip install "livefactor[tune]"')
        raise typer.Exit(2)
    limit_libraries()
    try:
        read = read_file(asked.file, asked.columns, asked.string_ids, asked.secret, asked.separator)
        task = task_of(asked.task, read)
        specs = _with_context(_specs(asked, task, read), read)
        protocol = Protocol(
            task, asked.held_out, asked.warm_up, asked.judged, asked.batch, asked.seed, asked.context_weight
        )
        evaluation = Evaluation(read.stream, protocol)
        models, others = _results(evaluation, specs)
        if asked.picture is not None:
            pictures.draw_tenths(asked.picture, [*models, *others], evaluation.metrics[0])
    except ValueError as error:
        complain(f"{asked.file}: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        complain("interrupted")
        raise typer.Exit(130) from None
    verdict = _verdict(evaluation, models, others)
    if asked.report is not None:
        page.write_page(asked.report, asked.file.name, evaluation, models, others, verdict, read.types, specs)
    if asked.as_json:
        emit(_fields(evaluation, models, others, verdict))
        return
    console().print(_grid(evaluation, models, others))
    console().print(verdict, soft_wrap=True)


def _specs(asked: Command, task: str, read: events.EventFile) -> dict[str, ModelSpec]:
    """The specs to judge under their names. Raises ValueError for one that rejects a row."""
    named = {name: preset(name) for name in asked.presets}
    named |= {file.name: spec_files.read_spec(file, task) for file in asked.specs}
    named = {name: spec_after(spec, read.stream.values) for name, spec in named.items()}
    for name, spec in named.items():
        read.check(spec, name)
    if named:
        return named
    found = [start.preset for start in starts(task, [], read.stream.values)]
    if not found:
        read.check(preset(task), f"preset {task}")
    return {name: preset(name) for name in found}


def _with_context(specs: dict[str, ModelSpec], read: events.EventFile) -> dict[str, ModelSpec]:
    """The specs, and each one that can have context a second time with it, if events have it."""
    if read.stream.context is None:
        return specs
    told = {f"{name}, context": with_context(spec) for name, spec in specs.items()}
    return specs | {name: spec for name, spec in told.items() if spec not in specs.values()}


def _results(evaluation: Evaluation, specs: dict[str, ModelSpec]) -> tuple[list[Result], list[Result]]:
    """The figures of the specs, and those of the others. The best spec is the first."""
    with bar_of() as bar:
        total = len(evaluation.stream)
        tasks = {name: bar.add_task(name, total=total) for name in specs}
        with_implicit = not evaluation.is_rating and opponents.is_installed()
        of_implicit = bar.add_task("implicit", total=total, visible=with_implicit)
        models = [
            evaluation.of_spec(name, spec, lambda at, name=name: bar.update(tasks[name], completed=at))  # type: ignore[misc]
            for name, spec in specs.items()
        ]
        others = evaluation.baselines()
        if with_implicit:
            others.append(evaluation.of_implicit(lambda at: bar.update(of_implicit, completed=at)))
    metric, sign = evaluation.metrics[0], 1 if evaluation.is_rating else -1
    return sorted(models, key=lambda one: sign * one.figures[metric][0]), others


def _verdict(evaluation: Evaluation, models: list[Result], others: list[Result]) -> str:
    """A sentence: whether the best spec is better than the best baseline that knows no users."""
    metric, best = evaluation.metrics[0], models[0]
    worth, error = best.figures[metric]
    naive = [one for one in others if not one.name.startswith("implicit")]
    sign = -1 if evaluation.is_rating else 1
    other = max(naive, key=lambda one: sign * one.figures[metric][0])
    against, other_error = other.figures[metric]
    gain, doubt = sign * (worth - against), 2.0 * (error**2 + other_error**2) ** 0.5
    figures = f"{metric} {worth:.4f} against {against:.4f}"
    if gain > doubt:
        return f"{best.name} is the best, and better than {other.name}: {figures}"
    if gain < -doubt:
        return f"no model is better than {other.name}: {best.name} has {figures}; try `livefactor tune`"
    return f"{best.name} and {other.name} do not differ by more than chance: {figures}; judge more events"


def _fields(
    evaluation: Evaluation, models: list[Result], others: list[Result], verdict: str
) -> dict[str, Any]:
    protocol = evaluation.protocol
    return {
        "task": protocol.task,
        "mode": "held-out" if protocol.held_out else "test-then-learn",
        "events": len(evaluation.stream),
        "judged": int(evaluation.sample.sum()),
        "models": [one.fields() for one in models],
        "others": [one.fields() for one in others],
        "verdict": verdict,
    }


def _grid(evaluation: Evaluation, models: list[Result], others: list[Result]) -> Table:
    judged = f"{int(evaluation.sample.sum()):,} events judged"
    heads = [part for metric in evaluation.metrics for part in (metric, "±")]
    grid = table(judged, *heads, "seconds", "learned")
    for one in (*models, *others):
        figures = [f"{number:.4f}" for metric in evaluation.metrics for number in one.figures[metric]]
        grid.add_row(one.name, *figures, f"{one.seconds:.1f}", rate(one.events_per_s))
    return grid
