"""Exactly-once delivery over streams that break: which batch is sent next, and what an answer means. No gRPC,
no threads, no clock.

The server applies a producer's batches in the order of their sequences, 1, 2, 3, ... A status other than OK
consumes no sequence, so a batch that is refused for good (INVALID_ARGUMENT) leaves a gap, and the batches
behind it must take lower numbers. That is where exactly-once is lost if one is careless: an old copy of a
batch, still on its way under its old number, would be accepted once the gap is filled, and applied twice.
Hence three rules:

1. After any answer but OK nothing more is sent until all that was sent on the stream is answered, or the
   stream has ended.
   Then the answers are judged in the order of the sequences: what followed a refusal was refused for the gap.
2. A batch keeps its number, whatever happens, unless one before it was refused for good.
3. Before a batch is given another number, no copy of it may be on its way. One may be if it was sent on a
   stream that
   ended without its answer, or was answered "unknown" (UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED). Then a new
   epoch is opened first: the server refuses older epochs from then on, and tells which sequence it applied
   last.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field

import grpc

from livefactor.errors import LivefactorError, ProducerFenced, from_status, status_code
from livefactor.pushing.batching import Batch
from livefactor.v1 import updates_pb2
from livefactor.wire.columns import Part, Stamp

WINDOW_BATCHES = 64
"""Batches that may be unacknowledged (the contract's number)."""

UNKNOWN = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)
"""Statuses after which a batch may or may not have been applied."""

TRANSIENT = UNKNOWN | {grpc.StatusCode.RESOURCE_EXHAUSTED}
"""Statuses that the same batch is sent again after."""

log = logging.getLogger("livefactor")


@dataclass(slots=True)
class Settled:
    """What came of answers: batches that have their outcome now, and why the others must wait a little, if
    they must.
    """

    finished: list[Batch] = field(default_factory=list)
    pause: str = ""

    def add(self, more: Settled) -> None:
        """Take in what came of later answers."""
        self.finished += more.finished
        self.pause = self.pause or more.pause


class Delivery:
    """The unacknowledged batches of one producer, in order: sent ones (`_sent`, by index on the stream), then
    waiting ones.
    """

    def __init__(self, model: str, producer_id: str, epoch: int, last_sequence: int) -> None:
        self.epoch = epoch
        self.last_acked = last_sequence
        self.fatal: LivefactorError | None = None
        self.must_reopen = False
        self._model = model
        self._producer_id = producer_id
        self._next_sequence = last_sequence + 1
        self._applied_max = last_sequence
        self._waiting: deque[Batch] = deque()
        self._sent: dict[int, Batch] = {}
        self._refusals: dict[int, tuple[grpc.StatusCode, str]] = {}
        self._index = 0

    def __len__(self) -> int:
        """Batches without an outcome."""
        return len(self._sent) + len(self._waiting)

    def batches(self) -> list[Batch]:
        """Batches without an outcome, in order."""
        return [*self._sent.values(), *self._waiting]

    def add(self, batch: Batch, parts: list[Part]) -> None:
        """Queue a batch; `parts` is its body."""
        batch.write(self._model, Stamp(self._producer_id, self.epoch, self._next_sequence), parts)
        self._next_sequence += 1
        self._waiting.append(batch)

    def add_unnumbered(self, batch: Batch, parts: list[Part]) -> None:
        """Queue a batch that takes no sequence number; `parts` is its body."""
        batch.write(self._model, None, parts)
        self._waiting.append(batch)

    @property
    def may_send(self) -> bool:
        """Whether the window has room for a further batch on this stream."""
        return (
            not self._refusals
            and not self.must_reopen
            and len(self._sent) < WINDOW_BATCHES
            and self.fatal is None
        )

    def take(self) -> bytes | None:
        """The next message of this stream, or None for now."""
        if not self._waiting or not self.may_send:
            return None
        batch = self._waiting.popleft()
        self._sent[self._index] = batch
        self._index += 1
        return batch.message(self._model, self._producer_id, self.epoch)

    def answered(self, answer: updates_pb2.BatchAnswer) -> Settled:
        """Take in one answer of the stream. An answer to nothing that is on its way (a second ack) has no
        effect.
        """
        batch = self._sent.get(answer.index)
        if batch is None or batch.sequence != answer.sequence or answer.index in self._refusals:
            log.debug(
                "an answer to index %d, sequence %d, which is not awaited", answer.index, answer.sequence
            )
            return Settled()
        settled = Settled()
        if answer.WhichOneof("result") == "response":
            del self._sent[answer.index]
            self.last_acked = max(self.last_acked, batch.sequence)
            batch.finish(answer.response)
            settled.finished.append(batch)
        else:
            self._refusals[answer.index] = (status_code(answer.status.code), answer.status.message)
        if self._refusals and len(self._refusals) == len(self._sent):
            self._settle(settled)
        return settled

    def stream_ended(self) -> Settled:
        """The stream is over; everything without an outcome will be sent again on the next one."""
        settled = Settled()
        for index, batch in self._sent.items():
            batch.doubtful |= index not in self._refusals
        self._settle(settled)
        self._index = 0
        return settled

    def reopened(self, epoch: int, last_sequence: int) -> None:
        """A new epoch: no older copy of a batch can be applied any more, and `last_sequence` is the last that
        was.
        """
        if not self.last_acked <= last_sequence <= self._applied_max:
            self.fail(ProducerFenced(
                f"producer {self._producer_id!r}: the server applied {last_sequence} batches, expected "
                f"{self.last_acked}..{self._applied_max}: another process uses this id, or the model changed"
            ))  # fmt: skip
            return
        self.epoch = epoch
        self.must_reopen = False
        for batch in self._waiting:
            batch.doubtful = False

    def fail(self, error: LivefactorError) -> list[Batch]:
        """Give up: every batch without an outcome gets `error`."""
        self.fatal = self.fatal or error
        failed = self.batches()
        self._sent.clear()
        self._waiting.clear()
        self._refusals.clear()
        for batch in failed:
            batch.finish(self.fatal)
        return failed

    def _settle(self, settled: Settled) -> None:
        """Judge the refusals in order, put back what must be sent again, and close the gaps."""
        again: list[Batch] = []
        numbered = 0
        for index, batch in self._sent.items():
            code, text = self._refusals.get(index, (None, ""))
            numbered += batch.numbered
            if code is grpc.StatusCode.INVALID_ARGUMENT:
                what = (
                    f"batch {batch.sequence} of {batch.rows} rows" if batch.numbered else "a batch of labels"
                )
                batch.finish(from_status(code, text, f"{what} was refused"))
                settled.finished.append(batch)
                continue
            if code in TRANSIENT:
                batch.doubtful |= code in UNKNOWN
                settled.pause = settled.pause or f"{code.name}: {text}"
            elif code is not None and (code is not grpc.StatusCode.FAILED_PRECONDITION or numbered <= 1):
                # The first batch with a number has no gap before it. Any other status is outside what a
                # batch can be answered with.
                settled.finished += self.fail(self._fatal_error(code, text))
                return
            again.append(batch)
        self._close_gaps(
            again, [batch for batch in settled.finished if batch.error is not None and batch.numbered]
        )
        self._sent.clear()
        self._refusals.clear()
        self._waiting.extendleft(reversed(again))

    def _fatal_error(self, code: grpc.StatusCode, text: str) -> LivefactorError:
        doing = f"producer {self._producer_id!r} (epoch {self.epoch})"
        # A text begins with what it is about: a hold is the model's, and no matter of producers.
        if code is grpc.StatusCode.FAILED_PRECONDITION and not text.startswith("model:"):
            return ProducerFenced(f"{doing}: {text}", code=code.name, details=text)
        return from_status(code, text, doing)

    def _close_gaps(self, again: list[Batch], refused: list[Batch]) -> None:
        """Give the batches behind the first refused one the numbers from its own on (rule 3)."""
        if not refused:
            return
        number = refused[0].sequence
        self._applied_max = number - 1
        for batch in (*again, *self._waiting):
            if not batch.numbered or batch.sequence < number:
                continue
            self.must_reopen |= batch.doubtful
            batch.sequence = number
            number += 1
        self._next_sequence = number
