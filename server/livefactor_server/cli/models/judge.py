"""Shows what the judge says about a model, and releases a hold."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from livefactor_server.cli.base import DEFAULT_TARGET, Target, console, models_app, table

if TYPE_CHECKING:
    from livefactor.results.judgement import Hold, JudgeFigure, Judgement

_SCORERS = ("model", "popular", "popular_decayed")


def show_hold(hold: Hold) -> None:
    """Prints why updates are refused and what an operator can do."""
    console().print()
    console().print(
        f"UPDATES ARE ON HOLD since revision {hold.revision}, {_time(hold.time_us)}: {hold.reason}"
    )
    good = f"revision {hold.good_revision}" if hold.good_revision else "unknown"
    console().print(f"last good state: {good}; newest snapshot at or before it: {hold.snapshot_id or 'none'}")
    console().print(
        "`livefactor models release` accepts updates again; `livefactor models restore` makes a model from a snapshot"
    )


def show_judgement(judgement: Judgement) -> None:
    """Prints the figures of the model beside those of the baselines, then the detected changes."""
    console().print()
    console().print(
        f"judged: {judgement.judged_events} events since revision {judgement.since_revision}, "
        f"{judgement.sampled_events} of them ranked among drawn items, {judgement.ranked_events} among all"
    )
    grid = table(
        "metric",
        "events of",
        "events",
        *(f"{name} {span}" for span in ("window", "decayed") for name in _SCORERS),
    )
    groups = [("all", figure) for figure in judgement.figures]
    groups += [("new users", figure) for figure in judgement.new_user_figures]
    groups += [("known users", figure) for figure in judgement.known_user_figures]
    rows: dict[tuple[str, str], dict[str, JudgeFigure]] = {}
    for users, figure in groups:
        kind = users if figure.event_type is None else f"type {figure.event_type}"
        rows.setdefault((figure.metric, kind), {})[figure.scorer] = figure
    for (metric, kind), found in rows.items():
        row = [found.get(scorer) for scorer in _SCORERS]
        numbers = [figure.windowed if figure else None for figure in row]
        numbers += [figure.decayed if figure else None for figure in row]
        grid.add_row(metric, kind, str(found["model"].events), *map(_number, numbers))
    console().print(grid)
    if not math.isnan(judgement.row_norm):
        console().print(
            f"mean row norm {judgement.row_norm:.4g}, factors at the bound {judgement.clamped_share:.2%}, "
            f"all within bounds at revision {judgement.good_revision or 'none yet'}"
        )
    for event in judgement.events:
        console().print(
            f"{_time(event.time_us)} revision {event.revision}: {event.kind}, {event.metric} "
            f"{event.before:.4g} -> {event.after:.4g} ({'worse' if event.worse else 'better'})"
        )
    if not judgement.drift_detection:
        console().print("drift detection is off: the server has no river package")


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@models_app.command("release")
def models_release(
    name: Annotated[str, typer.Argument(help="The model.")] = "default", target: Target = DEFAULT_TARGET
) -> None:
    """Release a hold, so that the model takes updates again.

    The judge takes what comes next as normal.
    """
    from livefactor.models import Models

    with Models(target) as models:
        described = models.release(name)
    console().print(f"{name} takes updates again, from revision {described.position.revision} on")
