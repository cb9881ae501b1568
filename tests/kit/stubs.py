"""The contract's stubs over one channel, with methods for the most frequent steps of tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc

from livefactor.v1 import (
    models_pb2,
    models_pb2_grpc,
    scoring_pb2_grpc,
    snapshots_pb2_grpc,
    updates_pb2,
    updates_pb2_grpc,
)

SMALL_LIMITS = models_pb2.Limits(users_max=10_000, items_max=10_000)


@dataclass
class Stubs:
    """The stubs of the four services, and unused model names."""

    channel: grpc.Channel
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.updates = updates_pb2_grpc.UpdateServiceStub(self.channel)
        self.scoring = scoring_pb2_grpc.ScoringServiceStub(self.channel)
        self.snapshots = snapshots_pb2_grpc.SnapshotServiceStub(self.channel)
        self.models = models_pb2_grpc.ModelServiceStub(self.channel)

    def model(self, preset: str = "clicks_sgd", **spec: object) -> str:
        """Create a model and return its name. k is 8 unless given."""
        name = f"m{next(self.numbers)}"
        spec = {"k": 8, "limits": SMALL_LIMITS, **spec}
        self.models.CreateModel(
            models_pb2.CreateModelRequest(model=name, preset=preset, spec=models_pb2.ModelSpec(**spec))
        )
        return name

    def push(
        self,
        model: str,
        users: list[int],
        items: list[int],
        producer: updates_pb2.ProducerStamp | None = None,
        **columns: object,
    ) -> updates_pb2.ApplyUpdatesResponse:
        """Push one batch in a unary call."""
        rows = updates_pb2.Interactions(user_ids=users, item_ids=items, **columns)
        return self.updates.ApplyUpdates(
            updates_pb2.ApplyUpdatesRequest(model=model, producer=producer, interactions=rows), timeout=30
        )

    def root(self, model: str) -> tuple[int, bytes]:
        """Return the model's revision and its root hash."""
        request = models_pb2.DescribeModelRequest(model=model, with_root_hash=True)
        described = self.models.DescribeModel(request).description
        return described.position.revision, described.root_hash
