"""What `livefactor push-embeddings` does: send the vectors in parts, and count the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.progress import TextColumn, TimeElapsedColumn

from livefactor.pushing.producer import Producer
from livefactor_server.cli.base import progress

PART_ROWS = 4096
"""Vectors that are read and sent before the bar moves on."""

PRODUCER = "push-embeddings"


def push_vectors(
    ids: Any, vectors: np.ndarray, target: str, model: str, secret: bytes
) -> tuple[int, int, int]:
    """Sends all vectors. Returns the numbers of accepted and rejected ones, and the last revision.

    Raises ColumnError, and the errors of `Producer`.
    """
    accepted = rejected = revision = 0
    columns = TextColumn("{task.completed:,} of {task.total:,} vectors"), TimeElapsedColumn()
    with (
        Producer(target, PRODUCER, model=model, secret=secret, on_reject=lambda rejects: None) as producer,
        progress(*columns) as bar,
    ):
        task = bar.add_task("push", total=len(ids))
        for start in range(0, len(ids), PART_ROWS):
            part = slice(start, start + PART_ROWS)
            ack = producer.push_embeddings(ids[part], vectors[part]).result()
            accepted, rejected = accepted + ack.accepted, rejected + ack.rejected_count
            revision = ack.position.revision
            bar.update(task, completed=min(start + PART_ROWS, len(ids)))
    return accepted, rejected, revision
