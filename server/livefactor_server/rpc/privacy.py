"""Handlers of the PrivacyService: contribute to a release, make it, and describe the budget."""

from __future__ import annotations

from livefactor.v1 import privacy_pb2
from livefactor.wire.deltas import decode_deltas
from livefactor_server.rpc import encode, guards
from livefactor_server.rpc.calls import Calls
from livefactor_server.rpc.guards import Call


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
