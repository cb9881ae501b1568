"""A fake of the service that answers Score calls."""

from __future__ import annotations

import grpc
import numpy as np

from fake_server import LINEAGE, FakeServer
from livefactor.wire.columns import ScoreColumns, ScoreQuery, decode_score, encode_score_response

SCORE = "/livefactor.v1.ScoringService/Score"


class Scoring:
    """Answers Score calls: item i of user u gets the score u - i. User 404 and item 404 are
    unknown.

    `queries` holds the requests.
    """

    def __init__(self, fake: FakeServer) -> None:
        self.queries: list[ScoreQuery] = []
        self.revision, self.label = 12, "item {}"
        fake.serve(SCORE, self)

    def __call__(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        query = decode_score(data)
        self.queries.append(query)
        users = query.user_ids.astype(np.int64)
        if query.target == "top_k":
            lists = [np.arange(query.k - 1, dtype=np.uint64) for _ in users]
        elif query.offsets is None:
            lists = [query.item_ids for _ in users]
        else:
            lists = np.split(query.item_ids, query.offsets[1:-1])
        items = np.concatenate(lists)
        scores = np.concatenate([user - own.astype(np.int64) for user, own in zip(users, lists, strict=True)])
        offsets = np.cumsum([0, *map(len, lists)]).astype(np.uint32)
        labels = [self.label.format(item) for item in items] if query.with_labels else []
        return encode_score_response(
            ScoreColumns(
                LINEAGE,
                self.revision,
                items,
                scores.astype(np.float32),
                offsets,
                users != 404,
                items != 404,
                labels,
            )
        )
