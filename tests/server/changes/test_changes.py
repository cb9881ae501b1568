"""The table of changes.

Every kind of record has one change. Each change reads back from the log as it was written.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from livefactor.snapshots.format import Manifest
from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.deltas import encode_deltas
from livefactor.wire.factors import encode_factors
from livefactor.wire.map_sums import encode_map_sums
from livefactor_kernels.spec.model import Embeddings, Features, Limits, Merge, ModelSpec, Privacy, Solve
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import (
    CHANGES,
    NO_REJECTS,
    NO_ROOM,
    REJECT_TEXTS,
    WIRE_CHANGES,
    Change,
    EngineChange,
    EraseChange,
    ErasedChange,
    EvictChange,
    EvidenceChange,
    Header,
    KeyedChange,
    OpenProducerChange,
    Record,
    ReleaseChange,
    ReplayError,
    RetentionChange,
    Rollback,
    RollbackChange,
    SpecChange,
    SwitchChange,
    TermChange,
    apply,
    change_of,
    place,
)
from livefactor_server.changes import show as log_show
from livefactor_server.changes.history.erase import Erased, Evidence, Subjects
from livefactor_server.changes.history.quarantine import AcceptedChange, DroppedChange, HeldChange
from livefactor_server.changes.interactions import InteractionsChange
from livefactor_server.log.gaps import Retained
from livefactor_server.log.store import Entry, Kind, Log
from livefactor_server.model import spec_codec
from livefactor_server.model.state import ModelState
from livefactor_server.rpc import decode

SPEC = preset(
    "clicks",
    k=8,
    embeddings=Embeddings(2),
    solve=Solve(unobserved=1.0, start_events=4.0),
    limits=Limits(users_max=100, items_max=100, value_abs_max=1.0, error_max=1e3),
)
MERGING = preset("clicks_sgd", k=2, merge=Merge(0.5, 100.0), limits=SPEC.limits)
"""A spec that takes deltas, which rule solve does not."""
MAPPING = replace(
    SPEC, solve=Solve(unobserved=1.0), embeddings=Embeddings(0, user_dimension=2), merge=Merge(1.0, 100.0)
)
"""A spec that takes sums of the map of users, which do not go with factors of another model."""
PRIVATE = replace(MERGING, privacy=Privacy(8.0, 1e-6, 60, 1.0, 2.0))
TELLING = replace(SPEC, solve=Solve(unobserved=1.0), features=Features(8, 2))
"""A spec that takes features, which do not go with factors of another model."""
SPEC_BODY = spec_codec.encode(SPEC)

BODIES = {
    wire.INTERACTIONS: wire.encode_interactions([1, 2, 1], [10, 11, 12], values=[1, 0, 1]),
    wire.LABELS: wire.encode_labels(updates_pb2.SIDE_ITEM, [10, 11], ["ten", "eleven"]),
    wire.AVAILABILITY: wire.encode_availability([10, 12], False),
    wire.EMBEDDINGS: wire.encode_embeddings(
        updates_pb2.SIDE_ITEM, [10, 12], np.array([[1, 2], [3, 4]], np.float16)
    ),
    wire.DROPPED_FEATURES: wire.encode_dropped_features(updates_pb2.SIDE_USER, ["a", "b"]),
    wire.FEATURES: wire.encode_features(
        updates_pb2.SIDE_USER,
        [1, 2],
        np.array([2, 1]),
        ["a", "b"],
        np.array([1, 0, 1]),
        np.array([0.5, 2, 1]),
    ),
    wire.FACTORS: encode_factors(updates_pb2.SIDE_USER, [7, 8], np.array([[0.5, 1], [1.5, 2]])),
    wire.FACTOR_DELTAS: encode_deltas(
        updates_pb2.SIDE_ITEM, [10, 12], np.array([[1, 2], [3, 4]]), np.array([5, 6]), 2.0
    ),
    wire.MAP_SUMS: encode_map_sums(np.diag([1.0, 2.0, 4.0]), np.ones((3, 8)), 0.5),
}
"""A message for each field of an ApplyUpdatesRequest."""


class Base:
    """The fields of a manifest that a restored model's ENGINE record names."""

    lineage, revision, root_hash = uuid.UUID(int=7), 12, bytes(range(32))


def spec_of(kind: type[Change]) -> ModelSpec:
    return {
        Kind.FACTOR_DELTAS: MERGING,
        Kind.MAP_SUMS: MAPPING,
        Kind.RELEASE: PRIVATE,
        Kind.FEATURES: TELLING,
        Kind.DROPPED_FEATURES: TELLING,
    }.get(kind.kind, SPEC)


def received(kind: type[Change]) -> Change:
    """Return the change as a server gets it, from a request or from the server itself."""
    if kind.field:
        raw = wire.encode_apply("m", wire.Stamp("p", 1, 1), kind.field, BODIES[kind.field])
        change, rejects = decode.change_from_wire(decode.update_request(raw), spec_of(kind), 100)
        assert rejects == NO_REJECTS
        return change
    base: Manifest = Base()  # type: ignore[assignment]
    batch = InteractionsChange.from_log(BODIES[wire.INTERACTIONS])
    made: dict[type[Change], Change] = {
        SpecChange: SpecChange(SPEC_BODY),
        OpenProducerChange: OpenProducerChange(b"row 7"),
        EngineChange: EngineChange.restored(base, SPEC.kernel_semantics, "cpu"),
        SwitchChange: SwitchChange(SPEC_BODY),
        RetentionChange: RetentionChange(
            Retained(2, 9, bytes(32), bytes(range(32)), 12, bytes(32), True, {3: SPEC_BODY}).to_body()
        ),
        RollbackChange: RollbackChange(Rollback(((2, 4), (7, 7)), ((3, 3),), None).to_body()),
        EraseChange: EraseChange.of(Subjects(users=(1, 2), items=(3,))),
        ErasedChange: ErasedChange(Erased(5, 2, 3).to_body()),
        TermChange: TermChange.of(3, "a:50051"),
        EvidenceChange: EvidenceChange(Evidence(5, bytes(range(32))).to_body()),
        ReleaseChange: ReleaseChange.of(
            3, 1, np.array([10], np.uint64), np.ones((1, 2), np.float32), np.ones(1, np.float32)
        ),
        EvictChange: EvictChange.of(1000),
        HeldChange: HeldChange.of(batch, b'{"figure": "loss", "value": 9, "bound": 3}'),
        AcceptedChange: AcceptedChange.of(batch, 5),
        DroppedChange: DroppedChange.of(5),
    }
    return made[kind]


def state(spec: ModelSpec = SPEC) -> ModelState:
    return ModelState.empty(spec, spec_codec.encode(spec), uuid.UUID(int=0), "cpu", b"")


def applied(change: Change) -> ModelState:
    found = state(spec_of(type(change)))
    header = Header(1, b"p", 1, 1, bytes(32), bytes(32), NO_REJECTS, bytes([1]) * 32, b"")
    if not change.opens_producer:
        found.producers.open(b"p", 1)
    apply(found, [Record(header, change, place(found, [change])[0])])
    return found


def facts(found: ModelState) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in found.freeze_small().arrays().items()}


def test_every_record_has_exactly_one_change() -> None:
    assert set(CHANGES) == set(Kind)
    assert len(set(CHANGES.values())) == len(CHANGES)
    assert all(change.kind == kind for kind, change in CHANGES.items())


def test_every_change_that_a_request_may_carry_is_in_the_table() -> None:
    fields = updates_pb2.ApplyUpdatesRequest.DESCRIPTOR.oneofs_by_name["change"].fields
    assert set(WIRE_CHANGES) == {field.name for field in fields} == set(BODIES)
    assert set(REJECT_TEXTS) == set(updates_pb2.RejectReason.values()) - {0}


@pytest.mark.parametrize("kind", CHANGES.values(), ids=lambda kind: kind.kind.name)
def test_a_change_comes_back_from_the_log(kind: type[Change], tmp_path: Path) -> None:
    change = received(kind)
    assert type(change) is kind
    log = Log.create(tmp_path / "log", SPEC_BODY)
    salt = bytes(16)
    sealed = log.seal(salt, b"", change.body)
    log.append([Entry(change.kind, 1, count=change.rows, body=change.body, salt=salt, commitment=sealed)])
    log.close()
    (record,) = log.read(1)
    again = change_of(record.kind, record.body)
    assert type(again) is kind
    assert (again.body, again.rows, again.describe(), again.room) == (
        change.body,
        change.rows,
        change.describe(),
        change.room,
    )
    if isinstance(change, KeyedChange):
        assert isinstance(again, KeyedChange)
        assert [list(column) for column in again.keys] == [list(column) for column in change.keys]
    # Both changes lead to the same state.
    assert facts(applied(again)) == facts(applied(change))
    (shown,) = log_show.rows(tmp_path / "log", 1)
    assert (shown["kind"], shown["rows"], shown["change"]) == (kind.kind.name, change.rows, change.describe())


def test_what_each_change_does_to_a_state() -> None:
    done = {kind.kind: applied(received(kind)) for kind in CHANGES.values()}
    assert done[Kind.INTERACTIONS].events == 3
    assert done[Kind.INTERACTIONS].backend.published == (2, 3)
    assert [done[Kind.LABELS].labels[1].get(key) for key in (10, 11, 12)] == ["ten", "eleven", ""]
    assert done[Kind.AVAILABILITY].marks.freeze().keys().tolist() == [10, 12]
    opened = done[Kind.OPEN_PRODUCER].producers.get(b"p")
    assert opened is not None and (opened.epoch, opened.last_sequence, opened.note) == (1, 0, b"row 7")
    merged = done[Kind.FACTOR_DELTAS].backend
    assert merged.published == (0, 2) and not done[Kind.FACTOR_DELTAS].events
    assert merged.sections(1, 2)["bias"].tolist() == [5.0, 6.0]
    summed = done[Kind.MAP_SUMS].backend
    assert summed.published == (0, 0) and not done[Kind.MAP_SUMS].events
    assert summed.state()["user_prior.gram"].tolist() == [0.5, 0, 0, 0, 1, 0, 0, 0, 2]
    # The state has no items, so nothing of the sum is left, and it is charged nevertheless.
    assert done[Kind.RELEASE].backend.published == (0, 0)
    assert done[Kind.RELEASE].ledger.arrays()["privacy"].tolist() == [3, 1, 1]
    described = done[Kind.EMBEDDINGS].backend
    assert described.published == (0, 2) and not done[Kind.EMBEDDINGS].events
    assert described.sections(1, 2)["embedding"].tolist() == [[1, 2], [3, 4]]
    told = done[Kind.FEATURES]
    assert told.backend.published == (2, 0) and not told.events
    assert told.backend.sections(0, 2)["bag"].tolist() == [[1, 2], [1, 0]]
    assert told.backend.sections(0, 2)["bag_weights"].tolist() == [[0.5, 2], [1, 0]]
    keys = told.backend.state()["features.user.keys"].tolist()
    assert [told.features[0].get(key) for key in keys] == ["b", "a"]
    begun = done[Kind.FACTORS].backend
    assert begun.published == (2, 0) and not done[Kind.FACTORS].events
    assert begun.sections(0, 2)["factors"][:, :3].tolist() == [[0.5, 1, 0], [1.5, 2, 0]]
    assert done[Kind.ACCEPTED].events == 3 and done[Kind.ACCEPTED].backend.published == (2, 3)
    assert not done[Kind.HELD].events and len(done[Kind.HELD].quarantine) == 1
    for kind in (
        Kind.SPEC,
        Kind.ENGINE,
        Kind.SWITCH,
        Kind.RETENTION,
        Kind.ROLLBACK,
        Kind.EVICT,
        Kind.HELD,
        Kind.DROPPED,
    ):
        assert done[kind].events == 0 and done[kind].backend.published == (0, 0)
    for kind, found in done.items():
        assert found.revision == found.backend.revision == 1, kind


def test_admission_counts_what_adds_entries() -> None:
    rooms = {kind.kind: received(kind).room for kind in CHANGES.values()}
    assert {kind for kind, room in rooms.items() if room != NO_ROOM} == {
        Kind.LABELS,
        Kind.AVAILABILITY,
        Kind.FEATURES,
        Kind.HELD,
    }
    assert (rooms[Kind.LABELS].keys, rooms[Kind.AVAILABILITY].keys) == ([10, 11], [10, 12])
    assert rooms[Kind.LABELS].kept_in != rooms[Kind.AVAILABILITY].kept_in
    assert len(rooms[Kind.FEATURES].keys) == 2 and rooms[Kind.FEATURES].nbytes > 2 * 8 * SPEC.k
    assert rooms[Kind.LABELS].nbytes > len(BODIES[wire.LABELS])


def test_records_of_another_spec_or_semantics_are_refused() -> None:
    with pytest.raises(ReplayError, match="specs of the log and of the state differ"):
        applied(SpecChange(b"other"))
    base: Manifest = Base()  # type: ignore[assignment]
    with pytest.raises(ReplayError, match="kernel_semantics 99"):
        applied(EngineChange.restored(base, 99, "cpu"))


def test_a_record_that_does_not_continue_the_chain_is_not_applied() -> None:
    found = state()
    change = received(OpenProducerChange)
    for revision, previous in ((2, b""), (1, bytes(32))):
        header = Header(revision, b"p", 1, 0, bytes(32), bytes(32), NO_REJECTS, bytes([1]) * 32, previous)
        with pytest.raises(AssertionError):
            apply(found, [Record(header, change, None)])
    assert found.revision == 0 and found.producers.get(b"p") is None


def test_a_record_kind_from_a_later_version_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="kind 99: a later version"):
        change_of(99, b"")
