"""What `push-embeddings` and `push-features` do: send the rows in parts, and count the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rich.progress import TextColumn, TimeElapsedColumn

from livefactor.pushing.batching import Receipt
from livefactor.pushing.producer import Producer
from livefactor_server.cli.base import progress

PART_ROWS = 4096
"""Rows that are sent before the bar moves on."""

Push = Callable[[Producer, slice], Receipt]
"""Pushes a part of the rows."""


def push_vectors(
    ids: Any, vectors: np.ndarray, encoder_hash: bytes, target: str, model: str, secret: bytes,
    side: str = "item",
) -> tuple[int, int, int]:  # fmt: skip
    """Sends all vectors of a side, and the hash of what made them. See `push_parts`."""
    return push_parts(
        lambda producer, part: producer.push_embeddings(
            ids[part], vectors[part], side=side, encoder_hash=encoder_hash
        ),
        len(ids), "push-embeddings", target, model, secret,
    )  # fmt: skip


def push_bags(
    side: str, ids: Any, columns: dict[str, list[Any]], target: str, model: str, secret: bytes
) -> tuple[int, int, int]:
    """Sends the features of all ids of a side ("user" or "item"). See `push_parts`."""

    def push(producer: Producer, part: slice) -> Receipt:
        features = {name: column[part] for name, column in columns.items()}
        return producer.push_features(side, ids[part], features)

    return push_parts(push, len(ids), "push-features", target, model, secret)


def push_parts(
    push: Push, rows: int, producer_id: str, target: str, model: str, secret: bytes
) -> tuple[int, int, int]:
    """Sends all rows. Returns the numbers of accepted and rejected ones, and the last revision.

    Raises ColumnError, and the errors of `Producer`.
    """
    accepted = rejected = revision = 0
    columns = TextColumn("{task.completed:,} of {task.total:,} rows"), TimeElapsedColumn()
    with (
        Producer(target, producer_id, model=model, secret=secret, on_reject=lambda rejects: None) as producer,
        progress(*columns) as bar,
    ):
        task = bar.add_task("push", total=rows)
        for start in range(0, rows, PART_ROWS):
            ack = push(producer, slice(start, start + PART_ROWS)).result()
            accepted, rejected = accepted + ack.accepted, rejected + ack.rejected_count
            revision = ack.position.revision
            bar.update(task, completed=min(start + PART_ROWS, rows))
    return accepted, rejected, revision
