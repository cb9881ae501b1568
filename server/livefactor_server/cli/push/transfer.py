"""What `livefactor push` does: find where the last run ended, send the rest, count the answers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import TextColumn, TimeElapsedColumn

from livefactor.pushing.batching import BatchSettings, Receipt
from livefactor.pushing.features import is_one_batch
from livefactor.pushing.producer import Producer
from livefactor_server.cli.base import console, progress, rate
from livefactor_server.files.events import Batches, EventFileError, Events, Rows, open_file
from livefactor_server.files.marks import MARK_EVERY, Digest, Mark, producer_of

RECEIPTS_MAX = 64
"""Maximum number of batches that wait for their acknowledgement."""

INTERRUPT_CHECK_S = 0.1
"""Maximum time in seconds that a wait for an acknowledgement delays an interrupt."""

REJECTS_MAX = 100
"""Maximum number of rejected rows that are listed."""


class Push:
    """One run of the command for one file.

    Attributes:
        file: the file, or "-".
        is_open: the server was reached, so that events may have been applied.
        skipped: events that earlier runs had pushed.
        accepted, rejected: events of this run, in acknowledged batches.
        held: those of the accepted ones that wait in quarantine.
        row: how many rows of the file were acknowledged, in all runs.
        revision: the last one, 0 before the end.
        ids: a sentence for each column of ids of a csv file: what it holds, and why.
    """

    def __init__(
        self,
        file: Path,
        names: dict[str, str],
        string_ids: bool,
        time_unit: str,
        secret: bytes,
        batch: int,
        separator: str = "",
    ) -> None:
        self._separator = separator
        self.file, self._secret, self._batch = file, secret, batch
        self._options = (names, string_ids, time_unit)
        self._events: Events | None = None
        self._total = 0
        self._receipts: list[tuple[Rows, Receipt]] = []
        self._rejects: list[tuple[int, str, str]] = []
        self._producer_id = ""
        self._interrupted = threading.Event()
        self.ids: list[str] = []
        self.is_open = False
        self.skipped = self.accepted = self.rejected = self.held = self.row = self.revision = 0

    @property
    def acknowledged(self) -> int:
        """Events of this run that were accepted or rejected."""
        return self.accepted + self.rejected

    def events(self) -> Events:
        """The events of the file, which is opened once."""
        if self._events is None:
            names, string_ids, time_unit = self._options
            self._events = Events(
                open_file(self.file),
                names,
                string_ids,
                time_unit,
                self.ids.append,
            )
        return self._events

    def check(self) -> None:
        """Reads and converts the whole file. Raises EventFileError for a fault, or for a stream."""
        events = self.events()
        if events.is_stream:
            raise EventFileError("--check reads a file twice, and a stream is read once")
        with progress(TextColumn("{task.completed:,} events")) as bar:
            task = bar.add_task("check", total=events.total or None)
            for rows in events:
                self._total += len(rows)
                bar.update(task, completed=self._total)

    def send(self, target: str, producer: str, model: str, labels: bool) -> None:
        """Sends what earlier runs have not sent.

        Raises:
            EventFileError: the file has a fault, or is not the one that earlier runs sent.
            LivefactorError: the server refuses, or is away.
            KeyboardInterrupt: the user interrupts it.
        """
        batches = Batches(self.events())
        self._producer_id = producer or producer_of(batches.first(), self._secret)
        with (
            self._interruptible(),
            Producer(
                target,
                self._producer_id,
                model=model,
                secret=self._secret,
                labels=labels,
                batch=BatchSettings(events_max=self._batch, latency_ms_max=0.0),
                # The rejected rows are counted here and need no warning.
                on_reject=lambda rejects: None,
            ) as sender,
        ):
            self.is_open = True
            for sentence in self.ids:
                console(err=True).print(sentence, soft_wrap=True, markup=False, highlight=False)
            digest = Digest(self._secret)
            self.skipped = self.row = _skip_applied(sender, batches, digest, self._separator)
            self._send_rest(sender, batches, digest)
            self.revision = sender.flush().revision

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Delays the first SIGINT until no lock is held. A second one interrupts at once.

        Python raises KeyboardInterrupt between any two instructions. After one inside of gRPC,
        closing the stream could wait for ever for a lock that nobody gives back.
        """

        def note(number: int, frame: object) -> None:
            self._interrupted.set()
            signal.signal(signal.SIGINT, signal.default_int_handler)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _check_interrupt(self) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt

    def _send_rest(self, sender: Producer, batches: Batches, digest: Digest) -> None:
        began, since_mark, sequence = time.monotonic(), MARK_EVERY, sender.last_sequence + 1
        columns = (
            TextColumn("{task.completed:,} events"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
        )
        with progress(*columns) as bar:
            total = self._total or self.events().total
            task = bar.add_task("push", total=total or None, completed=self.skipped, rate="")
            while (rows := batches.take(self._batch)) is not None:
                self._check_interrupt()
                if since_mark == MARK_EVERY or len(rows) < self._batch:
                    self._collect(0)
                    sender.keep(Mark(sequence, rows.first, len(rows), self._batch, digest.value()).encode())
                    since_mark = 0
                given = rows.pushed(self._separator)
                if "context" in given and not is_one_batch(given["context"], sender.batch):
                    raise EventFileError(
                        f"{self._batch} events with their context are too large for a batch: take a smaller --batch"
                    )
                self._receipts.append((rows, sender.push(**given)))
                digest.add(rows)
                since_mark, sequence = since_mark + 1, sequence + 1
                self._collect(RECEIPTS_MAX)
                done = rows.first + len(rows)
                sent = (done - self.skipped) / (time.monotonic() - began)
                bar.update(task, completed=done, rate=rate(sent))
            self._collect(0)

    def _collect(self, waiting_max: int) -> None:
        """Counts the first acknowledgements, until at most `waiting_max` receipts are left."""
        while len(self._receipts) > waiting_max:
            self._count_first()

    def collect_done(self) -> None:
        """Counts the acknowledgements that have arrived. It does not wait."""
        while self._receipts and self._receipts[0][1].done() and self._receipts[0][1].exception(0) is None:
            self._count_first()

    def _count_first(self) -> None:
        rows, receipt = self._receipts[0]
        while not receipt.done():
            wait([receipt], INTERRUPT_CHECK_S)
            self._check_interrupt()
        ack = receipt.result()
        self._receipts.pop(0)
        self.accepted += ack.accepted
        self.rejected += ack.rejected_count
        self.held += ack.held
        self.row = rows.first + len(rows)
        for reject in ack.rejects[: REJECTS_MAX - len(self._rejects)]:
            self._rejects.append((rows.first + reject.row, reject.reason, reject.text))

    def rejects(self) -> list[dict[str, Any]]:
        """The first rejected rows: number (from 1), place in the file, reason and text."""
        places = self.events().places([row for row, _, _ in self._rejects])
        return [
            {"row": row + 1, "place": place, "reason": reason, "text": text}
            for place, (row, reason, text) in zip(places, self._rejects, strict=True)
        ]

    def counts(self) -> dict[str, Any]:
        """The result, for `--json`."""
        return {
            "accepted": self.accepted,
            "rejected": self.rejected,
            "held": self.held,
            "rejects": self.rejects() if self._rejects else [],
            "skipped": self.skipped,
            "ids": self.ids,
            "producer": self._producer_id,
            "revision": self.revision,
        }


def _skip_applied(sender: Producer, batches: Batches, digest: Digest, separator: str) -> int:
    """Takes the rows that earlier runs have pushed, and returns their number.

    Raises EventFileError if the file does not begin with what they pushed.
    """
    last = sender.last_sequence
    if not sender.note:
        if last:
            raise EventFileError(
                f"producer {sender.producer_id} has sent {last} batches that are not from a file;"
                " name another one with --producer"
            )
        return 0
    try:
        mark = Mark.decode(sender.note)
    except ValueError as error:
        raise EventFileError(
            f"producer {sender.producer_id}: {error}; name another one with --producer"
        ) from None
    row = 0
    while row < mark.row and (rows := batches.take(min(mark.batch, mark.row - row))) is not None:
        digest.add(rows)
        row += len(rows)
    if row < mark.row or digest.value() != mark.digest:
        raise _changed(sender, mark.row)
    for sequence in range(mark.sequence, last + 1):
        size = mark.rows if sequence == mark.sequence else mark.batch
        rows = batches.take(size)
        if rows is None or len(rows) < size or not sender.has_applied(sequence, **rows.pushed(separator)):
            raise _changed(sender, row + size)
        digest.add(rows)
        row += size
    return row


def _changed(sender: Producer, rows: int) -> EventFileError:
    return EventFileError(
        f"its first {rows:,} rows are not those that producer {sender.producer_id} has sent. Either the file was"
        " changed, or the options that say how to read it (columns, --string-ids, --time-unit, --secret), or a new"
        " id turned a column of integers into strings. What was applied cannot be taken back: push corrections as"
        " new events. If this is another file that begins with the same event, send it with --producer NAME"
    )
