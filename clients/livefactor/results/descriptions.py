"""The description of a model, and its parts: its features, and what its log has no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from livefactor.position import Position, position_of
from livefactor.results.answers import spec_name
from livefactor.results.judgement import Hold, Judgement, hold_of, judgement_of
from livefactor.wire.plain import plain


@dataclass(frozen=True, slots=True)
class FeatureReport:
    """A feature of a side, or of context. ids: how many users or items have it.

    strength: the length of its row of factors; 0 if nothing was learned of it. Of context, ids
    counts events, of which older ones count less, and strength says how far the items of these
    events are from those of all; events that have it by chance make it about 1.
    """

    name: str
    ids: int
    strength: float


@dataclass(frozen=True, slots=True)
class ProducerReport:
    """A producer, and what it sent.

    last_sequence, revision: of its last applied batch; 0 if there is none. waiting: batches that
    the server has admitted and not applied yet. arrived_us: when the last applied batch arrived;
    None if none did since the start of the server. event_time_us: the time of its last event, or
    None. Both are microseconds since 1970. rejected: rows since the start of the server.
    """

    id: str
    epoch: int
    last_sequence: int
    revision: int
    waiting: int
    arrived_us: int | None
    event_time_us: int | None
    rejected: int

    @property
    def behind_s(self) -> float | None:
        """How old the last event was when it arrived, seconds. None if its time is not known."""
        if self.arrived_us is None or self.event_time_us is None:
            return None
        return max(0.0, (self.arrived_us - self.event_time_us) / 1e6)


def producer_of(message: Any) -> ProducerReport:
    """The report that a message of the contract holds."""

    def given(field: str) -> int | None:
        return getattr(message, field) if message.HasField(field) else None

    return ProducerReport(
        message.id,
        message.epoch,
        message.last_sequence,
        message.revision,
        message.waiting,
        given("arrived_us"),
        given("event_time_us"),
        message.rejected,
    )


@dataclass(frozen=True, slots=True)
class LogGap:
    """Revisions whose records a retention policy deleted from the log.

    time_us: when, in microseconds since 1970; 0 if the server does not know it yet. archived: they
    were moved to an archive. snapshot_revision, snapshot_root_hash: the snapshot that stands in for
    them, as the log names it.
    """

    first_revision: int
    last_revision: int
    time_us: int
    archived: bool
    snapshot_revision: int
    snapshot_root_hash: bytes


@dataclass(frozen=True, slots=True)
class Lead:
    """A model whose updates a server takes since `revision`, where `term` begins."""

    model: str
    revision: int
    term: int


def gap_of(message: Any) -> LogGap:
    """The gap that a message of the contract tells."""
    return LogGap(
        message.first_revision,
        message.last_revision,
        message.time_us,
        message.archived,
        message.snapshot_revision,
        message.snapshot_root_hash,
    )


@dataclass(frozen=True, slots=True)
class SpecPeriod:
    """A spec that was in force from `revision` on, until the next one.

    spec_id: as in `ModelDescription`. spec: nested plain values.
    """

    revision: int
    spec_id: str
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True, repr=False)
class ModelDescription:
    """A model as a server describes it.

    spec: the complete spec as nested plain values; enums are lower-case names. users, items:
    numbers of rows. events: interactions accepted since the model was created. log_hash: the log's
    chain hash. log_bytes, memory_bytes: sizes. writable: False after a failed sync, until a
    restart. root_hash: 32 bytes over the whole state if the caller asked for it, else empty.
    judgement: how good the live model is; None in lists, and where the server does not judge. hold:
    why the model refuses updates; None if it accepts them. adapted_rate: factor by which an
    adaptive rate multiplies the spec's learning rates; None without one. fault: why the server
    cannot open the model, "" if it serves it. With a fault the numbers are 0 and the spec is empty.
    spec_id: 16 hex digits that name the spec, also in answers of a Scorer. spec_revision: the
    revision from which the spec is in force; None if the server has not read that part of the log
    yet. earlier_specs: the specs before, as far as they are known; empty in lists.
    skipped: revisions that were rolled back, as (first, last); empty in lists. log_gap: what is not
    in the log any more; None for a whole log. term: how often a follower took its leader's place.
    leader: the address of the server that takes the updates; "" for this one.
    """

    name: str
    position: Position
    spec: dict[str, Any]
    users: int
    items: int
    events: int
    backend: str
    log_hash: bytes
    log_bytes: int
    memory_bytes: int
    writable: bool
    root_hash: bytes
    judgement: Judgement | None = None
    hold: Hold | None = None
    adapted_rate: float | None = None
    fault: str = ""
    spec_id: str = ""
    spec_revision: int | None = None
    earlier_specs: tuple[SpecPeriod, ...] = ()
    log_gap: LogGap | None = None
    skipped: tuple[tuple[int, int], ...] = ()
    term: int = 0
    leader: str = ""

    def __repr__(self) -> str:
        if self.fault:
            return f"ModelDescription({self.name!r}, not served: {self.fault!r})"
        rows = f"{self.users} users, {self.items} items, {self.events} events"
        hold = ", on hold" if self.hold is not None else ""
        what = f"rule {self.spec['rule']}, k {self.spec['k']}"
        return f"ModelDescription({self.name!r}, {what}, {rows}, revision {self.position.revision}{hold})"


def description_of(message: Any) -> ModelDescription:
    """A ModelDescription message as plain values."""
    return ModelDescription(
        name=message.model,
        position=position_of(message.position),
        spec=plain(message.spec) if message.HasField("spec") else {},
        users=message.users,
        items=message.items,
        events=message.events,
        backend=message.backend,
        log_hash=message.log_hash,
        log_bytes=message.log_bytes,
        memory_bytes=message.memory_bytes,
        writable=message.writable,
        root_hash=message.root_hash,
        judgement=judgement_of(message.judgement) if message.HasField("judgement") else None,
        hold=hold_of(message.hold) if message.HasField("hold") else None,
        adapted_rate=message.adapted_rate if message.HasField("adapted_rate") else None,
        fault=message.fault,
        spec_id=spec_name(message.spec_id),
        spec_revision=message.spec_revision if message.HasField("spec_revision") else None,
        earlier_specs=tuple(
            SpecPeriod(each.revision, spec_name(each.spec_id), plain(each.spec))
            for each in message.earlier_specs
        ),
        skipped=tuple((each.first, each.last) for each in message.skipped),
        log_gap=gap_of(message.log_gap) if message.HasField("log_gap") else None,
        term=message.term,
        leader=message.leader,
    )
