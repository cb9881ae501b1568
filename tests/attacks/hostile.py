"""Helpers for attacks on a server.

They send raw bytes to any RPC, check the statuses that come back, and read the state of a model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import grpc
import psutil

from contract import STREAMING_IN, STREAMING_OUT
from livefactor.v1 import models_pb2, models_pb2_grpc, updates_pb2
from server_process import Server

CLOSED_SET = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNIMPLEMENTED,
}
LONG_S = 30.0
SHORT_S = 0.3
"""Deadline of calls that may be told to wait for a position that never comes; what they are told
changes nothing.
"""

INSIDES = re.compile(
    r"Traceback|Error\b|Exception|\.py\b|/\w+/\w|livefactor_|object at|numpy|google|upb|0x[0-9a-f]{6}"
)
"""What must not be in a status' text: exceptions, paths, packages, classes, addresses."""

WAITING = {"livefactor.v1.ScoringService/Score", "livefactor.v1.SnapshotService/Snapshot"}
MODEL = "m"
LIMITS = models_pb2.Limits(users_max=500, items_max=400, producers_max=20)


@dataclass
class Target:
    """One server with one model. All calls share one channel."""

    server: Server
    channel: grpc.Channel
    codes: Counter[str] = field(default_factory=Counter)
    numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.models = models_pb2_grpc.ModelServiceStub(self.channel)

    def create(self, name: str = MODEL, preset: str = "ratings_sgd", **spec: object) -> None:
        made = models_pb2.ModelSpec(**{"k": 8, "limits": LIMITS, **spec})
        self.models.CreateModel(
            models_pb2.CreateModelRequest(model=name, preset=preset, spec=made), timeout=60
        )

    def state(self, model: str = MODEL) -> tuple[int, bytes]:
        """Return the model's revision and its root hash."""
        request = models_pb2.DescribeModelRequest(model=model, with_root_hash=True)
        described = self.models.DescribeModel(request, timeout=20).description
        return described.position.revision, described.root_hash

    def call(self, path: str, raw: bytes) -> list[tuple[grpc.StatusCode, str]]:
        """Make one call with one message and return its statuses.

        The first is the status of the call. An update stream adds the statuses of its batches.
        """
        timeout_s = SHORT_S if path in WAITING else LONG_S
        try:
            if path not in STREAMING_OUT:
                self.channel.unary_unary("/" + path)(raw, timeout=timeout_s)
                statuses = [(grpc.StatusCode.OK, "")]
            elif path not in STREAMING_IN:
                list(self.channel.unary_stream("/" + path)(raw, timeout=timeout_s))
                statuses = [(grpc.StatusCode.OK, "")]
            else:
                statuses = [(grpc.StatusCode.OK, "")]
                for message in self.channel.stream_stream("/" + path)(iter([raw]), timeout=timeout_s):
                    statuses += batch_statuses(message)
        except grpc.RpcError as error:
            statuses = [(error.code(), error.details() or "")]
        for code, text in statuses:
            self.codes[code.name] += 1
            check_status(code, text)
        return statuses

    def check_alive(self) -> None:
        """Check that the server runs, answers, and has logged no unexpected error."""
        assert self.server.exit_code() is None, self.server.log[-3000:]
        self.models.ListModels(models_pb2.ListModelsRequest(), timeout=20)
        assert "Traceback" not in self.server.log, self.server.log[-5000:]

    @property
    def rss(self) -> int:
        """Return the resident memory of the server in bytes."""
        return int(psutil.Process(self.server.pid).memory_info().rss)


def batch_statuses(message: bytes) -> list[tuple[grpc.StatusCode, str]]:
    """Return the statuses of the batches in one message from a stream."""
    numbers = {code.value[0]: code for code in grpc.StatusCode}
    answers = updates_pb2.StreamUpdatesResponse.FromString(message).answers
    return [(numbers[answer.status.code], answer.status.message) for answer in answers]


def check_status(code: grpc.StatusCode, text: str) -> None:
    assert code in CLOSED_SET, (code, text)
    assert "unexpected error" not in text, "the server met an exception that it did not expect; see its log"
    assert not INSIDES.search(text), f"insides in a status: {text!r}"
