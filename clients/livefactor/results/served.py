"""What a Score call was answered. `Auditor.served` returns it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livefactor.position import Position
from livefactor.results.answers import spec_name
from livefactor.v1 import scoring_pb2
from livefactor.wire.scoring import decode_score, decode_score_response


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """A kept call: n users, m items.

    time_us: when it was answered, microseconds since 1970. position: all scores are of exactly this
    revision. spec_id: the spec that made them. user_keys: uint64[n], 64-bit keys. item_keys:
    uint64[m], the lists of all users end to end. scores: float32[m]. offsets: uint32[n + 1]; user
    u's items are [offsets[u] .. offsets[u + 1]). context: the names of the features of the call's
    context.
    """

    time_us: int
    position: Position
    spec_id: str
    user_keys: npt.NDArray[np.uint64]
    item_keys: npt.NDArray[np.uint64]
    scores: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.uint32]
    context: tuple[str, ...]


def served_of(data: bytes) -> ServedAnswer:
    """The answer in a FetchServedResponse."""
    message = scoring_pb2.FetchServedResponse.FromString(data)
    asked = decode_score(message.request.SerializeToString())
    told = decode_score_response(message.response.SerializeToString())
    return ServedAnswer(
        message.time_us, Position(told.lineage, told.revision), spec_name(told.spec_id), asked.user_ids,
        told.item_ids, told.scores, told.offsets, () if asked.context is None else tuple(asked.context.names),
    )  # fmt: skip
