"""Handlers of the ChallengeService: add and list the challengers of a model, and end its search."""

from __future__ import annotations

from livefactor.v1 import challenging_pb2
from livefactor.wire.limits import MODEL_NAME
from livefactor_server.challenging.challengers import Challengers, Listing
from livefactor_server.challenging.sharing import Standing
from livefactor_server.hosting.host import Hosted
from livefactor_server.hosting.hosted import describe
from livefactor_server.rpc import decode, encode, guards
from livefactor_server.rpc.calls import Calls
from livefactor_server.rpc.guards import Call
from livefactor_server.statuses import invalid, precondition

CHANGED = "changed"
"""The name of a challenger that differs from the model's spec, if it gets no other."""


def add_challenger(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles AddChallenger."""
    request = guards.parse(challenging_pb2.AddChallengerRequest, raw)
    hosted = calls.model(call, request.model)
    challengers = _challengers_of(hosted)
    if request.name and not MODEL_NAME.fullmatch(request.name):
        raise invalid("name: it has 1 to 64 of the characters a-z 0-9 _ - and begins with a letter")
    spec = decode.changed_spec(hosted.engine.state.spec, request.preset, request.spec)
    name = request.name or challengers.free_name(request.preset or CHANGED)
    challengers.add(name, spec, request.share)
    return challenging_pb2.AddChallengerResponse(contest=_contest(challengers.listing())).SerializeToString()


def list_challengers(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles ListChallengers."""
    request = guards.parse(challenging_pb2.ListChallengersRequest, raw)
    found = _challengers_of(calls.model(call, request.model)).listing()
    return challenging_pb2.ListChallengersResponse(contest=_contest(found)).SerializeToString()


def settle_model(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles SettleModel."""
    request = guards.parse(challenging_pb2.SettleModelRequest, raw)
    hosted = calls.model(call, request.model)
    challengers = _challengers_of(hosted)
    present, spec = hosted.engine.state.spec, None
    if request.preset or request.HasField("spec"):
        if request.challenger:
            raise invalid("settle: expected a challenger or a spec, got both")
        spec = decode.changed_spec(present, request.preset, request.spec)
    elif request.challenger:
        spec = challengers.spec_of(request.challenger)
    if spec is not None and spec != present:
        hosted.promote(spec, lambda revision, last: call.check())
    challengers.settle()
    found = encode.whole_description(describe(hosted))
    return challenging_pb2.SettleModelResponse(description=found).SerializeToString()


def _challengers_of(hosted: Hosted) -> Challengers:
    if hosted.challengers is None:
        raise precondition("server: it runs without challengers (auto_cpu_share is 0)")
    return hosted.challengers


def _contest(found: Listing) -> challenging_pb2.Contest:
    message = challenging_pb2.Contest(
        automatic=found.automatic,
        is_running=found.is_running,
        waiting=found.waiting,
        contests=found.contests,
        events_behind=found.behind,
        cpu_seconds=found.spent_s,
        resumes_at=found.resumes_at,
    )
    if found.sharing is not None:
        message.share.CopyFrom(_share(found.sharing))
    report = found.report
    if report is None:
        return message
    message.revision, message.learned_events = report.revision, report.learned
    message.judged_events, message.winner = report.judged, report.winner
    message.rounds, message.round_end = report.round, report.round_end
    for each in report.figures:
        message.contestants.add(
            name=each.name, standing=each.standing, mean=each.mean, difference=each.difference,
            error=each.error, events=each.events, users=each.users,
        )  # fmt: skip
    return message


def _share(found: Standing) -> challenging_pb2.Share:
    message = challenging_pb2.Share(
        challenger=found.name,
        share=found.share,
        is_ready=found.is_ready,
        records_behind=found.behind,
        ended=found.ended,
    )
    for variant, spec_id in zip(found.variants, found.spec_ids, strict=True):
        message.variants.add(
            name=variant.name,
            spec_id=spec_id,
            lists=variant.answers,
            events=variant.events,
            hits=variant.hits,
        )
    return message
