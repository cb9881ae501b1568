"""`livefactor explain`: why the score of a user and an item is what it is."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    Model,
    Secret,
    StringIds,
    Target,
    app,
    complain,
    console,
    emit,
    table,
)

if TYPE_CHECKING:
    from livefactor.results.explanation import ScoreExplanation
    from livefactor.results.served import ServedAnswer

_TERMS = {
    "mean": "global mean",
    "user_bias": "bias of the user",
    "item_bias": "bias of the item",
    "product": "factors of the user and the item",
    "gain": "gain from counts",
}


@app.command()
def explain(
    user: Annotated[str, typer.Option(help="The user's id: an integer or a string.")] = "",
    item: Annotated[str, typer.Option(help="The item's id.")] = "",
    score_id: Annotated[
        int, typer.Option(min=0, help="Show what the Score call with this score id was answered.")
    ] = 0,
    revision: Annotated[
        int | None, typer.Option(min=0, help="Explain the score at this earlier revision. Default: now.")
    ] = None,
    events: Annotated[int, typer.Option(min=0, help="Most events of the user to show.")] = 64,
    updates: Annotated[int, typer.Option(min=0, help="Most updates to show.")] = 10,
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Explain a score: its parts, the events that carry it, and the updates that made it.

    With --score-id and without a user it shows what was served. With both it explains the score at
    the revision of that answer.
    """
    from livefactor.auditor import Auditor
    from livefactor.wire.ids import ids_of_texts

    if bool(user) != bool(item) or not (user or score_id):
        complain("name --user and --item, or --score-id")
        raise typer.Exit(2)
    if score_id:
        with Auditor(target, model=model) as auditor:
            answer = auditor.served(score_id)
        if not user:
            _show_served(answer, as_json)
            return
        revision = answer.position.revision
    of_user, of_item = ([each] if string_ids else ids_of_texts([each]) for each in (user, item))
    with Auditor(target, model=model) as auditor:
        found = auditor.explain(
            of_user[0], of_item[0], revision=revision, events_max=events, updates_max=updates,
            secret=secret.encode(),
        )  # fmt: skip
    if as_json:
        emit(_fields(found))
    else:
        _show(found, user, item)


def _show_served(answer: ServedAnswer, as_json: bool) -> None:
    ends = answer.offsets.tolist()
    lists = [
        {
            "user": user,
            "items": answer.item_keys[start:end].tolist(),
            "scores": [float(str(each)) for each in answer.scores[start:end]],
        }
        for user, start, end in zip(answer.user_keys.tolist(), ends, ends[1:], strict=False)
    ]
    if as_json:
        emit(
            {
                "revision": answer.position.revision, "lineage": answer.position.lineage.hex(),
                "spec_id": answer.spec_id, "time_us": answer.time_us, "context": answer.context, "lists": lists,
            }
        )  # fmt: skip
        return
    time = datetime.fromtimestamp(answer.time_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    console().print(f"served at {time}Z, at revision {answer.position.revision} by spec {answer.spec_id}")
    if answer.context:
        console().print(f"context: {', '.join(answer.context)}", soft_wrap=True)
    grid = table("user", "place", "item", "score")
    for each in lists:
        for place, (item, score) in enumerate(zip(each["items"], each["scores"], strict=True), 1):
            grid.add_row(str(each["user"]), str(place), str(item), f"{score:.6g}")
    console().print(grid)


def _fields(found: ScoreExplanation) -> dict[str, Any]:
    """The explanation as plain values. A float32 is its shortest decimal, so its bits come back."""
    fields: dict[str, Any] = {
        "lineage": found.position.lineage.hex(), "revision": found.position.revision, "spec_id": found.spec_id,
        "user_known": found.user_known, "item_known": found.item_known,
    }  # fmt: skip
    for name in ("score", *_TERMS):
        fields[name] = float(str(getattr(found, name)))
    for name in ("user_factors", "item_factors"):
        fields[name] = [float(str(each)) for each in getattr(found, name)]
    for name in ("parts", "events", "updates"):
        fields[name] = [asdict(each) for each in getattr(found, name)]
    for name in ("remembered_events", "events_truncated", "searched_from", "user_label", "item_label"):
        fields[name] = getattr(found, name)
    return fields


def _show(found: ScoreExplanation, user: str, item: str) -> None:
    def named(text: str, label: str, known: bool) -> str:
        return f"{text}{f' ({label})' if label not in ('', text) else ''}{'' if known else ', unknown'}"

    who, what = (
        named(user, found.user_label, found.user_known),
        named(item, found.item_label, found.item_known),
    )
    console().print(
        f"user {who}, item {what}, revision {found.position.revision}: score {found.score}", soft_wrap=True
    )
    grid = table("term", "amount")
    for name, text in _TERMS.items():
        grid.add_row(text, str(getattr(found, name)))
    console().print(grid)
    if found.parts:
        grid = table("part", "says", "weight", "adds")
        for part in found.parts:
            grid.add_row(part.name, f"{part.value:.4g}", f"{part.weight:.4g}", f"{part.amount:+.4f}")
        console().print(grid)
    if found.events:
        grid = table("event: item", "value", "weight", "visits ago", "effect")
        for event in found.events:
            grid.add_row(
                event.label or str(event.item_id), f"{event.value:g}", f"{event.weight:g}",
                str(event.visits_ago), f"{event.effect:+.4f}",
            )  # fmt: skip
        console().print(grid)
        console().print(
            f"these are {len(found.events)} of {found.remembered_events} remembered events; the effect is "
            "the score minus the score without the event",
            soft_wrap=True,
        )
    if found.updates:
        grid = table("update", "kind", "producer", "sequence", "time", "rows of user", "of item", "of both")
        for update in found.updates:
            time = datetime.fromtimestamp(update.time_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
            grid.add_row(
                str(update.revision), update.kind, update.producer_id, str(update.sequence), f"{time}Z",
                str(update.user_rows), str(update.item_rows), str(update.both_rows),
            )  # fmt: skip
        console().print(grid)
    console().print(f"the log was searched from revision {found.searched_from} on")
