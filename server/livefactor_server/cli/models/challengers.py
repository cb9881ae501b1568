"""`livefactor models challenge`, `challengers` and `settle`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from livefactor_kernels.spec.names import PRESET_NAMES
from livefactor_server.cli.base import DEFAULT_TARGET, AsJson, Target, console, emit, models_app, table
from livefactor_server.cli.models.commands import read_spec, spec_errors

if TYPE_CHECKING:
    from livefactor.results.contest import Contest, Share


def _show_share(share: Share) -> None:
    screen = console()
    state = (
        "answers"
        if share.is_ready
        else f"has ended: {share.ended}"
        if share.ended
        else "learns the log, and will answer"
    )
    screen.print(f"{share.challenger} {state}, {share.share:.1%} of the users", soft_wrap=True)
    grid = table("variant", "spec", "lists", "events afterwards", "in the list", "rate")
    for each in share.variants:
        rate = f"{each.hit_rate:.4f}" if each.events else ""
        grid.add_row(each.name, each.spec_id, str(each.lists), str(each.events), str(each.hits), rate)
    screen.print(grid)


def _show(name: str, contest: Contest, as_json: bool) -> None:
    if as_json:
        emit(asdict(contest))
        return
    screen = console()
    if not contest.contestants:
        screen.print(f"no contest of {name} has been held yet", soft_wrap=True)
    else:
        paused = f"a contest has paused until event {contest.resumes_at}" if contest.resumes_at else ""
        state = "a contest runs" if contest.is_running else paused or "the last contest ended"
        verdict = f", {contest.winner} won" if contest.winner else ""
        screen.print(
            f"{state}{verdict}: {contest.judged_events} events judged of {contest.learned_events} learned, "
            f"{contest.events_behind} events behind, {contest.rounds} rounds complete",
            soft_wrap=True,
        )
        grid = table("spec", "standing", "gain", "difference", "standard error", "events", "users")
        for each in contest.contestants:
            is_champion = each.standing == "champion"
            error = "unknown" if each.error is None else f"{each.error:.4f}"
            grid.add_row(
                each.name, each.standing, f"{each.mean:.4f}", "" if is_champion else f"{each.difference:+.4f}",
                "" if is_champion else error, str(each.events), str(each.users),
            )  # fmt: skip
        screen.print(grid)
    if contest.share is not None:
        _show_share(contest.share)
    if contest.waiting:
        screen.print(f"for the next contest: {', '.join(contest.waiting)}", soft_wrap=True)
    search = (
        "looks for a better spec by itself" if contest.automatic else "keeps its spec until you promote one"
    )
    screen.print(
        f"{name} {search}; {contest.contests} contests are complete, and contests took "
        f"{contest.cpu_seconds:.1f} CPU seconds",
        soft_wrap=True,
    )


@models_app.command("challenge")
def models_challenge(
    name: Annotated[str, typer.Argument(help="The model.")],
    preset: Annotated[
        str, typer.Option(help=f"One of {', '.join(PRESET_NAMES)}. Default: the model's spec.")
    ] = "",
    spec: Annotated[str, typer.Option(help="Changes to it as JSON, or a spec file (TOML).")] = "{}",
    challenger: Annotated[
        str, typer.Option("--as", help="Name of the challenger. Default: the preset's.")
    ] = "",
    share: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of the users whom the challenger answers.")
    ] = 0.0,
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Add a challenger, a spec that is judged beside the model's own on the same events."""
    from livefactor.models import Models

    with spec_errors(), Models(target) as models:
        named, changes = read_spec(spec)
        found = models.challenge(name, preset or named, challenger=challenger, share=share, **changes)
        _show(name, found, as_json)


@models_app.command("challengers")
def models_challengers(
    name: Annotated[str, typer.Argument(help="The model.")] = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Show the challengers of a model: their figures beside the champion's, and the evidence."""
    from livefactor.models import Models

    with Models(target) as models:
        _show(name, models.challengers(name), as_json)


@models_app.command("settle")
def models_settle(
    name: Annotated[str, typer.Argument(help="The model.")],
    challenger: Annotated[
        str, typer.Argument(help="The challenger whose spec the model gets. Default: its spec stays.")
    ] = "",
    preset: Annotated[
        str, typer.Option(help=f"The spec that it gets instead: one of {', '.join(PRESET_NAMES)}.")
    ] = "",
    spec: Annotated[
        str, typer.Option(help="Changes to the preset or to its spec, as JSON or a spec file (TOML).")
    ] = "{}",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """End the search of a model for a better spec."""
    from livefactor.models import Models

    with spec_errors(), Models(target) as models:
        named, changes = read_spec(spec)
        described = models.settle(name, challenger, preset=preset or named, **changes)
    if as_json:
        emit({"model": name, "revision": described.position.revision, "spec": described.spec})
        return
    what = f"rule {described.spec['rule']}, k {described.spec['k']}"
    console().print(f"{name} keeps its spec from now on: {what}", soft_wrap=True)
