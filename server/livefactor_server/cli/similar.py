"""`livefactor similar`: the items that are most similar to given items."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from livefactor_server.cli.base import (
    DEFAULT_TARGET,
    AsJson,
    Model,
    Secret,
    StringIds,
    Target,
    app,
    console,
    emit,
    table,
)


@app.command()
def similar(
    items: Annotated[list[str], typer.Argument(help="Item ids: integers if all of them are, else strings.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of similar items for each item.")] = 10,
    include_unavailable: Annotated[
        bool, typer.Option("--include-unavailable", help="Also show items that are marked unavailable.")
    ] = False,
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Show the items that are most similar to given items, by the cosine of their factors."""
    from livefactor.scorer import Scorer
    from livefactor.wire.ids import ids_of_texts

    ids: Any = list(items) if string_ids else ids_of_texts(items)
    with Scorer(target, model=model, secret=secret.encode()) as scorer:
        answers = scorer.similar(ids, k, include_unavailable=include_unavailable)
    listed: list[dict[str, Any]] = [
        {"item": answer.user_id, "known": answer.known, "similar": [
            {"item": item, "label": label, "cosine": float(str(score))}
            for item, label, score in zip(answer.item_ids.tolist(), answer.labels, answer.scores, strict=True)
        ]}
        for answer in answers
    ]  # fmt: skip
    if as_json:
        emit({"revision": answers.position.revision, "items": listed})
        return
    for entry in listed:
        unknown = "" if entry["known"] else " is unknown"
        console().print(f"item {entry['item']}{unknown}, revision {answers.position.revision}")
        if entry["similar"]:
            grid = table("rank", "item", "label", "cosine")
            for rank, one in enumerate(entry["similar"], 1):
                label = one["label"] if one["label"] != one["item"] else ""
                grid.add_row(str(rank), str(one["item"]), label, f"{one['cosine']:.4f}")
            console().print(grid)
