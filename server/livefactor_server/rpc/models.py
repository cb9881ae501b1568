"""Handlers of the ModelService: create, describe, list, delete and restore models, promote a spec,
release a hold. And those of the PrivacyService: contribute to a release, make it, and describe the
budget.
"""

from __future__ import annotations

import asyncio

from livefactor.v1 import models_pb2, privacy_pb2
from livefactor.wire.deltas import decode_deltas
from livefactor.wire.limits import over
from livefactor_kernels.spec.model import SpecError
from livefactor_kernels.spec.names import DEFAULT_PRESET
from livefactor_server.changes.content.features import DROPPED_SIDES
from livefactor_server.engine.answering import features
from livefactor_server.hosting.acts import quarantine
from livefactor_server.hosting.acts.rollback import roll_back as roll_back_model
from livefactor_server.hosting.earlier import Moment
from livefactor_server.hosting.host import DEFAULT_MODEL
from livefactor_server.hosting.hosted import describe, producers_of
from livefactor_server.model import spec_codec
from livefactor_server.rpc import decode, encode, guards
from livefactor_server.rpc.calls import Calls
from livefactor_server.rpc.guards import Call, Requests, Send
from livefactor_server.rpc.streaming.progress import INTERVAL_S, Progress
from livefactor_server.statuses import invalid, precondition

PRODUCERS_LISTED, PRODUCERS_LISTED_MAX = 100, 1000
"""Producers in an answer of ListProducers: usually, and at most."""

FEATURES_LISTED, FEATURES_LISTED_MAX = 100, 4096
"""Features in an answer of ListFeatures: usually, and at most."""


def create_model(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles CreateModel."""
    request = guards.parse(models_pb2.CreateModelRequest, raw)
    call.allow(request.model)
    name = request.preset or calls.settings.default_preset or DEFAULT_PRESET
    try:
        spec = spec_codec.from_message(request.spec, name)
    except SpecError as error:
        raise invalid(f"spec: {error}") from None
    made = encode.description(describe(calls.hosting.create(request.model, spec)))
    return models_pb2.CreateModelResponse(description=made).SerializeToString()


async def describe_model(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles DescribeModel. The hash of all rows may take long, so it runs beside the others."""
    request = guards.parse(models_pb2.DescribeModelRequest, raw)
    call.allow(request.model or DEFAULT_MODEL)
    if fault := calls.hosting.fault(request.model):
        return models_pb2.DescribeModelResponse(description=encode.fault(fault)).SerializeToString()
    lane = calls.models if request.with_root_hash else calls.control
    return await lane.run(len(raw), _description, calls, request, call)


def _description(calls: Calls, request: models_pb2.DescribeModelRequest, call: Call) -> bytes:
    hosted = calls.model(call, request.model)
    description = encode.whole_description(describe(hosted, request.with_root_hash, call.check))
    report = hosted.engine.observer.report()
    if report is not None:
        description.judgement.CopyFrom(encode.judgement(report))
    return models_pb2.DescribeModelResponse(description=description).SerializeToString()


def list_models(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles ListModels: those that the grant of the call covers."""
    guards.parse(models_pb2.ListModelsRequest, raw)
    found = [encode.description(describe(hosted)) for hosted in calls.hosting.all()]
    found += map(encode.fault, calls.hosting.faults())
    found = [description for description in found if call.grant.covers(description.model)]
    found.sort(key=lambda description: description.model)
    return models_pb2.ListModelsResponse(models=found).SerializeToString()


def list_features(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles ListFeatures."""
    request = guards.parse(models_pb2.ListFeaturesRequest, raw)
    engine = calls.model(call, request.model).engine
    if request.side not in DROPPED_SIDES:
        raise invalid("side: expected SIDE_USER, SIDE_ITEM or SIDE_CONTEXT")
    if request.limit > FEATURES_LISTED_MAX:
        raise invalid(over("limit", FEATURES_LISTED_MAX, request.limit))
    limit = request.limit or FEATURES_LISTED
    found = features.report(engine, DROPPED_SIDES[request.side], limit, request.weakest_first, call.check)
    columns = zip(found.names, found.ids.tolist(), found.strengths.tolist(), strict=True)
    return models_pb2.ListFeaturesResponse(
        position=encode.position(engine.state.lineage, found.revision),
        features=[models_pb2.FeatureReport(name=n, ids=ids, strength=s) for n, ids, s in columns],
        total=found.total,
    ).SerializeToString()


def list_producers(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles ListProducers."""
    request = guards.parse(models_pb2.ListProducersRequest, raw)
    engine = calls.model(call, request.model).engine
    if request.limit > PRODUCERS_LISTED_MAX:
        raise invalid(over("limit", PRODUCERS_LISTED_MAX, request.limit))
    total, found = producers_of(engine, request.limit or PRODUCERS_LISTED)
    response = models_pb2.ListProducersResponse(total=total)
    for one in found:
        made = response.producers.add(
            id=one.id.decode(),
            epoch=one.epoch,
            last_sequence=one.last_sequence,
            revision=one.revision,
            waiting=one.waiting,
        )
        if one.arrival is not None:
            made.arrived_us, made.rejected = one.arrival.time_us, one.arrival.rejected
            if one.arrival.event_time_us:
                made.event_time_us = one.arrival.event_time_us
    return response.SerializeToString()


def delete_model(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles DeleteModel."""
    request = guards.parse(models_pb2.DeleteModelRequest, raw)
    if not request.model:
        raise invalid("model: DeleteModel requires a name")
    call.allow(request.model)
    calls.hosting.delete(request.model)
    calls.forget_served(request.model)
    return models_pb2.DeleteModelResponse().SerializeToString()


def restore_snapshot(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles RestoreSnapshot."""
    request = guards.parse(models_pb2.RestoreSnapshotRequest, raw)
    call.allow(request.model, request.source_model or DEFAULT_MODEL)
    named = [request.snapshot_id != "", request.HasField("revision"), request.HasField("time_us")]
    if sum(named) > 1:
        raise invalid("snapshot_id, revision, time_us: at most one of them")
    if named[1] or named[2]:
        moment = Moment(request.revision, request.time_us if named[2] else None)
        hosted = calls.hosting.restore_at(request.model, request.source_model, moment, call.check)
    else:
        hosted = calls.hosting.restore(request.model, request.source_model, request.snapshot_id)
    made = encode.description(describe(hosted))
    return models_pb2.RestoreSnapshotResponse(description=made).SerializeToString()


async def promote_spec(calls: Calls, requests: Requests, send: Send, call: Call) -> None:
    """Handles PromoteSpec: sends the progress, and then the description."""
    request = guards.parse(models_pb2.PromoteSpecRequest, await requests.only())
    hosted = calls.model(call, request.model)
    spec = decode.changed_spec(hosted.engine.state.spec, request.preset, request.spec)
    progress = Progress(call)

    async def tell(revision: int, last: int) -> None:
        await send(encode.promotion_progress(revision, last))

    await progress.until_done(calls.promotions.run(0, hosted.promote, spec, progress), tell)
    found = encode.whole_description(describe(hosted))
    await send(models_pb2.PromoteSpecResponse(description=found).SerializeToString())


async def roll_back(calls: Calls, requests: Requests, send: Send, call: Call) -> None:
    """Handles RollBack: sends the progress, and then the description."""
    request = guards.parse(models_pb2.RollBackRequest, await requests.only())
    hosted = calls.model(call, request.model)
    decide = decode.rollback(hosted.engine.log, request)
    progress = Progress(call)

    async def tell(revision: int, last: int) -> None:
        progressed = models_pb2.PromotionProgress(revision=revision, last_revision=last)
        await send(models_pb2.RollBackResponse(progress=progressed).SerializeToString())

    def work() -> int:
        return roll_back_model(hosted, decide(call.check), progress)

    await progress.until_done(calls.promotions.run(0, work), tell)
    found = encode.whole_description(describe(hosted))
    await send(models_pb2.RollBackResponse(description=found).SerializeToString())


async def forget(calls: Calls, requests: Requests, send: Send, call: Call) -> None:
    """Handles Forget: sends the cost, then the progress, and then the report.

    The work has a thread of its own, and goes on if the call ends.
    """
    request = guards.parse(models_pb2.ForgetRequest, await requests.only())
    hosted, subjects = calls.model(call, request.model), decode.subjects(request)
    cost = await calls.promotions.run(0, hosted.forgetter.cost, subjects, call.check)
    await send(models_pb2.ForgetResponse(cost=encode.forget_cost(cost)).SerializeToString())
    if request.dry_run:
        return
    running = await calls.promotions.run(0, hosted.forgetter.begin, subjects)
    await calls.promotions.run(0, calls.forget_served, hosted.name)
    outcome, told = asyncio.wrap_future(running.outcome), None
    while not (await asyncio.wait({outcome}, timeout=INTERVAL_S))[0]:
        call.check()
        if running.standing != told:
            told = running.standing
            progress = models_pb2.ForgetProgress(stage=told.stage, done=told.done, total=told.total)
            await send(models_pb2.ForgetResponse(progress=progress).SerializeToString())
    report = models_pb2.ErasureReport(json=outcome.result().to_json())
    await send(models_pb2.ForgetResponse(report=report).SerializeToString())


def release_hold(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles ReleaseHold."""
    hosted = calls.model(call, guards.parse(models_pb2.ReleaseHoldRequest, raw).model)
    if not hosted.engine.observer.release():
        raise precondition("model: its updates are not on hold")
    found = encode.description(describe(hosted))
    return models_pb2.ReleaseHoldResponse(description=found).SerializeToString()


def list_quarantine(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles ListQuarantine."""
    hosted = calls.model(call, guards.parse(models_pb2.ListQuarantineRequest, raw).model)
    screen = hosted.engine.observer.screen
    message = models_pb2.ListQuarantineResponse(
        bytes=hosted.engine.state.quarantine.body_bytes,
        bytes_max=0 if screen is None else screen.settings.bytes_max,
    )
    for each in quarantine.waiting(hosted, call.check):
        message.batches.add(
            revision=each.revision, producer_id=each.producer.decode(), sequence=each.sequence,
            time_us=each.time_us, rows=each.rows, bytes=each.nbytes, in_log=each.in_log, **(each.reason or {}),
        )  # fmt: skip
    return message.SerializeToString()


def decide_quarantine(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles DecideQuarantine."""
    request = guards.parse(models_pb2.DecideQuarantineRequest, raw)
    hosted = calls.model(call, request.model)
    if not 1 <= len(request.revisions) <= quarantine.DECIDED_MAX:
        raise invalid(f"revisions: expected 1 to {quarantine.DECIDED_MAX}, got {len(request.revisions)}")
    if request.decision not in (models_pb2.DECISION_ACCEPT, models_pb2.DECISION_DROP):
        raise invalid("decision: expected DECISION_ACCEPT or DECISION_DROP")
    accept = request.decision == models_pb2.DECISION_ACCEPT
    message = models_pb2.DecideQuarantineResponse()
    for each in quarantine.decide(hosted, request.revisions, accept, call.check):
        call.revision = each.revision
        message.decisions.add(
            revision=each.held, position=encode.position(hosted.engine.state.lineage, each.revision),
            accepted=each.learned, rejected=each.rejected,
        )  # fmt: skip
    return message.SerializeToString()


def contribute(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles Contribute."""
    request = guards.parse(privacy_pb2.ContributeRequest, raw)
    releaser = calls.model(call, request.model).releaser
    columns = decode_deltas(request.deltas.SerializeToString())
    counted = releaser.contribute(request.release, request.user_id, columns)
    return privacy_pb2.ContributeResponse(counted=counted).SerializeToString()


def make_release(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles MakeRelease."""
    request = guards.parse(privacy_pb2.MakeReleaseRequest, raw)
    hosted = calls.model(call, request.model)
    revision, duplicate = hosted.releaser.make(request.release)
    call.revision = revision
    position = encode.position(hosted.engine.state.lineage, revision)
    return privacy_pb2.MakeReleaseResponse(position=position, duplicate=duplicate).SerializeToString()


def describe_privacy(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles DescribePrivacy."""
    request = guards.parse(privacy_pb2.DescribePrivacyRequest, raw)
    found = calls.model(call, request.model).releaser.standing()
    privacy = found.privacy
    return privacy_pb2.DescribePrivacyResponse(
        next_release=found.all_releases + 1,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        window_seconds=privacy.window_seconds,
        window=found.window,
        clip=privacy.clip,
        noise=privacy.noise,
        releases=found.releases,
        releases_max=found.releases_max,
        spent_epsilon=privacy.spent(found.releases),
        all_releases=found.all_releases,
        all_epsilon=privacy.spent(found.all_releases),
    ).SerializeToString()
