"""Encodes results as messages."""

from __future__ import annotations

import uuid
from dataclasses import asdict

from livefactor.snapshots.format import Manifest
from livefactor.v1 import judging_pb2, models_pb2, scoring_pb2, snapshots_pb2, updates_pb2
from livefactor_server.changes import REJECT_TEXTS
from livefactor_server.engine.submission import Ack
from livefactor_server.hosting.explaining import Explained
from livefactor_server.hosting.faults import Fault
from livefactor_server.hosting.forgetting.survey import Cost
from livefactor_server.hosting.hosted import Description
from livefactor_server.judging.report import Report
from livefactor_server.log.gaps import Gap
from livefactor_server.model import spec_codec
from livefactor_server.statuses import Refused


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
        held=ack.is_held,
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
    """Appends the answer to a batch of a stream: its acknowledgement or its status."""
    answer = message.answers.add(index=index, sequence=sequence)
    if isinstance(result, Refused):
        answer.status.code, answer.status.message = result.code.value[0], result.text
    else:
        assert lineage is not None
        answer.response.CopyFrom(apply_response(lineage, result))


def snapshot_info(manifest: Manifest, checkpoint: bytes = b"") -> snapshots_pb2.SnapshotInfo:
    """The entry of a snapshot in a list."""
    return snapshots_pb2.SnapshotInfo(
        snapshot_id=manifest.snapshot_id,
        position=position(manifest.lineage, manifest.revision),
        root_hash=manifest.root_hash,
        log_hash=manifest.log_hash,
        size_bytes=manifest.size_bytes,
        created_us=manifest.created_us,
        users=manifest.users,
        items=manifest.items,
        checkpoint=checkpoint,
    )


def snapshot_progress(lineage: uuid.UUID, done: int, total: int, revision: int) -> bytes:
    """A message with the progress of a snapshot. `done` and `total` are bytes."""
    progress = snapshots_pb2.SnapshotProgress(
        bytes_done=done, bytes_total=total, position=position(lineage, revision)
    )
    return snapshots_pb2.SnapshotResponse(progress=progress).SerializeToString()


def snapshot_done(manifest: Manifest, checkpoint: bytes) -> bytes:
    """The last message of a Snapshot call."""
    info = snapshot_info(manifest, checkpoint)
    done = snapshots_pb2.SnapshotManifest(info=info, manifest_json=manifest.to_json())
    return snapshots_pb2.SnapshotResponse(manifest=done).SerializeToString()


def description(found: Description) -> models_pb2.ModelDescription:
    """The description of a model."""
    message = models_pb2.ModelDescription(
        model=found.name,
        position=position(found.lineage, found.revision),
        spec=spec_codec.to_message(found.spec),
        users=found.users,
        items=found.items,
        events=found.events,
        backend=found.backend,
        log_hash=found.log_hash,
        log_bytes=found.log_bytes,
        memory_bytes=found.memory_bytes,
        writable=found.writable,
        root_hash=found.root_hash,
        spec_id=int(found.spec_id, 16),
        term=found.term,
        leader=found.leader,
    )
    if found.spec_revision is not None:
        message.spec_revision = found.spec_revision
    if found.gap is not None:
        message.log_gap.CopyFrom(_log_gap(found.gap))
    if found.adapted_rate is not None:
        message.adapted_rate = found.adapted_rate
    if found.hold is not None:
        message.hold.CopyFrom(judging_pb2.Hold(**asdict(found.hold), snapshot_id=found.hold_snapshot_id))
    return message


def _log_gap(gap: Gap) -> models_pb2.LogGap:
    note = gap.note
    if note is None:
        return models_pb2.LogGap(first_revision=gap.first, last_revision=gap.last)
    return models_pb2.LogGap(
        first_revision=gap.first,
        last_revision=gap.last,
        time_us=note.time_us,
        archived=note.archived,
        snapshot_revision=note.snapshot_revision,
        snapshot_root_hash=note.root_hash,
    )


def whole_description(found: Description) -> models_pb2.ModelDescription:
    """The description of a model with its earlier specs."""
    message = description(found)
    for revision, body in found.specs[:-1]:
        message.earlier_specs.add(
            revision=revision,
            spec_id=int(spec_codec.id_of(body), 16),
            spec=spec_codec.to_message(spec_codec.decode(body)),
        )
    for first, last in found.skipped:
        message.skipped.add(first=first, last=last)
    return message


def promotion_progress(revision: int, last_revision: int) -> bytes:
    """A message with the progress of a promotion."""
    progress = models_pb2.PromotionProgress(revision=revision, last_revision=last_revision)
    return models_pb2.PromoteSpecResponse(progress=progress).SerializeToString()


def fault(found: Fault) -> models_pb2.ModelDescription:
    """The description of a model that cannot be opened."""
    return models_pb2.ModelDescription(model=found.name, fault=found.reason)


def explanation(explained: Explained, item_id: int) -> bytes:
    """The answer of Explain."""
    found, labels = explained.explanation, explained.labels
    message = scoring_pb2.ExplainResponse(
        position=updates_pb2.Position(lineage=explained.lineage, revision=found.revision),
        spec_id=int(found.spec_id, 16),
        user_factors=found.user_factors,
        item_factors=found.item_factors,
        remembered_events=found.remembered,
        events_truncated=found.truncated,
        searched_from=explained.searched_from,
        user_label=explained.user_label,
        item_label=labels.get(item_id, ""),
    )
    for name in ("user_known", "item_known"):
        setattr(message, name, getattr(found, name))
    for name in ("score", "mean", "user_bias", "item_bias", "product", "gain"):
        setattr(message, name, float(getattr(found, name)))
    for part in found.parts:
        message.parts.add(**asdict(part))
    for event in found.events:
        message.events.add(**asdict(event), item_label=labels.get(event.item_id, ""))
    for touch in explained.touches:
        fields = asdict(touch)
        producer_id = fields.pop("producer").decode("utf-8", "backslashreplace")
        message.updates.add(**fields, producer_id=producer_id)
    return message.SerializeToString()


def judgement(report: Report) -> judging_pb2.Judgement:
    """The report of the judge."""
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
    for field in ("figures", "new_user_figures", "known_user_figures"):
        for figure in getattr(report, field):
            getattr(message, field).add(**figure._asdict())
    for event in report.events:
        message.events.add(**event._asdict(), worse=event.worse)
    return message


def forget_cost(cost: Cost) -> models_pb2.ForgetCost:
    """What it costs to forget."""
    return models_pb2.ForgetCost(
        records=cost.records,
        rows=cost.rows,
        events=cost.events,
        revisions=cost.revisions,
        segments=cost.segments,
        segment_bytes=cost.nbytes,
        snapshots=cost.snapshots,
        seconds=cost.seconds,
        begins_at=cost.since,
        put_back_bytes=cost.put_back,
    )
