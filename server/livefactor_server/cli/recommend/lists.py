"""What `livefactor recommend --users FILE --out FILE` does: lists for all users of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import TextColumn, TimeElapsedColumn

from livefactor.scorer import Scorer
from livefactor_server.cli.base import progress
from livefactor_server.files.events import Events, open_file
from livefactor_server.files.lists import ListWriter

USERS_A_CALL = 1024


def read_users(file: Path, column: str, string_ids: bool) -> tuple[list[Any], list[str]]:
    """The distinct user ids of a file in the order of their first rows, and what the column holds.

    Raises:
        EventFileError: the file cannot be read.
        OSError: the file cannot be opened.
    """
    sentences: list[str] = []
    found: dict[Any, None] = {}
    for rows in Events(open_file(file), {"user_ids": column}, string_ids, on_kinds=sentences.append):
        ids = rows.columns["user_ids"]
        found |= dict.fromkeys(ids.tolist() if isinstance(ids, np.ndarray) else ids.to_pylist())
    return list(found), sentences


def write_lists(scorer: Scorer, users: list[Any], out: Path, k: int, **options: Any) -> int:
    """Writes the best items of each user. Returns the number of rows.

    Raises OSError, and the errors of `Scorer.recommend`.
    """
    with (
        ListWriter(out) as writer,
        progress(TextColumn("{task.completed:,} of {task.total:,} users"), TimeElapsedColumn()) as bar,
    ):
        task = bar.add_task("recommend", total=len(users))
        for part in _parts(users):
            writer.write(scorer.recommend(part, k, **options))
            bar.update(task, advance=len(part))
    return writer.rows


def _parts(users: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(users), USERS_A_CALL):
        yield users[start : start + USERS_A_CALL]
