"""A batch on its way through the engine, and its answer."""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.changes import Change, Rejects, WireChange, encode_rejects
from livefactor_server.log.format import SALT_BYTES
from livefactor_server.log.store import Entry
from livefactor_server.statuses import Refused, unavailable
from livefactor_server.telemetry.traces import Trace

Seal = Callable[[bytes, bytes, bytes], bytes]
"""The hash of the log: (salt, reject summary, body) -> commitment, 32 bytes."""


Wake = Callable[[], None]

CONFIRM_LOOK_S = 0.05
"""Seconds between two looks for answers that have waited too long."""

_SALTS_AT_ONCE = 256
_salts: list[bytes] = []
# A process that forks must not use a salt twice.
os.register_at_fork(after_in_child=_salts.clear)


def _new_salt() -> bytes:
    """Random bytes for a record. Each call to the system gives up the GIL, so one makes many."""
    while True:
        try:
            return _salts.pop()
        except IndexError:
            fresh = os.urandom(_SALTS_AT_ONCE * SALT_BYTES)
            _salts.extend(fresh[start : start + SALT_BYTES] for start in range(0, len(fresh), SALT_BYTES))


class Ack(NamedTuple):
    """A batch is durable, and its effect is visible at `revision`.

    `epoch` and `last_sequence` belong to an opened producer; for other batches they have no
    meaning. `is_held`: it waits in quarantine, and its effect is not visible.
    """

    revision: int
    accepted: int
    rejects: Rejects
    duplicate: bool = False
    is_held: bool = False
    epoch: int = 0
    last_sequence: int = 0


class Confirmations:
    """The answers of one model that wait until followers have the records on disk. Thread-safe.

    An answer that waits too long becomes UNAVAILABLE: the batch is applied, and its sender sends it
    again. That copy waits like the first. So nothing is acknowledged that too few followers have.
    The number of waiting answers is bounded by what clients may have open.
    """

    def __init__(self, needed: int, wait_s: float) -> None:
        """`needed` followers must have a record. `wait_s` is the limit of a wait, in seconds."""
        self.needed, self._wait_s = needed, wait_s
        self._lock = threading.Lock()
        self._followers: dict[str, int] = {}
        self._confirmed = -1
        self._held: list[tuple[int, int, float, Submission, Ack]] = []
        self._count = 0
        self._timer: threading.Thread | None = None

    def join(self, follower: str, revision: int) -> None:
        """A follower has the records up to a revision. It confirms the others later."""
        with self._lock:
            self._followers[follower] = revision
        self._pass_on()

    def leave(self, follower: str) -> None:
        """A follower is gone. What it has confirmed stays confirmed."""
        with self._lock:
            self._followers.pop(follower, None)

    def confirm(self, follower: str, revision: int) -> None:
        """A follower has more records on disk. One that has left is ignored."""
        with self._lock:
            if follower not in self._followers:
                return
            self._followers[follower] = max(revision, self._followers[follower])
        self._pass_on()

    def hold(self, item: Submission, ack: Ack) -> bool:
        """Keeps the answer of a batch until it is confirmed. Returns False if it is already."""
        with self._lock:
            if ack.revision <= self._confirmed:
                return False
            self._count += 1
            heapq.heappush(
                self._held, (ack.revision, self._count, time.monotonic() + self._wait_s, item, ack)
            )
            if self._timer is None:
                self._timer = threading.Thread(target=self._watch, name="confirmations", daemon=True)
                self._timer.start()
        return True

    def _pass_on(self) -> None:
        ready = []
        with self._lock:
            revisions = sorted(self._followers.values(), reverse=True)
            if len(revisions) >= self.needed:
                self._confirmed = max(self._confirmed, revisions[self.needed - 1])
            while self._held and self._held[0][0] <= self._confirmed:
                ready.append(heapq.heappop(self._held))
        wakes: set[Wake] = set()
        for *_, item, ack in ready:
            wakes |= item.answer_now(ack)
        for wake in wakes:
            wake()

    def _watch(self) -> None:
        """Ends the waits that took too long, and then itself when nothing waits."""
        while True:
            time.sleep(CONFIRM_LOOK_S)
            now = time.monotonic()
            with self._lock:
                late = [each for each in self._held if each[2] <= now]
                if late:
                    self._held = [each for each in self._held if each[2] > now]
                    heapq.heapify(self._held)
                if not self._held:
                    self._timer = None
            for *_, item, ack in late:
                for wake in item.answer_now(
                    unavailable(
                        f"followers: fewer than {self.needed} have revision {ack.revision} after"
                        f" {self._wait_s:g} s; the batch is logged here, send it again"
                    )
                ):
                    wake()
            if self._timer is not threading.current_thread():
                return


@dataclass(slots=True)
class Submission:
    """A batch. Its handler thread does all work that needs no order: decode, check, salt, hash.

    An engine thread sets `result` and then calls `reply`, exactly once. `reply` must not block. It
    may return a function that wakes its receiver. Answers that are given together wake it once.

    Attributes:
        received_body: the bytes of the change as the client sent them.
        tag: number that the handler uses to match answers to requests.
        salt: random bytes of the record's hash.
        time_us: time of arrival, microseconds since the epoch.
        received_hash: the hash of `received_body`.
        commitment: the hash of what is logged.
        followers: retries that wait for the same result.
        started: time of arrival, in seconds of `time.perf_counter`.
        new_rows: the most rows that an admitted batch adds to a table.
        spec: the spec against which the change was checked, None if that does not matter.
        is_late: whether nobody waits for the result any more. None if somebody always does.
        payer: whose quotas the batch takes from.
        guard: raises a refusal if the batch may not enter the log now. An operator decided on such
            a batch, so it takes from no quota.
        claim: rejects rows that others made superfluous, when the batch is admitted.
        confirmations: what an acknowledgement waits for, or None.
        trace: the span of its call, or None.
        ends_trace: whether the span ends with the batch.
    """

    change: Change
    received_body: bytes
    producer: bytes
    epoch: int
    sequence: int
    rejects: Rejects
    seal: Seal
    reply: Callable[[Submission], Wake | None]
    tag: int = 0
    salt: bytes = field(default_factory=_new_salt)
    time_us: int = field(default_factory=lambda: time.time_ns() // 1000)
    received_hash: bytes = b""
    commitment: bytes = b""
    rejects_blob: bytes = b""
    result: Ack | Refused | None = None
    followers: list[Submission] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    new_rows: int = 0
    spec: ModelSpec | None = None
    is_late: Callable[[], bool] | None = None
    payer: bytes = b""
    guard: Callable[[], None] | None = None
    claim: Callable[[Submission], None] | None = None
    confirmations: Confirmations | None = None
    trace: Trace | None = None
    ends_trace: bool = False

    def __post_init__(self) -> None:
        self.received_hash = self.seal(self.salt, b"", self.received_body)
        self._seal_payload()

    def _seal_payload(self) -> None:
        self.rejects_blob = encode_rejects(self.rejects, self.received_hash, self.change.is_wrapped)
        if self.rejects.count or self.change.body is not self.received_body:
            self.commitment = self.seal(self.salt, self.rejects_blob, self.change.body)
        else:
            self.commitment = self.received_hash

    @property
    def size(self) -> int:
        """Approximate memory of the queued batch, in bytes."""
        return len(self.received_body) + 512

    def reject_more(self, rejected: list[tuple[int, int]], change: Change) -> None:
        """Rejects rows of the present change, and replaces it by `change`, which lacks them.

        `rejected` has (row, reason) pairs in row order. The list of rejects counts rows as the
        received batch does.
        """
        self.rejects = self.rejects.merged(rejected)
        self.replace(change)

    def replace(self, change: Change) -> None:
        """Logs another change than the one that was received."""
        self.change = change
        self._seal_payload()

    def reject_rows(self, rejected: list[tuple[int, int]]) -> None:
        """Rejects rows of the present change: (row, reason) pairs in row order."""
        assert isinstance(self.change, WireChange)
        self.reject_more(rejected, self.change.without_rows([row for row, _ in rejected]))

    def entry(self, revision: int) -> Entry:
        """The log entry of this batch at `revision`."""
        return Entry(
            kind=self.change.kind,
            revision=revision,
            producer=self.producer,
            epoch=self.epoch,
            sequence=self.sequence,
            time_us=self.time_us,
            count=self.change.rows,
            rejects=self.rejects_blob,
            body=self.change.body,
            salt=self.salt,
            commitment=self.commitment,
        )

    def finish(self, result: Ack | Refused) -> None:
        """Answers the batch and its followers."""
        for wake in self.answer(result):
            wake()

    def refuse(self, refusal: Refused) -> None:
        """Answers the batch with a refusal."""
        self.finish(refusal)

    def _end_trace(self, result: Ack | Refused) -> None:
        assert self.trace is not None
        producer = self.producer.decode(errors="replace")
        if isinstance(result, Refused):
            self.trace.end(result.code.name, result.text, producer=producer, sequence=self.sequence)
        else:
            self.trace.end("OK", producer=producer, sequence=self.sequence, revision=result.revision)

    def answer(self, result: Ack | Refused) -> set[Wake]:
        """Does as `finish`, and returns the functions that the caller must call afterwards."""
        if (
            isinstance(result, Ack)
            and self.confirmations is not None
            and self.confirmations.hold(self, result)
        ):
            # It has an outcome, so an engine that fails must not refuse it.
            self.result = result
            return set()
        return self.answer_now(result)

    def answer_now(self, result: Ack | Refused) -> set[Wake]:
        """Does as `answer`, without waiting for followers."""
        self.result = result
        if self.trace is not None and self.ends_trace:
            self._end_trace(result)
        wake = self.reply(self)
        wakes = set() if wake is None else {wake}
        for follower in self.followers:
            wakes |= follower.answer_now(
                result._replace(duplicate=True) if isinstance(result, Ack) else result
            )
        return wakes


def abandon(batches: Sequence[Submission]) -> None:
    """Refuses the batches that have no answer yet, because writes are stopped."""
    for batch in batches:
        if batch.result is None:
            batch.finish(unavailable("model: writes are stopped"))
