"""Handler of the ScoringService: scores of candidates and top-k lists."""

from __future__ import annotations

import time

import grpc

from livefactor.wire.scoring import encode_score_response
from livefactor_server.rpc import decode
from livefactor_server.rpc.calls import Calls


def score(calls: Calls, raw: bytes, context: grpc.ServicerContext) -> bytes:
    """Handles Score."""
    started = time.perf_counter()
    query = decode.score_query(raw, calls.settings.score_users_max, calls.settings.score_rows_max)
    hosted = calls.hosting.get(query.model)
    if query.min_lineage is not None:
        calls.await_position(hosted.engine, query.min_lineage, query.min_revision, context)
    answer = encode_score_response(hosted.reader.score(query))
    hosted.engine.metrics.observe_score(time.perf_counter() - started)
    return answer
