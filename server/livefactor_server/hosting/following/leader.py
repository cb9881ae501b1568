"""The calls of a follower to its leader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc

from livefactor.access import Access
from livefactor.channel import DEADLINE_S, may_be_remote, open_channel
from livefactor.v1 import following_pb2, models_pb2

_FOLLOW = "/livefactor.v1.FollowService/"
FENCE_S = 0.9
"""Deadline of a question whether the leader lives, seconds. A dead machine answers nothing."""

_LIST = "/livefactor.v1.ModelService/ListModels"


class Leader:
    """A connection to the leader. Thread-safe. Every method raises grpc.RpcError.

    Attributes:
        target: its address.
    """

    def __init__(self, target: str, access: Access) -> None:
        """Opens a channel, which connects at the first call.

        Raises:
            InvalidArgument: the address or the access cannot be used.
        """
        self.target = target
        credentials = access.credentials()
        self._metadata = access.metadata(credentials is not None or not may_be_remote(target))
        self._channel = open_channel(target, credentials=credentials)

    def models(self) -> list[str]:
        """The names of the leader's models."""
        raw = self._ask(_LIST, b"", DEADLINE_S)
        return [each.model for each in models_pb2.ListModelsResponse.FromString(raw).models]

    def term(self, model: str) -> tuple[bytes, int]:
        """The lineage of a model, 16 bytes, and its term; b"" and 0 if there is no such model."""
        raw = self._ask(_LIST, b"", DEADLINE_S)
        for each in models_pb2.ListModelsResponse.FromString(raw).models:
            if each.model == model:
                return each.position.lineage, each.term
        return b"", 0

    def copy(self, model: str) -> Iterator[following_pb2.CopyModelResponse]:
        """The files of a model."""
        yield from self._stream(
            "CopyModel", following_pb2.CopyModelRequest(model=model), following_pb2.CopyModelResponse
        )

    def follow(self, request: following_pb2.FollowLogRequest) -> Any:
        """The records of a model, as an iterator with `cancel`."""
        return self._stream("FollowLog", request, following_pb2.FollowLogResponse)

    def confirm(self, request: following_pb2.ConfirmLogRequest) -> None:
        """Says that records are on disk."""
        self._ask(_FOLLOW + "ConfirmLog", request.SerializeToString(), DEADLINE_S)

    def fence(self, request: following_pb2.FenceRequest) -> None:
        """Tells the leader that another server took its place."""
        self._ask(_FOLLOW + "Fence", request.SerializeToString(), FENCE_S)

    def answers(self) -> bool:
        """Whether the leader still serves its models."""
        try:
            self._ask(_LIST, b"", FENCE_S)
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return True

    def _ask(self, path: str, message: bytes, timeout_s: float) -> bytes:
        call: Any = self._channel.unary_unary(path)
        answer: bytes = call(message, timeout=timeout_s, metadata=self._metadata)
        return answer

    def _stream(self, name: str, request: Any, kind: Any) -> Any:
        call: Any = self._channel.unary_stream(
            _FOLLOW + name, lambda message: message.SerializeToString(), kind.FromString
        )
        return call(request, metadata=self._metadata)

    def close(self) -> None:
        """Ends all calls."""
        self._channel.close()
