"""Handlers of the ScoringService: scores of candidates, top-k lists, and explanations."""

from __future__ import annotations

from livefactor.v1 import scoring_pb2
from livefactor.wire.limits import EXPLAINED_MAX, MESSAGE_BYTES_MAX, over
from livefactor.wire.scoring import ScoreQuery, encode_score_response
from livefactor_server.engine.answering.answers import Allowance
from livefactor_server.engine.readers import AT_ONCE_MAX
from livefactor_server.engine.short_reads import model_of
from livefactor_server.hosting import explaining
from livefactor_server.hosting.explaining import Question
from livefactor_server.rpc import decode, encode, guards
from livefactor_server.rpc.calls import Calls
from livefactor_server.rpc.direct.server import Later
from livefactor_server.rpc.guards import Call
from livefactor_server.statuses import Refused, invalid, not_found, precondition
from livefactor_server.telemetry.calls import is_verbose

EVENTS_DEFAULT, UPDATES_DEFAULT = 64, 10
"""Numbers of events and of updates in an explanation whose request names none."""

AT_ONCE_BYTES_MAX = 16 * (AT_ONCE_MAX + 2) + 512
"""Bytes of the largest message that may need no slot: ids, offsets, and a short text."""


def score_at_once(calls: Calls, raw: bytes, call: Call, _: Later) -> bytes | None:
    """Handles Score in the thread of direct calls, if the message is a usual small one."""
    answer = _short_answer(calls, raw, call)
    if answer is not None:
        _note_revision(call, answer)
    return answer


async def score(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles Score in the loop."""
    answer = _short_answer(calls, raw, call)
    if answer is None:
        answer = await _answered(calls, raw, call)
    _note_revision(call, answer)
    return answer


def _note_revision(call: Call, answer: bytes) -> None:
    if is_verbose():
        call.revision = scoring_pb2.ScoreResponse.FromString(answer).position.revision


async def _answered(calls: Calls, raw: bytes, call: Call) -> bytes:
    settings = calls.settings
    if len(raw) > AT_ONCE_BYTES_MAX:
        _knock(calls, raw, call)
    query = decode.score_query(raw, settings.score_users_max, settings.score_rows_max)
    hosted = calls.model(call, query.model)
    if query.min_lineage is not None:
        await calls.positions.reach(hosted.engine, query.min_lineage, query.min_revision)
    sharing = hosted.sharing
    shared = None if sharing is None else sharing.reader_for(query)
    reader = shared or hosted.reader
    quick = reader.score_at_once(query)
    if quick is not None:
        return _kept(calls, hosted.name, query, raw, encode_score_response(quick))
    allowance = Allowance(settings.score_pairs_max, MESSAGE_BYTES_MAX, call.check)

    def read() -> bytes:
        found = reader.score(query, allowance)
        if sharing is not None:
            sharing.answered(query, found, shared is not None)
        return _kept(calls, hosted.name, query, raw, encode_score_response(found))

    return await calls.scores.run(len(raw), read, model=hosted.engine.name)


def _kept(calls: Calls, model: str, query: ScoreQuery, raw: bytes, answer: bytes) -> bytes:
    """The answer, with a score id if the server is asked to keep it.

    Raises:
        Refused: the server keeps none, or none that is so large.
    """
    if not query.keep:
        return answer
    if calls.served.is_too_large(len(raw) + len(answer)):
        raise precondition("keep: the server keeps no answers of this size (served_bytes_max)")
    return calls.served.keep(model, raw, answer)


def fetch_served(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles FetchServed."""
    request = guards.parse(scoring_pb2.FetchServedRequest, raw)
    hosted = calls.model(call, request.model)
    found = calls.served.get(request.score_id)
    if found is None or found.model != hosted.name:
        raise not_found("score_id: the server does not keep this answer, or not any more")
    return scoring_pb2.FetchServedResponse(
        request=scoring_pb2.ScoreRequest.FromString(found.request),
        response=scoring_pb2.ScoreResponse.FromString(found.answer),
        time_us=int(found.time_s * 1e6),
    ).SerializeToString()


def _knock(calls: Calls, raw: bytes, call: Call) -> None:
    """Refuses a large message before it is decoded if there is no place for its work."""
    if (found := model_of(raw)) is not None:
        calls.scores.knock(len(raw), calls.model(call, found[0]).engine.name)


def _short_answer(calls: Calls, raw: bytes, call: Call) -> bytes | None:
    """The answer to a usual small message. None for another one, and for one with an error."""
    if (found := model_of(raw)) is None:
        return None
    try:
        hosted = calls.model(call, found[0])
    except Refused:
        # The general code finds the errors of a message first.
        return None
    if hosted.sharing is not None:
        return None
    return hosted.reader.answer_at_once(raw, found[1], calls.settings.score_rows_max)


def explain(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles Explain."""
    request = guards.parse(scoring_pb2.ExplainRequest, raw)
    hosted = calls.model(call, request.model)
    question = Question(
        request.user_id,
        request.item_id,
        request.revision if request.HasField("revision") else None,
        request.events_max if request.HasField("events_max") else EVENTS_DEFAULT,
        request.updates_max if request.HasField("updates_max") else UPDATES_DEFAULT,
    )
    for field, most in (("events_max", question.events_max), ("updates_max", question.updates_max)):
        if most > EXPLAINED_MAX:
            raise invalid(over(field, EXPLAINED_MAX, most))
    found = explaining.explain(hosted, question, call.check)
    call.revision = found.explanation.revision
    return encode.explanation(found, question.item_id)
