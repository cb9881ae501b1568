"""`livefactor recommend`: the best items for users, shown or written to a file."""

from __future__ import annotations

from pathlib import Path
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
    from livefactor.scorer import Scorer


@app.command()
def recommend(
    users: Annotated[
        list[str] | None, typer.Argument(help="User ids: integers if all of them are, else strings.")
    ] = None,
    users_file: Annotated[
        Path | None,
        typer.Option("--users", help="Take the users of a csv or parquet file; - is standard input."),
    ] = None,
    user: Annotated[str, typer.Option(help="Column of user ids in that file.")] = "user_id",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the lists to this file: .parquet or .pq, else csv."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of items for each user.")] = 10,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Id of an item to leave out. Repeat the option for more.")
    ] = None,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen", help="Leave out what the users have had (spec: history).")
    ] = False,
    context: Annotated[
        list[str] | None,
        typer.Option(help="Feature of this moment, such as hour:13. Repeat the option for more."),
    ] = None,
    context_weight: Annotated[float, typer.Option(help="Multiplies what the context adds.")] = 1.0,
    string_ids: StringIds = False,
    secret: Secret = "",
    model: Model = "default",
    target: Target = DEFAULT_TARGET,
    as_json: AsJson = False,
) -> None:
    """Recommend the best items for users, with their labels and scores.

    Name the users, or a file of them. With --out the lists become a file.
    """
    if bool(users) == (users_file is not None):
        complain("name user ids or --users FILE, and not both")
        raise typer.Exit(2)
    from livefactor.scorer import Scorer
    from livefactor.wire.ids import ids_of_texts

    read = list if string_ids else ids_of_texts
    ids: list[Any] = _users_of(users_file, user, string_ids) if users_file is not None else read(users or [])
    options: dict[str, Any] = {"exclude": read(exclude) if exclude else None, "exclude_seen": exclude_seen}
    if context:
        options |= {"context": context, "context_weight": context_weight}
    with Scorer(target, model=model, secret=secret.encode()) as scorer:
        if out is not None:
            _write_lists(scorer, ids, out, k, options, as_json)
            return
        answers = scorer.recommend(ids, k, **options)
    listed: list[dict[str, Any]] = [
        {"user": answer.user_id, "known": answer.known, "seen_truncated": answer.seen_truncated, "items": [
            {"item": item, "label": label, "score": float(str(score))}
            for item, label, score in zip(answer.item_ids.tolist(), answer.labels, answer.scores, strict=True)
        ]}
        for answer in answers
    ]  # fmt: skip
    if as_json:
        emit({"revision": answers.position.revision, "users": listed})
        return
    for entry in listed:
        # A string id is its own label. A column that repeats the ids would not help.
        named = any(item["label"] not in ("", item["item"]) for item in entry["items"])
        grid = table("rank", "item", *(["label"] if named else []), "score")
        for rank, item in enumerate(entry["items"], 1):
            label = [item["label"]] if named else []
            grid.add_row(str(rank), str(item["item"]), *label, f"{item['score']:.4f}")
        unknown = "" if entry["known"] else " (unknown: ranked by item bias alone)"
        console().print(f"user {entry['user']}{unknown}, revision {answers.position.revision}")
        if entry["seen_truncated"]:
            console().print(
                "the model has forgotten events of this user, so the list may hold items that they had "
                "(spec: history.users)"
            )
        console().print(grid)


def _users_of(file: Path, column: str, string_ids: bool) -> list[Any]:
    from livefactor_server.cli.recommend.lists import read_users

    try:
        ids, sentences = read_users(file, column, string_ids)
    except (ValueError, OSError) as error:
        complain(f"{file}: {error}")
        raise typer.Exit(2) from None
    for sentence in sentences:
        console(err=True).print(sentence, soft_wrap=True, markup=False, highlight=False)
    return ids


def _write_lists(
    scorer: Scorer, users: list[Any], out: Path, k: int, options: dict[str, Any], as_json: bool
) -> None:
    from livefactor_server.cli.recommend.lists import write_lists

    try:
        rows = write_lists(scorer, users, out, k, **options)
    except OSError as error:
        complain(f"{out}: {error}")
        raise typer.Exit(2) from None
    if as_json:
        emit({"users": len(users), "rows": rows, "out": str(out)})
    else:
        console().print(f"wrote {rows:,} rows for {len(users):,} users to {out}", markup=False)
