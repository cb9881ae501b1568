"""Handlers of the UpdateService: batches one per call, or many on a stream."""

from __future__ import annotations

import logging
import queue
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import grpc

from livefactor.v1 import updates_pb2
from livefactor.wire.columns import ColumnError
from livefactor.wire.limits import NOTE_BYTES_MAX, over
from livefactor_server.changes import NO_REJECTS, OpenProducerChange
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.submission import Ack, Submission
from livefactor_server.rpc import decode, encode, guards
from livefactor_server.rpc.calls import DRAINED, Calls
from livefactor_server.statuses import Refused, invalid, late, unavailable

logger = logging.getLogger(__name__)

UNTAKEN_ANSWERS_MAX = 256
"""Maximum number of batches of a stream whose answers the peer has not read.

At this number the server stops reading the stream.
"""
ANSWERS_A_MESSAGE_MAX = 64
"""Maximum number of answers per message of a stream.

With a hundred rejects each, such a message is far below the size limit.
"""
_END = object()


def open_producer(calls: Calls, raw: bytes, context: grpc.ServicerContext) -> bytes:
    """Handles OpenProducer."""
    request = guards.parse(updates_pb2.OpenProducerRequest, raw)
    producer = guards.producer_id(request.producer_id.encode())
    if not producer:
        raise invalid("producer_id: empty")
    if len(request.note) > NOTE_BYTES_MAX:
        raise invalid(over("note", NOTE_BYTES_MAX, len(request.note), "bytes"))
    engine = calls.hosting.get(request.model).engine
    replies: queue.SimpleQueue[Submission] = queue.SimpleQueue()
    batch = Submission(
        change=OpenProducerChange(request.note),
        received_body=request.note,
        producer=producer,
        epoch=0,
        sequence=0,
        rejects=NO_REJECTS,
        seal=engine.log.seal,
        reply=replies.put,
    )
    ack = _submit_and_wait(engine, batch, replies, context)
    opened = engine.state.producers.get(producer)
    return updates_pb2.OpenProducerResponse(
        epoch=ack.epoch,
        last_sequence=ack.last_sequence,
        note=b"" if opened is None else opened.note,
        position=encode.position(engine.state.lineage, ack.revision),
    ).SerializeToString()


def apply_updates(calls: Calls, raw: bytes, context: grpc.ServicerContext) -> bytes:
    """Handles ApplyUpdates."""
    update = decode.update_request(raw)
    engine = calls.hosting.get(update.model).engine
    replies: queue.SimpleQueue[Submission] = queue.SimpleQueue()
    batch = _batch(calls, engine, update, replies.put)
    ack = _submit_and_wait(engine, batch, replies, context)
    return encode.apply_response(engine.state.lineage, ack).SerializeToString()


def _batch(
    calls: Calls, engine: Engine, update: decode.UpdateRequest, reply: Any, tag: int = 0
) -> Submission:
    change, rejects = decode.change_from_wire(update, engine.state.spec, calls.settings.batch_events_max)
    return Submission(
        change=change,
        received_body=update.body,
        producer=guards.producer_id(update.producer_id),
        epoch=update.epoch,
        sequence=update.sequence,
        rejects=rejects,
        seal=engine.log.seal,
        reply=reply,
        tag=tag,
    )


def _submit_and_wait(
    engine: Engine,
    batch: Submission,
    replies: queue.SimpleQueue[Submission],
    context: grpc.ServicerContext,
) -> Ack:
    engine.submit(batch, wait=False)
    try:
        result = replies.get(timeout=guards.remaining(context)).result
    except queue.Empty:
        raise late(
            "update: no acknowledgement before the deadline; the outcome is unknown; "
            "send the same sequence again"
        ) from None
    if isinstance(result, Refused):
        raise result
    assert result is not None
    return result


def stream_updates(calls: Calls, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """Handles StreamUpdates.

    A thread per stream reads the requests, because a handler that waits for the next request cannot
    send answers.
    """
    replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with calls.open_stream(replies):
        window = guards.Window(UNTAKEN_ANSWERS_MAX)
        context.add_callback(window.close)
        pump = threading.Thread(
            target=_pump, args=(calls, requests, replies, window), name="update-stream", daemon=True
        )
        pump.start()
        answered, expected = 0, None
        while answered != expected:
            ready = _ready(replies)
            if ready[-1][0] is _END:
                expected = ready.pop()[1]
            drained = bool(ready) and ready[-1][0] is DRAINED
            if drained:
                ready.pop()
            if ready:
                answered += len(ready)
                yield _answers(ready)
                window.give(len(ready))
            if drained:
                raise unavailable("server: draining")


def _pump(
    calls: Calls, requests: Iterator[bytes], replies: queue.SimpleQueue[Any], window: guards.Window
) -> None:
    index = 0
    try:
        for raw in requests:
            window.take()
            _submit_from_stream(calls, raw, index, replies)
            index += 1
    except grpc.RpcError:
        # The peer disconnected. Submitted batches continue.
        pass
    except Exception as error:
        if not guards.is_cancel(error):
            logger.exception("update stream")
    finally:
        replies.put((_END, index))


def _submit_from_stream(calls: Calls, raw: bytes, index: int, replies: queue.SimpleQueue[Any]) -> None:
    sequence = 0
    try:
        update = decode.update_request(raw)
        sequence = update.sequence
        engine = calls.hosting.get(update.model).engine

        def reply(item: Submission, lineage: uuid.UUID = engine.state.lineage) -> None:
            # Only the answer: a batch in the queue would keep its payload in memory until the peer
            # reads the answer.
            replies.put((item.tag, item.sequence, item.result, lineage))

        engine.submit(_batch(calls, engine, update, reply, index), wait=True)
    except (Refused, ColumnError) as error:
        replies.put((index, sequence, guards.refusal(error), None))
    except Exception:
        logger.exception("update stream")
        replies.put((index, sequence, unavailable("server: unexpected error"), None))


def _ready(replies: queue.SimpleQueue[Any]) -> list[Any]:
    """The available replies of a stream, at least one. `_END` and `DRAINED` end the list."""
    ready = [replies.get()]
    while len(ready) < ANSWERS_A_MESSAGE_MAX and ready[-1][0] not in (_END, DRAINED):
        try:
            ready.append(replies.get_nowait())
        except queue.Empty:
            break
    return ready


def _answers(replies: list[Any]) -> bytes:
    message = updates_pb2.StreamUpdatesResponse()
    for reply in replies:
        encode.add_stream_answer(message, *reply)
    return message.SerializeToString()
