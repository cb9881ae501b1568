"""Pushing events: `Producer` gathers rows into batches, none of which is applied twice.

`push` runs in the caller's thread: it converts and copies rows, makes messages and waits for room.
sending.py and delivery.py send the messages and handle the answers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from livefactor.calling.blocking import blocking
from livefactor.calling.plans import Plan, Work
from livefactor.channel import DEADLINE_S
from livefactor.errors import AlreadyExists, ColumnError, LivefactorError
from livefactor.position import Position
from livefactor.pushing.base import ProducerBase
from livefactor.pushing.batching import Receipt
from livefactor.pushing.delivery import WINDOW_BATCHES
from livefactor.pushing.deltas import delta_body, map_sums_body
from livefactor.pushing.embeddings import as_factors, as_vectors, embedding_bodies, factor_bodies
from livefactor.pushing.features import context_bodies, feature_bodies, interactions_body, shown_by
from livefactor.pushing.labels import FEATURE_SIDES, ITEMS, SIDES, USERS, label_cuts, read_ids
from livefactor.pushing.rows import row_columns
from livefactor.pushing.sending import OPEN_DEADLINE_S
from livefactor.wire.bags import as_bags, as_shared_bags
from livefactor.wire.columns import (
    AVAILABILITY,
    DROPPED_FEATURES,
    EMBEDDINGS,
    FACTOR_DELTAS,
    FACTORS,
    FEATURES,
    INTERACTIONS,
    LABELS,
    MAP_SUMS,
    Stamp,
    encode_apply,
    encode_availability,
    encode_dropped_features,
    encode_labels,
)
from livefactor.wire.ids import Ids, as_keys
from livefactor.wire.limits import NOTE_BYTES_MAX, check_most

CLOSE_AFTER_ERROR_S = 5.0
"""How long leaving a `with` block by an error waits for what was pushed before it, seconds."""

_APPLY = "/livefactor.v1.UpdateService/ApplyUpdates"

log = logging.getLogger("livefactor")


class Producer(ProducerBase):
    """Sends rows to one model.

    No row is applied twice. The rows of a thread are applied in the order of its pushes, and a row
    whose push was acknowledged was applied, unless it is among the rejected ones. target:
    "host:port" or "unix:/path", or several of them (`Scorer`), or a channel. producer_id: 1..64
    bytes of UTF-8; who opens the same id later takes over, and this producer raises ProducerFenced.
    model: the model's name. batch: when a batch is sent. buffer_events_max: at most so many rows
    are unacknowledged, not counting the batch that is being filled; a larger push waits until
    everything before it is acknowledged. timeout: how long a push waits for room, seconds, None for
    ever. open_timeout: how long the constructor waits for a server that is starting or draining,
    seconds. connect_s: how long it waits for a server that cannot be reached, seconds.

    secret: the key that string ids are hashed with (keys.py). labels: send the text of each string
    id to the server once, so that answers give it back; a `secret` switches this off. A text may be
    sent again by another producer, and the server keeps the last label of an id: pass False where
    `push_labels` gives string ids other names. Integers, and ids of more than 1,024 bytes, have no
    label.

    on_reject(rejects): called with the rejected rows of a push; without it they are logged as a
    warning. on_wait(status): called whenever the producer has to wait, before each further try.
    Both are called on the background thread and must not push or flush. access: TLS and token; None
    takes them from the environment. channel: the transport, if
    the caller has one (made by `open_channel`).

    Raises Unavailable, NotFound, InvalidArgument or ResourceExhausted if the producer cannot be
    opened. In a forked child every method but `close` raises ForkError. Use it as a context manager
    or call `close`, because rows that are still buffered when the process ends are lost. Whether
    rows that were sent and not acknowledged were applied is then unknown.
    """

    def _begin(self) -> None:
        self._connection = self._opens_with
        self._open()

    @blocking
    def push(
        self,
        user_ids: Ids,
        item_ids: Ids,
        values: Any = None,
        weights: Any = None,
        event_types: Any = None,
        times: Any = None,
        *,
        context: Any = None,
        score_ids: Any = None,
        timeout: float | None = None,
    ) -> Plan[Receipt]:
        """Take n interactions, in the order in which they happened, and return a future of their
        Ack.

        user_ids, item_ids: integers 0..2**64-1 or strings, as a list, NumPy array, pandas Series or
        Arrow array (or one id). The ids of a column are all integers or all strings (wire/ids.py).
        values, weights: numbers. event_types: 0..2**32-1. times: datetimes, datetime64, strings in
        ISO 8601, or whole seconds since 1970 UTC, in the years 1990..2099; 0 stands for an unknown
        time (wire/times.py). One value stands for all rows; None stands for the contract's default.
        The arrays may be changed after the call. context: what was known at the moment of each
        event, such as the hour, the device or the words of a query: n bags as in `push_features`,
        or one for all events. The model's spec has context (`Models.create("shop",
        context={"size": 65536})`). Rows with context go out at once, in batches of their own.
        score_ids: the calls that showed the items (`Answers.score_ids`), one or n, 0 for none. An
        event gets the context of its call, and each outcome of a call is learned once. Rows with
        them go out at once, too.
        timeout: overrides the producer's.

        Raises ColumnError or BufferFull, and takes no row of the push then. Raises ProducerClosed,
        or the error that ended this producer (such as ProducerFenced).
        """
        readers = {side: labels.reader() for side, labels in self._labels.items()}
        rows = row_columns(
            user_ids,
            item_ids,
            values,
            weights,
            event_types,
            times,
            readers.get(USERS, self._hash),
            readers.get(ITEMS, self._hash),
        )
        n, sender, deadline = len(rows.user_ids), self._sender, None
        if context is not None or score_ids is not None:
            bags = None if context is None else as_shared_bags(context, n, "context", "user_ids")
            shown = shown_by(score_ids, n)
            bodies = context_bodies(rows, bags, shown, self.batch)
            return (
                yield from self._taken_bodies(
                    INTERACTIONS, bodies, timeout, partial(self._take_labels, readers)
                )
            )
        while True:
            with sender.lock:
                if sender.reserve(n):
                    return self._pushed(rows, readers)
            deadline = yield from self._room(n, timeout, deadline)

    @blocking
    def push_labels(
        self, side: str, ids: Ids, labels: Sequence[str], *, timeout: float | None = None
    ) -> Plan[Receipt]:
        """Label ids of a side ("user" or "item"), after all rows pushed before.

        An empty label removes one. labels: one str for each id, at most 1,024 bytes of UTF-8.
        Raises the errors of `push`, and ValueError for another side.
        """
        if side not in SIDES:
            raise ValueError(f"side: expected 'user' or 'item', got {side!r}")
        reader = self._labels[side].reader() if side in self._labels else None
        keys = as_keys("ids", ids, reader or self._hash)
        texts = [labels] if isinstance(labels, str) else list(labels)
        if len(texts) != len(keys):
            raise ColumnError(f"labels has {len(texts)} rows, expected {len(keys)} (ids)")
        bodies = [
            (stop - start, encode_labels(SIDES[side], keys[start:stop], texts[start:stop]))
            for start, stop in label_cuts(texts, self.batch)
        ]
        taken = None if reader is None else partial(self._labels[side].leave_out, reader)
        return (yield from self._taken_bodies(LABELS, bodies, timeout, taken))

    @blocking
    def set_available(self, item_ids: Ids, available: bool, *, timeout: float | None = None) -> Plan[Receipt]:
        """Mark items as available or not, after all rows pushed before.

        Raises the errors of `push`. Top-k lists leave unavailable items out.
        """
        keys = as_keys("item_ids", item_ids, self._hash)
        rows_max = self.batch.rows_max(keys.itemsize)
        parts = (keys[start : start + rows_max] for start in range(0, len(keys), rows_max))
        bodies = [(len(part), encode_availability(part, available)) for part in parts]
        return (yield from self._taken_bodies(AVAILABILITY, bodies, timeout))

    @blocking
    def push_embeddings(
        self, ids: Ids, vectors: Any, *, side: str = ITEMS, encoder_hash: bytes = b"",
        timeout: float | None = None,
    ) -> Plan[Receipt]:  # fmt: skip
        """Give items, or users with side "user", their vectors, after all rows pushed before.

        ids: n ids, as in `push`; they need no events yet. vectors: numbers [n, dimension], such as
        embeddings of the items' descriptions; they are sent as float16. A vector replaces the
        earlier one, and a vector of zeros removes it. The model's spec has the dimension
        (`Models.create("shop", embeddings={"dimension": 384})`). encoder_hash:
        the SHA-256 hash of what made the vectors, 32 bytes; it stays in the log. Raises the errors
        of `push`. The receipt raises InvalidArgument if the model has no embeddings or
        another dimension.
        """
        keys, taken = read_ids(self._labels, side, ids, self._hash)
        bodies = embedding_bodies(SIDES[side], keys, as_vectors(vectors, len(keys)), self.batch, encoder_hash)
        return (yield from self._taken_bodies(EMBEDDINGS, bodies, timeout, taken))

    @blocking
    def push_features(
        self, side: str, ids: Ids, features: Any, *, timeout: float | None = None
    ) -> Plan[Receipt]:
        """Give ids of a side ("user" or "item") their features, after all rows pushed before.

        ids: n ids, as in `push`; they need no events yet. features: for each id a dict of names and
        weights, or a list of names such as "brand:acme"; or columns of n values, as a DataFrame or
        a dict: a number is the weight of the column's feature, and a text t of column c is the
        feature "c:t" (`wire.bags`). They replace the id's features, and no features remove
        them. The model's spec has features (`Models.create("shop", features={"size": 65536})`).
        Raises the errors of `push_labels`, and ColumnError for a bad feature. The receipt raises
        InvalidArgument if the model has no features, or an id has more than `per_id` of the spec.
        """
        keys, taken = read_ids(self._labels, side, ids, self._hash)
        bodies = feature_bodies(SIDES[side], keys, as_bags(features, len(keys)), self.batch)
        return (yield from self._taken_bodies(FEATURES, bodies, timeout, taken))

    @blocking
    def push_factors(
        self, side: str, ids: Ids, factors: Any, biases: Any = None, *, timeout: float | None = None
    ) -> Plan[Receipt]:
        """Let users or items begin with the factors of another model, after all rows pushed before.

        side: "user" or "item". ids: n different ids, as in `push`. factors: numbers [n, d], d at
        most k of the model. biases: n numbers. Push both sides before the first event
        (docs/guides/warm_start.md). Raises the errors of `push`. The receipt raises InvalidArgument
        if the model cannot take these factors.
        """
        keys, taken = read_ids(self._labels, side, ids, self._hash)
        bodies = factor_bodies(SIDES[side], keys, *as_factors(factors, biases, len(keys)), self.batch)
        return (yield from self._taken_bodies(FACTORS, bodies, timeout, taken))

    @blocking
    def push_deltas(
        self,
        side: str,
        ids: Ids,
        deltas: Any,
        biases: Any = None,
        *,
        weight: float = 1.0,
        timeout: float | None = None,
    ) -> Plan[Receipt]:
        """Add what someone else learned to rows, as one contribution, after all rows pushed before.

        side: "user" or "item". ids: n different ids, as in `push`. deltas: numbers [n, k]. biases:
        n numbers. The model scales them by `weight` and by its spec (docs/privacy.md). Raises the
        errors of `push`. The receipt raises InvalidArgument if the model cannot take them.
        """
        keys, taken = read_ids(self._labels, side, ids, self._hash)
        body = delta_body(SIDES[side], keys, deltas, biases, weight)
        return (yield from self._taken_bodies(FACTOR_DELTAS, [body], timeout, taken))

    @blocking
    def push_map_sums(
        self, gram: Any, rows: Any, *, weight: float = 1.0, timeout: float | None = None
    ) -> Plan[Receipt]:
        """Add sums over users elsewhere to those of the map of user vectors, after all rows pushed
        before.

        gram: numbers [d + 1, d + 1], the sum of e e' over users, where e is the vector of a user
        and a 1. rows: numbers [d + 1, k], the sum of e y', where y is the row of a user
        (`livefactor.federated.map_sums`). The model scales them by `weight` and by its spec
        (docs/privacy.md). Raises the errors of `push`. The receipt raises InvalidArgument if the
        model cannot take them.
        """
        body = map_sums_body(gram, rows, weight)
        return (yield from self._taken_bodies(MAP_SUMS, [body], timeout))

    @blocking
    def drop_features(
        self, side: str, names: str | Sequence[str], *, timeout: float | None = None
    ) -> Plan[Receipt]:
        """Take features out of all ids of a side ("user" or "item"), after all rows pushed before.

        With side "context" the model forgets features of context instead, until an event has them
        again. names: of one feature or several; one that does not exist does nothing. Their places
        are free for further features. Raises the errors of `push_labels`.
        """
        if side not in FEATURE_SIDES:
            raise ValueError(f"side: expected 'user', 'item' or 'context', got {side!r}")
        texts = [names] if isinstance(names, str) else list(names)
        bodies = []
        for start, stop in label_cuts(texts, self.batch):
            bodies.append((stop - start, encode_dropped_features(FEATURE_SIDES[side], texts[start:stop])))
        return (yield from self._taken_bodies(DROPPED_FEATURES, bodies, timeout))

    @blocking
    def flush(self, timeout: float | None = None) -> Plan[Position]:
        """Send all buffered rows, wait until the server has acknowledged them, and return the last
        position.

        timeout: seconds; None waits for ever. Raises FlushTimeout if an ack is missing then; the
        producer goes on delivering. Raises the error of a batch that was refused since the last
        flush, if no receipt has raised it. Raises the error that ended this producer.
        """
        return (yield from self._flushed(timeout))

    @blocking
    def keep(self, note: bytes, *, timeout: float = OPEN_DEADLINE_S) -> Plan[None]:
        """Have the model keep `note` with this producer, after all rows pushed before.

        A later producer of the same id finds it as `note`. note: 1..256 bytes. timeout: seconds,
        for the rows and then for the note. Raises ValueError for an empty one, InvalidArgument for
        a longer one, and the errors of `flush` and of the constructor.
        """
        if not note:
            raise ValueError("note: expected at least 1 byte")
        check_most("note", NOTE_BYTES_MAX, len(note), "bytes")
        yield from self._flushed(timeout)
        yield Work(partial(self._sender.keep, note, timeout))

    @blocking
    def has_applied(
        self,
        sequence: int,
        user_ids: Ids,
        item_ids: Ids,
        values: Any = None,
        weights: Any = None,
        event_types: Any = None,
        times: Any = None,
        *,
        context: Any = None,
        score_ids: Any = None,
        timeout: float = DEADLINE_S,
    ) -> Plan[bool]:
        """Whether the batch `sequence` had exactly these rows, which are given as in `push`.

        It asks the server and changes nothing. sequence: one of the last 64 that were acknowledged.
        timeout: seconds.
        Raises ValueError for another one, and ColumnError, Unavailable, ProducerFenced and other
        errors of errors.py.
        """
        delivery = self._sender.delivery
        if not max(0, delivery.last_acked - WINDOW_BATCHES) < sequence <= delivery.last_acked:
            last = f"of the last {WINDOW_BATCHES} up to {delivery.last_acked}"
            raise ValueError(f"sequence: expected one {last}, got {sequence}")
        rows = row_columns(user_ids, item_ids, values, weights, event_types, times, self._hash, self._hash)
        stamp = Stamp(self.producer_id, delivery.epoch, sequence)
        bags = None
        if context is not None:
            bags = as_shared_bags(context, len(rows.user_ids), "context", "user_ids")
        shown = shown_by(score_ids, len(rows.user_ids))
        request = encode_apply(self.model, stamp, INTERACTIONS, interactions_body(rows, bags, shown))
        doing = f"producer {self.producer_id!r}: batch {sequence}"
        try:
            # Sending an applied batch again is a read.
            yield from self._connection.unary(_APPLY, request, timeout, doing, timeout)
        except AlreadyExists:
            return False
        return True

    @blocking
    def close(self, timeout: float | None = 30.0) -> Plan[None]:
        """Flush and close. Raises the errors of `flush`, and closes the producer even then.

        Rows that were not sent by then are lost. Whether the rows that were sent and not
        acknowledged are applied is unknown. In a forked child it does nothing: the rows belong to
        the process that made the producer.
        """
        return self._closed(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        # The rows pushed before the caller's error are still delivered if that is possible. A
        # second error here must not hide the caller's.
        try:
            self.close(timeout=CLOSE_AFTER_ERROR_S)
        except LivefactorError as second:
            log.warning("producer %s: closed after an error: %s", self.producer_id, second)
