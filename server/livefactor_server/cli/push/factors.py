"""What `livefactor import` does: send the factors of both sides, and count the answers."""

from __future__ import annotations

from typing import NamedTuple

from livefactor.models import Models
from livefactor.pushing.producer import Producer
from livefactor_server.files.factors import SideFactors, without_biases

PRODUCER = "import"
SIDE_FIELDS = {"user": "user_ids", "item": "item_ids"}


class HasEvents(ValueError):
    """The model has learned events, so the factors of another model do not fit its own."""


class Imported(NamedTuple):
    """What a model took. `users` and `items` are numbers of accepted rows."""

    users: int
    items: int
    dimension: int
    rejected: int
    revision: int


def push_factors(
    parts: dict[str, SideFactors], target: str, model: str, secret: bytes, texts: dict[str, list[str]]
) -> Imported:
    """Sends all factors, and the texts of ids that come as keys, by `SIDE_FIELDS`, as labels.

    Raises HasEvents, ColumnError, and the errors of `Producer` and `Models`.
    """
    with Models(target) as models:
        described = models.describe(model)
    if described.events:
        raise HasEvents(
            f"model {model} has learned {described.events:,} events, and factors of two models do not "
            "fit together: create a model for them (livefactor models create NAME)"
        )
    if described.spec["loss"] == "implicit":
        parts = without_biases(parts)
    accepted, rejected, revision = {"user": 0, "item": 0}, 0, described.position.revision
    with Producer(target, PRODUCER, model=model, secret=secret, on_reject=lambda rejects: None) as producer:
        for side, part in parts.items():
            ack = producer.push_factors(side, part.ids, part.factors, part.biases).result()
            if labels := texts.get(SIDE_FIELDS[side]):
                producer.push_labels(side, labels, labels)
            accepted[side], rejected = ack.accepted, rejected + ack.rejected_count
            revision = ack.position.revision
    dimension = next(iter(parts.values())).factors.shape[1]
    return Imported(accepted["user"], accepted["item"], dimension, rejected, revision)
