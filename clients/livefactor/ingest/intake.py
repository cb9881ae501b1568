"""The middle of an ingester: messages in, batches out, in the steps that `__init__` describes.

One thread calls it. It knows neither sources nor brokers, only messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from livefactor.ingest.config import CASTS, FIELDS, IDS, ConfigError, FieldRule, IngestConfig, SourceConfig
from livefactor.ingest.dead_letters import DeadLetters
from livefactor.ingest.joining import Joiner, Waiting
from livefactor.ingest.journal import Entry, Journal, JournalError, Progress
from livefactor.ingest.mapping import Mapping, Refusal, decode
from livefactor.ingest.ordering import Arrivals, Cut, Delayed
from livefactor.ingest.tracking import Tracker
from livefactor.pushing.batching import BatchSettings, Receipt
from livefactor.pushing.producer import Producer

REJECTED = "the server rejected the row"

ROWS = "rows"
"""The source name of dead letters that are rows already, because the server rejected them."""


class Message(NamedTuple):
    """What a source gives.

    source: its name. partition: starts with the source's name. position: grows within the
    partition. settled: called with the number of dead letters once every event of the message is
    in the journal or has another outcome.
    """

    source: str
    partition: str
    position: int
    payload: bytes | dict[str, Any]
    settled: Callable[[int], None] | None = None


@dataclass(slots=True)
class Counts:
    """What an ingester did since it started, in events."""

    read: int = 0
    filtered: int = 0
    pushed: int = 0
    dead: int = 0
    again: int = 0
    """Pushed again after a restart."""


def batch_settings(config: IngestConfig) -> BatchSettings:
    """The settings of the producer. Each push of the intake is then one batch."""
    return BatchSettings(events_max=config.batch_events, latency_ms_max=None)


class Intake:
    """Takes messages, and pushes the rows of their events.

    producer: with `batch_settings` of the same configuration. Raises JournalError if the producer
    and the journal do not fit.
    """

    def __init__(
        self, config: IngestConfig, journal: Journal, letters: DeadLetters, producer: Producer
    ) -> None:
        self._config, self._journal, self._letters, self._producer = config, journal, letters, producer
        self._mappings = {source.name: Mapping(source) for source in config.sources}
        self._mappings[ROWS] = Mapping(_row_source(config))
        self._joiners = {source.name: Joiner(source.join) for source in config.sources if source.join}
        self._lookups = {joiner.join.source: joiner for joiner in self._joiners.values()}
        self._trackers: dict[str, Tracker] = {}
        self._checked = {name.split("/")[0] for name in self._recorded()}
        self._held: Arrivals | Delayed = Delayed(config.delay_s) if config.delay_s else Arrivals()
        self._settling: list[tuple[Message, int]] = []
        self._outcomes: deque[tuple[Receipt, Cut]] = deque()
        self._unwritten = False
        self._sequence = producer.last_sequence
        self.counts = Counts()
        self._push_again()

    def resume(self, partition: str) -> Progress:
        """Where a source goes on with a partition."""
        return self._recorded().get(partition, Progress())

    def forget(self, partition: str) -> None:
        """Forget a partition that will not come again. All its messages must be settled."""
        self._trackers.pop(partition, None)
        if self._journal.entries:
            self._journal.entries[-1].progress.pop(partition, None)
        self._unwritten = True

    @property
    def waiting(self) -> int:
        """Events that were read and have no outcome yet."""
        return self._held.rows + sum(joiner.waiting for joiner in self._joiners.values())

    def take(self, message: Message, now: float) -> None:
        """Take a message: its rows are held, what gives none is a dead letter.

        now: on the monotonic clock. Raises ConfigError if the first event of a source lacks fields
        that its mapping needs, and DeadLettersFull.
        """
        mapping = self._mappings[message.source]
        if message.source in self._lookups:
            self._counterparts(message, mapping.source.format, now)
            return
        tracker = self._tracker(message.partition)
        if tracker.is_done(message.position):
            if message.settled:
                message.settled(0)
            return
        events, refusals = decode(message.payload, mapping.source.format)
        done = tracker.begin(message.position, len(events))
        dead = self._letters.count
        left = list(range(len(events)))
        if done or refusals:
            left = [i for i in left if events[i] is not None and not done >> i & 1]
        self.counts.read += len(left)
        self._check(mapping, next((events[i] for i in left), None))
        self._refuse(message.partition, message.position, [r for r in refusals if not done >> r.number & 1])
        kept = mapping.kept(left, events)
        if len(kept) < len(left):
            self.counts.filtered += len(left) - len(kept)
            tracker.finish(message.position, set(left).difference(kept))
        found = events if len(kept) == len(events) else [events[i] for i in kept]
        if message.source in self._joiners:
            kept, found = self._join(message, kept, found, now)
        self._hold(mapping, message.partition, message.position, kept, found, now)
        self._unwritten = True
        if message.settled:
            self._settling.append((message, self._letters.count - dead))

    def pump(self, now: float, *, whole: bool = True) -> bool:
        """Push what is due; returns whether it pushed anything.

        whole: push full batches only. Raises the errors of the producer and of the journal.
        """
        for joiner in self._joiners.values():
            for waiting, reason in joiner.expired(now):
                refusal = Refusal(waiting.number, reason, waiting.event)
                self._refuse(waiting.partition, waiting.position, [refusal])
        self._dead_rows()
        pushed = False
        while (due := self._held.due(now)) and (due >= self._config.batch_events or not whole):
            self._push(self._held.take(min(due, self._config.batch_events)))
            pushed = True
        if not whole and self._unwritten:
            self._write([])
        return pushed

    def finish(self) -> None:
        """Push all rows that are due no more than they wait, and wait for their acks."""
        while self._held.rows:
            self._push(self._held.take(min(self._held.due(float("inf")), self._config.batch_events)))
        self._producer.flush()
        self._dead_rows()
        if self._unwritten:
            self._write([])

    # The parts of `take`.

    def _tracker(self, partition: str) -> Tracker:
        if partition not in self._trackers:
            self._trackers[partition] = Tracker(self.resume(partition))
        return self._trackers[partition]

    def _check(self, mapping: Mapping, event: dict[str, Any] | None) -> None:
        """Refuse a mapping that names a field which the first event of the source has not."""
        name = mapping.source.name
        if name in self._checked or event is None or mapping.source.join:
            return
        self._checked.add(name)
        missing = mapping.missing(event)
        if missing:
            raise ConfigError(
                f"source {name!r}: the first event has no field {', '.join(map(repr, missing))}; "
                f"it has {', '.join(map(str, islice(event, 50)))}"
            )

    def _counterparts(self, message: Message, form: str, now: float) -> None:
        joiner = self._lookups[message.source]
        mapping = next(self._mappings[name] for name, each in self._joiners.items() if each is joiner)
        for event in decode(message.payload, form)[0]:
            for waiting, joined in joiner.counterpart(event) if event is not None else ():
                self._hold(mapping, waiting.partition, waiting.position, [waiting.number], [joined], now)
        if message.settled:
            message.settled(0)

    def _join(
        self, message: Message, kept: list[int], events: list[dict[str, Any]], now: float
    ) -> tuple[list[int], list[dict[str, Any]]]:
        joiner = self._joiners[message.source]
        until = now + joiner.join.wait_s
        found = []
        for index, event in zip(kept, events, strict=True):
            joined = joiner.joined(Waiting(until, message.partition, message.position, index, event))
            if joined is not None:
                found.append((index, joined))
        return [index for index, _ in found], [event for _, event in found]

    def _hold(
        self,
        mapping: Mapping,
        partition: str,
        position: int,
        index: list[int],
        events: list[dict[str, Any]],
        now: float,
    ) -> None:
        rows, refusals = mapping.rows(index, events)
        self._refuse(partition, position, refusals)
        if rows.numbers:
            self._held.add(partition, position, rows, now)

    def _refuse(self, partition: str, position: int, refusals: list[Refusal]) -> None:
        source = partition.split("/")[0]
        for index, reason, event in refusals:
            self._letters.add(source, partition, position, index, reason, event)
            self.counts.dead += 1
        if refusals:
            self._trackers[partition].finish(position, [each.number for each in refusals])
            self._unwritten = True

    # The parts of `pump`.

    def _push(self, cut: Cut) -> None:
        for origin in cut.origins:
            self._trackers[origin.partition].finish(origin.position, origin.numbers)
        self._sequence += 1
        self._write(cut.columns)
        receipt = self._send(cut.columns)
        receipt.add_done_callback(partial(self._acknowledged, cut))
        self.counts.pushed += len(cut.columns[0])

    def _write(self, columns: list[list[Any]]) -> None:
        """Write a batch, or progress alone, and answer those who wait for it."""
        self._journal.applied(self._producer.last_sequence)
        progress = self._recorded()
        progress.update((name, tracker.progress()) for name, tracker in self._trackers.items())
        letters = self._letters.pending()
        self._journal.append(Entry(self._sequence, columns, progress, letters))
        self._letters.write(letters)
        self._unwritten = False
        waiting = []
        for message, dead in self._settling:
            if self._trackers[message.partition].is_open(message.position):
                waiting.append((message, dead))
            elif message.settled:
                message.settled(dead)
        self._settling = waiting

    def _send(self, columns: list[list[Any]]) -> Receipt:
        users, items, values, weights, types, times = columns
        with np.errstate(over="ignore"):
            # The server rejects the row of a number beyond float32, and names it.
            values32, weights32 = np.array(values, np.float32), np.array(weights, np.float32)
        receipt = self._producer.push(
            users,
            items,
            values32,
            weights32,
            np.array(types, np.uint32),
            np.array(times, np.int64).view("datetime64[us]"),
        )
        if len(users) < self._config.batch_events:
            # Else the next push would go into the same batch.
            self._producer.flush()
        return receipt

    def _acknowledged(self, cut: Cut, receipt: Receipt) -> None:
        # This runs on the producer's thread.
        if receipt.exception() is None and receipt.result().rejects:
            self._outcomes.append((receipt, cut))

    def _dead_rows(self) -> None:
        """Write the rows that the server rejected as dead letters."""
        while self._outcomes:
            receipt, cut = self._outcomes.popleft()
            for reject in receipt.result().rejects:
                partition, position, index = cut.origin(reject.row)
                row = {name: column[reject.row] for name, column in zip(FIELDS, cut.columns, strict=True)}
                self._letters.add(
                    ROWS,
                    partition,
                    position,
                    index,
                    f"{REJECTED}: {reject.reason}: {reject.text}",
                    row,
                )
                self.counts.dead += 1
                self._unwritten = True

    # Recovery.

    def _recorded(self) -> dict[str, Progress]:
        entries = self._journal.entries
        return dict(entries[-1].progress) if entries else {}

    def _push_again(self) -> None:
        last, name = self._producer.last_sequence, self._producer.producer_id
        if last > self._journal.sequence:
            raise JournalError(
                f"the server applied batch {last} of producer {name!r}, and the journal ends with batch "
                f"{self._journal.sequence}: another ingester uses this producer, or the state folder is not its own"
            )
        left = [entry for entry in self._journal.entries if entry.rows and entry.sequence > last]
        if last < self._journal.sequence and (not left or left[0].sequence != last + 1):
            first = left[0].sequence if left else self._journal.sequence + 1
            raise JournalError(
                f"the server is at batch {last} of producer {name!r}, and the journal begins with batch {first}: "
                "the model was set back or made anew; remove the state folder to ingest from the beginning"
            )
        for entry in left:
            self._send(entry.rows)
            self._producer.flush()
            self.counts.again += len(entry.rows[0])
        self._sequence = self._journal.sequence


def _row_source(config: IngestConfig) -> SourceConfig:
    """The source of rows, whose events have the names of a row's fields."""
    mapped = next(source for source in config.sources if source.fields)
    fields = {name: FieldRule((name,), CASTS[name][0]) for name in FIELDS}
    fields.update((side, FieldRule((side,), mapped.fields[side].cast)) for side in IDS)
    fields["time"] = FieldRule(("time",), "us")
    return SourceConfig(ROWS, "file", "json", {}, fields)
