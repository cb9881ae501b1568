"""Handlers of the UpdateService: batches one per call, or many on a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc

from livefactor.v1 import updates_pb2
from livefactor.wire import columns as wire
from livefactor.wire.columns import ColumnError
from livefactor.wire.limits import NOTE_BYTES_MAX, over
from livefactor_server.changes import NO_REJECTS, InteractionsChange, OpenProducerChange
from livefactor_server.engine.answering import outcomes
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.submission import Ack, Submission, Wake
from livefactor_server.rpc import decode, encode, guards
from livefactor_server.rpc.calls import Calls
from livefactor_server.rpc.direct.server import LATER, Later
from livefactor_server.rpc.guards import Call, Requests, Send
from livefactor_server.rpc.streaming.streams import Answer, OneAhead, Stream
from livefactor_server.statuses import NotLeader, Refused, busy, invalid, precondition, unavailable
from livefactor_server.telemetry import traces
from livefactor_server.telemetry.traces import Trace

INLINE_BYTES_MAX = 32 << 10
"""A batch up to this size is decoded by the loop itself. A larger one would block it too long."""

INLINE_INTERACTIONS_BYTES_MAX = 256 << 10
"""The same for a batch of interactions, whose columns the server reads without copies.

A thread costs more than it saves up to this size.
"""

TERM = "livefactor-term"
"""The metadata with the newest term that a client has seen."""

Reply = Callable[[Submission], Wake | None]

logger = logging.getLogger(__name__)


async def open_producer(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles OpenProducer."""
    request = guards.parse(updates_pb2.OpenProducerRequest, raw)
    producer = guards.producer_id(request.producer_id.encode())
    if not producer:
        raise invalid("producer_id: empty")
    if len(request.note) > NOTE_BYTES_MAX:
        raise invalid(over("note", NOTE_BYTES_MAX, len(request.note), "bytes"))
    engine = calls.model(call, request.model).engine
    call.producer = producer

    def batch(reply: Reply) -> Submission:
        return Submission(
            change=OpenProducerChange(request.note),
            received_body=request.note,
            producer=producer,
            epoch=0,
            sequence=0,
            rejects=NO_REJECTS,
            seal=engine.log.seal,
            reply=reply,
            is_late=call.is_late,
            confirmations=engine.confirmations,
        )

    async with calls.updates.slot(len(raw), engine.name):
        ack = await _applied(calls, engine, batch, is_large=False)
    call.revision = ack.revision
    opened = engine.state.producers.get(producer)
    return updates_pb2.OpenProducerResponse(
        epoch=ack.epoch,
        last_sequence=ack.last_sequence,
        note=b"" if opened is None else opened.note,
        position=encode.position(engine.state.lineage, ack.revision),
    ).SerializeToString()


def apply_at_once(calls: Calls, raw: bytes, call: Call, later: Later) -> bytes | None:
    """Handles ApplyUpdates in the thread of direct calls.

    That is possible if the batch is small and a slot is free.
    """
    update = decode.update_request(raw)
    engine = calls.model(call, update.model).engine
    if _is_large(engine, update, raw):
        return None
    call.producer = update.producer_id
    payer = _payer(call, update)
    engine.quotas.check(payer)
    if not calls.updates.take_at_once():
        return None
    lineage = engine.state.lineage

    def encoded(ack: Ack) -> bytes:
        call.revision = ack.revision
        return encode.apply_response(lineage, ack).SerializeToString()

    later.encode_with(encoded, calls.updates.give_back)
    batch = _batch(
        calls, engine, update, lambda item: later.reply(item.result), payer, call.trace, call.is_late
    )
    _reserve(engine, batch)
    later.gathering.add(engine, batch)
    return LATER


async def apply_updates(calls: Calls, raw: bytes, call: Call) -> bytes:
    """Handles ApplyUpdates in the loop."""
    update = decode.update_request(raw)
    engine = calls.model(call, update.model).engine
    call.producer = update.producer_id
    payer = _payer(call, update)
    engine.quotas.check(payer)
    async with calls.updates.slot(len(raw), engine.name):
        ack = await _applied(
            calls,
            engine,
            lambda reply: _batch(calls, engine, update, reply, payer, call.trace, call.is_late),
            is_large=_is_large(engine, update, raw),
        )
    call.revision = ack.revision
    return encode.apply_response(engine.state.lineage, ack).SerializeToString()


def _is_large(engine: Engine, update: decode.UpdateRequest, raw: bytes) -> bool:
    """Whether a thread decodes the batch. First vectors and factors wait for a switch."""
    is_quick = update.change == wire.INTERACTIONS
    if len(raw) > (INLINE_INTERACTIONS_BYTES_MAX if is_quick else INLINE_BYTES_MAX):
        return True
    return engine.dimension.lacks_part(update.change, update.body)


def _payer(call: Call, update: decode.UpdateRequest) -> bytes:
    """Whose quotas a batch takes from: those of the caller's grant, else those of the producer."""
    return call.caller.encode() or update.producer_id


def _batch(
    calls: Calls,
    engine: Engine,
    update: decode.UpdateRequest,
    reply: Reply,
    payer: bytes,
    trace: Trace | None,
    is_late: Callable[[], bool] | None = None,
) -> Submission:
    spec, rows_max = engine.state.spec, calls.settings.batch_events_max
    if update.change == wire.FACTORS and engine.state.backend_name == "cuda":
        raise precondition("factors: backend cuda lacks this part (docs/gpu.md)")
    if engine.dimension.lacks_part(update.change, update.body):
        decode.change_from_wire(update, engine.dimension.spec_for(update.change, update.body), rows_max)
        engine.dimension.recognise(update.change, update.body)
        spec = engine.state.spec
    change, rejects = decode.change_from_wire(update, spec, rows_max)
    engine.quotas.take(payer, change.rows + rejects.count)
    claim = None
    if isinstance(change, InteractionsChange) and change.columns.score_ids is not None:
        lineage = engine.state.lineage.bytes
        change, claim = outcomes.join(change, calls.served, engine.name, lineage, spec, update.body)
    return Submission(
        change=change,
        received_body=update.body,
        producer=guards.producer_id(update.producer_id),
        epoch=update.epoch,
        sequence=update.sequence,
        rejects=rejects,
        seal=engine.log.seal,
        reply=reply,
        spec=spec,
        is_late=is_late,
        payer=payer,
        claim=claim,
        confirmations=engine.confirmations,
        trace=trace,
        ends_trace=is_late is None,
    )


async def _applied(calls: Calls, engine: Engine, batch: Callable[[Reply], Submission], is_large: bool) -> Ack:
    """Submits a batch and waits for its result.

    Raises:
        Refused: the batch was not applied.
    """
    done: asyncio.Future[Ack | Refused] = asyncio.get_running_loop().create_future()

    def finish(result: Ack | Refused) -> None:
        # The caller may have left. A batch that is in the log is applied nevertheless.
        if not done.done():
            done.set_result(result)

    def reply(item: Submission) -> Wake:
        assert item.result is not None
        calls.loop.prepare(finish, item.result)
        return calls.loop.wake

    def submit() -> None:
        # A thread that reserves room queues the batch, too. The caller may leave in between.
        item = batch(reply)
        _reserve(engine, item)
        engine.enqueue([item])

    if is_large:
        await calls.updates.in_thread(submit)
    else:
        submit()
    result = await done
    if isinstance(result, Refused):
        raise result
    return result


def _reserve(engine: Engine, batch: Submission) -> None:
    if not engine.reserve(batch):
        raise busy(
            "queue: the batches that wait for the model's log have its limit in bytes; try again later"
        )


async def stream_updates(calls: Calls, requests: Requests, send: Send, call: Call) -> None:
    """Handles StreamUpdates. One task reads the batches, one submits them, and this one sends the
    answers.
    """
    with calls.streams.opened() as stream:
        ahead = OneAhead()
        tasks = [
            asyncio.create_task(_read(requests, stream, ahead)),
            asyncio.create_task(_submit_all(calls, stream, ahead, call)),
        ]
        try:
            while ready := await stream.ready():
                await send(_message(ready))
                stream.sent(len(ready))
        finally:
            for task in tasks:
                task.cancel()


async def _read(requests: Requests, stream: Stream, ahead: OneAhead) -> None:
    try:
        while (raw := await requests.next_of_many()) is not None:
            await stream.begin_batch()
            await ahead.put(raw)
            # Beside the message that arrives next, only the other task keeps this one.
            del raw
    except grpc.aio.BaseError:
        # The peer disconnected. Submitted batches continue.
        pass
    except Exception:
        logger.exception("update stream")
        stream.put(unavailable("server: unexpected error"))
    await ahead.put(None)


async def _submit_all(calls: Calls, stream: Stream, ahead: OneAhead, call: Call) -> None:
    index, seen = 0, _seen_term(call)
    while (raw := await ahead.take()) is not None:
        await _submit_from_stream(calls, raw, index, stream, call, seen)
        index += 1
        ahead.done()
    stream.put(None)


def _seen_term(call: Call) -> int:
    """The newest term that the client has seen."""
    for name, value in call.metadata or ():
        if name == TERM and isinstance(value, str) and value.isascii() and value.isdigit():
            return int(value[:20])
    return 0


async def _submit_from_stream(
    calls: Calls, raw: bytes, index: int, stream: Stream, call: Call, seen: int
) -> None:
    sequence = 0
    try:
        guards.check_size(raw)
        raw, parent = traces.cut(raw)
        update = decode.update_request(raw)
        sequence = update.sequence
        hosted = calls.model(call, update.model)
        engine, term = hosted.engine, hosted.term
        if seen > term:
            raise NotLeader(f"another server, in term {seen},")
        call.producer = update.producer_id
        lineage, payer = engine.state.lineage, _payer(call, update)
        while wait_s := engine.quotas.wait_s(payer):
            await asyncio.sleep(wait_s)
        trace = traces.begin(call.rpc, parent or call.metadata, is_batch=parent is None)

        def reply(item: Submission) -> Wake:
            # Only the answer: a batch in the queue would keep its payload in memory until the peer
            # reads the answer.
            assert item.result is not None
            stream.prepare(Answer(index, item.sequence, item.result, lineage, term))
            return calls.loop.wake

        if _is_large(engine, update, raw):
            await calls.stream_threads.in_thread(
                lambda: engine.submit(_batch(calls, engine, update, reply, payer, trace))
            )
        else:
            batch = _batch(calls, engine, update, reply, payer, trace)
            if engine.reserve(batch):
                engine.enqueue([batch])
            else:
                await calls.stream_threads.in_thread(engine.submit, batch)
    except NotLeader as error:
        stream.put(error)
    except (Refused, ColumnError) as error:
        stream.put(Answer(index, sequence, guards.refusal(error), None))
    except Exception:
        logger.exception("update stream")
        stream.put(Answer(index, sequence, unavailable("server: unexpected error"), None))


def _message(answers: list[Answer]) -> bytes:
    message = updates_pb2.StreamUpdatesResponse(term=max(answer.term for answer in answers))
    for answer in answers:
        encode.add_stream_answer(message, answer.index, answer.sequence, answer.result, answer.lineage)
    return message.SerializeToString()
