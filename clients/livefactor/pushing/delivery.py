"""Exactly-once delivery over streams that break: what is sent next, and what an answer means.

This module makes no gRPC calls, starts no threads and reads no clock.

The server applies the batches of a producer in the order of their sequence numbers: 1, 2, 3, ...
Only the status OK consumes a sequence number. A batch that is refused for good (INVALID_ARGUMENT)
therefore leaves a gap, and the batches behind it must take lower numbers. This renumbering could
break exactly-once: a copy of a batch may still travel under its old number. Once the gap is filled,
the server would accept that copy and apply the batch twice. Three rules prevent this:

1. After any answer other than OK, nothing more is sent until every batch on the stream has its
   answer or the stream has ended. Then the answers are judged in the order of the sequence numbers,
   because the batches behind a refused one were only refused for the gap.
2. A batch keeps its number unless a batch before it was refused for good.
3. A batch gets another number only when no copy of it can still reach the server. A copy may still
   travel if the stream ended without an answer, or if the answer leaves the outcome open
   (UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED). In that case a new epoch is opened first. From then
   on the server refuses older epochs, and it reports which sequence number it applied last.
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
"""How many batches may be unacknowledged at once. The contract sets this number."""

UNKNOWN = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)
"""Statuses that leave open whether the server applied the batch."""

TRANSIENT = UNKNOWN | {grpc.StatusCode.RESOURCE_EXHAUSTED}
"""Statuses after which the same batch is sent again."""

log = logging.getLogger("livefactor")


@dataclass(slots=True)
class Outcomes:
    """The result of some answers.

    finished: batches that now have an outcome. pause: why the other batches must wait; empty if
    they need not.
    """

    finished: list[Batch] = field(default_factory=list)
    pause: str = ""

    def add(self, more: Outcomes) -> None:
        """Append the result of later answers."""
        self.finished += more.finished
        self.pause = self.pause or more.pause


class Delivery:
    """The unacknowledged batches of one producer, in order.

    `_sent` holds the batches on the stream by their index on it. `_waiting` holds the batches
    behind them.
    """

    def __init__(self, model: str, producer_id: str, epoch: int, last_sequence: int) -> None:
        self.epoch = epoch
        self.last_acked = last_sequence
        self.fatal: LivefactorError | None = None
        self.needs_new_epoch = False
        self._model = model
        self._producer_id = producer_id
        self._next_sequence = last_sequence + 1
        self._applied_max = last_sequence
        self._waiting: deque[Batch] = deque()
        self._sent: dict[int, Batch] = {}
        self._refusals: dict[int, tuple[grpc.StatusCode, str]] = {}
        self._index = 0

    def __len__(self) -> int:
        """The number of batches without an outcome."""
        return len(self._sent) + len(self._waiting)

    def batches(self) -> list[Batch]:
        """Batches without an outcome, in order."""
        return [*self._sent.values(), *self._waiting]

    def add(self, batch: Batch, parts: list[Part]) -> None:
        """Queue a batch. parts: its body."""
        batch.write(self._model, Stamp(self._producer_id, self.epoch, self._next_sequence), parts)
        self._next_sequence += 1
        self._waiting.append(batch)

    def add_without_number(self, batch: Batch, parts: list[Part]) -> None:
        """Queue a batch that takes no sequence number. parts: its body."""
        batch.write(self._model, None, parts)
        self._waiting.append(batch)

    @property
    def can_send(self) -> bool:
        """Whether a further batch may be sent on this stream."""
        return (
            not self._refusals
            and not self.needs_new_epoch
            and len(self._sent) < WINDOW_BATCHES
            and self.fatal is None
        )

    def take(self) -> bytes | None:
        """The next message of this stream; None if none may be sent now."""
        if not self._waiting or not self.can_send:
            return None
        batch = self._waiting.popleft()
        self._sent[self._index] = batch
        self._index += 1
        return batch.message(self._model, self._producer_id, self.epoch)

    def take_answer(self, answer: updates_pb2.BatchAnswer) -> Outcomes:
        """Record one answer of the stream.

        An answer has no effect if no batch waits for it, as with a second ack of a batch.
        """
        batch = self._sent.get(answer.index)
        if batch is None or batch.sequence != answer.sequence or answer.index in self._refusals:
            log.debug("ignored an answer to index %d, sequence %d", answer.index, answer.sequence)
            return Outcomes()
        outcomes = Outcomes()
        if answer.WhichOneof("result") == "response":
            del self._sent[answer.index]
            self.last_acked = max(self.last_acked, batch.sequence)
            batch.finish(answer.response)
            outcomes.finished.append(batch)
        else:
            self._refusals[answer.index] = (status_code(answer.status.code), answer.status.message)
        if self._refusals and len(self._refusals) == len(self._sent):
            self._judge_refusals(outcomes)
        return outcomes

    def end_stream(self) -> Outcomes:
        """Record the end of the stream.

        The next stream sends every batch without an outcome again.
        """
        outcomes = Outcomes()
        for index, batch in self._sent.items():
            batch.is_in_doubt |= index not in self._refusals
        self._judge_refusals(outcomes)
        self._index = 0
        return outcomes

    def reopen(self, epoch: int, last_sequence: int) -> None:
        """Begin a new epoch: the server no longer applies older copies of a batch.

        last_sequence: the last sequence number that the server applied.
        """
        if not self.last_acked <= last_sequence <= self._applied_max:
            self.fail(ProducerFenced(
                f"producer {self._producer_id!r}: the server applied {last_sequence} batches, expected "
                f"{self.last_acked}..{self._applied_max}: another process uses this id, or the model changed"
            ))  # fmt: skip
            return
        self.epoch = epoch
        self.needs_new_epoch = False
        for batch in self._waiting:
            batch.is_in_doubt = False

    def renew(self, epoch: int, last_sequence: int) -> None:
        """Go on in a new epoch, which this producer opened while it had nothing to send."""
        if last_sequence != self.last_acked:
            self.fail(ProducerFenced(
                f"producer {self._producer_id!r}: the server applied {last_sequence} batches, expected "
                f"{self.last_acked}: another process uses this id"
            ))  # fmt: skip
        self.epoch = epoch

    def fail(self, error: LivefactorError) -> list[Batch]:
        """Stop delivery. Every batch without an outcome gets `error`."""
        self.fatal = self.fatal or error
        failed = self.batches()
        self._sent.clear()
        self._waiting.clear()
        self._refusals.clear()
        for batch in failed:
            batch.finish(self.fatal)
        return failed

    def _judge_refusals(self, outcomes: Outcomes) -> None:
        """Judge the refusals in order, queue what must be sent again, and close the gaps."""
        resend: list[Batch] = []
        numbered = 0
        for index, batch in self._sent.items():
            code, text = self._refusals.get(index, (None, ""))
            numbered += batch.numbered
            if code is grpc.StatusCode.INVALID_ARGUMENT:
                what = (
                    f"batch {batch.sequence} ({batch.rows} rows)" if batch.numbered else "a batch of labels"
                )
                batch.finish(from_status(code, text, f"the server refused {what}"))
                outcomes.finished.append(batch)
                continue
            if code in TRANSIENT:
                batch.is_in_doubt |= code in UNKNOWN
                outcomes.pause = outcomes.pause or f"{code.name}: {text}"
            elif code is not None and (code is not grpc.StatusCode.FAILED_PRECONDITION or numbered <= 1):
                # The first batch with a number has no gap before it, so the producer itself was
                # refused. The contract has no other status for a batch.
                outcomes.finished += self.fail(self._fatal_error(code, text))
                return
            resend.append(batch)
        self._close_gaps(
            resend, [batch for batch in outcomes.finished if batch.error is not None and batch.numbered]
        )
        self._sent.clear()
        self._refusals.clear()
        self._waiting.extendleft(reversed(resend))

    def _fatal_error(self, code: grpc.StatusCode, text: str) -> LivefactorError:
        doing = f"producer {self._producer_id!r} (epoch {self.epoch})"
        # A server's text begins with its subject. "model:" reports a hold of the model's updates,
        # and the producer itself is still valid then.
        if code is grpc.StatusCode.FAILED_PRECONDITION and not text.startswith("model:"):
            return ProducerFenced(f"{doing}: {text}", code=code.name, details=text)
        return from_status(code, text, doing)

    def _close_gaps(self, resend: list[Batch], refused: list[Batch]) -> None:
        """Renumber the batches behind the first refused batch, beginning with its number (rule
        3).
        """
        if not refused:
            return
        number = refused[0].sequence
        self._applied_max = number - 1
        for batch in (*resend, *self._waiting):
            if not batch.numbered or batch.sequence < number:
                continue
            self.needs_new_epoch |= batch.is_in_doubt
            batch.sequence = number
            number += 1
        self._next_sequence = number
