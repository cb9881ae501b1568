"""Results to messages."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from livefactor.snapshots.format import Manifest
from livefactor.v1 import judging_pb2, models_pb2, snapshots_pb2, updates_pb2
from livefactor_server.engine.submission import Ack
from livefactor_server.judging.report import Report
from livefactor_server.model import spec_codec
from livefactor_server.rpc.decode import REJECT_TEXTS
from livefactor_server.snapshots.store import root_hash_of
from livefactor_server.statuses import Refused

if TYPE_CHECKING:
    from livefactor_server.hosting.host import Hosted


def position(lineage: uuid.UUID, revision: int) -> updates_pb2.Position:
    """A position."""
    return updates_pb2.Position(lineage=lineage.bytes, revision=revision)


def apply_response(lineage: uuid.UUID, ack: Ack) -> updates_pb2.ApplyUpdatesResponse:
    """The answer to a batch."""
    response = updates_pb2.ApplyUpdatesResponse(
        position=position(lineage, ack.revision),
        accepted=ack.accepted,
        rejected_count=ack.rejects.count,
        duplicate=ack.duplicate,
    )
    for row, reason in ack.rejects.listed:
        response.rejects.add(row=row, reason=reason, text=REJECT_TEXTS.get(reason, ""))
    return response


def add_stream_answer(
    message: updates_pb2.StreamUpdatesResponse,
    index: int,
    sequence: int,
    result: Ack | Refused,
    lineage: uuid.UUID | None,
) -> None:
    """Append the answer to a stream's batch: its ack, or what a unary call would have ended with."""
    answer = message.answers.add(index=index, sequence=sequence)
    if isinstance(result, Refused):
        answer.status.code, answer.status.message = result.code.value[0], result.text
    else:
        assert lineage is not None
        answer.response.CopyFrom(apply_response(lineage, result))


def snapshot_info(manifest: Manifest) -> snapshots_pb2.SnapshotInfo:
    """What a list says of a snapshot."""
    return snapshots_pb2.SnapshotInfo(
        snapshot_id=manifest.snapshot_id,
        position=position(manifest.lineage, manifest.revision),
        root_hash=manifest.root_hash,
        log_hash=manifest.log_hash,
        size_bytes=manifest.size_bytes,
        created_us=manifest.created_us,
        users=manifest.users,
        items=manifest.items,
    )


def snapshot_progress(lineage: uuid.UUID, done: int, total: int, revision: int) -> bytes:
    """How far a snapshot is."""
    progress = snapshots_pb2.SnapshotProgress(
        bytes_done=done, bytes_total=total, position=position(lineage, revision)
    )
    return snapshots_pb2.SnapshotResponse(progress=progress).SerializeToString()


def snapshot_done(manifest: Manifest) -> bytes:
    """The last message of a Snapshot call."""
    done = snapshots_pb2.SnapshotManifest(info=snapshot_info(manifest), manifest_json=manifest.to_json())
    return snapshots_pb2.SnapshotResponse(manifest=done).SerializeToString()


def description(hosted: Hosted, with_root_hash: bool = False) -> models_pb2.ModelDescription:
    """What is known of a model, at one revision."""
    engine = hosted.engine
    with engine.gate.reading():
        state = engine.state
        users, items = state.backend.published
        result = models_pb2.ModelDescription(
            model=hosted.name,
            position=position(state.lineage, state.revision),
            spec=spec_codec.to_message(state.spec),
            users=users,
            items=items,
            events=state.events,
            backend=state.backend_name,
            log_hash=state.log_hash,
            log_bytes=engine.log.size_bytes,
            memory_bytes=sum(state.memory_bytes.values()),
            writable=engine.failure is None,
        )
        if (rate := state.adapted_rate) is not None:
            result.adapted_rate = rate
    _add_hold(result, hosted)
    if with_root_hash:
        with engine.view() as view:
            result.position.revision = view.revision
            result.users, result.items = view.pin.counts
            result.events = int(view.small["events"][0])
            result.log_hash = view.log_hash
            result.root_hash = root_hash_of(view)[0]
    return result


def _add_hold(message: models_pb2.ModelDescription, hosted: Hosted) -> None:
    hold = hosted.engine.observer.hold
    if hold is None:
        return
    at = [info for info in hosted.keeper.store.list() if info.revision <= hold.good_revision]
    message.hold.CopyFrom(
        judging_pb2.Hold(
            reason=hold.reason,
            revision=hold.revision,
            time_us=hold.time_us,
            good_revision=hold.good_revision,
            snapshot_id=at[-1].snapshot_id if at else "",
        )
    )


def judgement(report: Report) -> judging_pb2.Judgement:
    """What the judge found."""
    message = judging_pb2.Judgement(
        drift_detection=report.drift_detection,
        since_revision=report.since_revision,
        revision=report.revision,
        judged_events=report.judged_events,
        sampled_events=report.ranked_events[0],
        ranked_events=report.ranked_events[1],
        good_revision=report.good_revision,
        row_norm=report.row_norm,
        clamped_share=report.clamped_share,
    )
    for figure in report.figures:
        message.figures.add(**figure._asdict())
    for event in report.events:
        message.events.add(**event._asdict(), worse=event.worse)
    return message
