"""RPC in, RPC out: the handlers translate between messages and the engine, and map refusals to statuses. Nothing else.

Handlers take and return bytes (identity (de)serialisers): parsing happens here, so that malformed bytes are an
INVALID_ARGUMENT and not the transport's UNKNOWN. Whatever else escapes a handler is logged and reaches the peer as
UNAVAILABLE with a fixed text (guards.py).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from livefactor.v1 import models_pb2, scoring_pb2, snapshots_pb2, updates_pb2
from livefactor.wire.columns import ColumnError
from livefactor.wire.scoring import encode_score_response
from livefactor_kernels.spec.model import SpecError
from livefactor_kernels.spec.presets import DEFAULT_PRESET
from livefactor_server.changes import OpenProducerChange, Rejects
from livefactor_server.engine.submission import Ack, Submission
from livefactor_server.hosting.host import Hosting
from livefactor_server.model import spec_codec
from livefactor_server.rpc import decode, encode, guards
from livefactor_server.snapshots.store import SnapshotNotFound
from livefactor_server.statuses import Refused, invalid, late, not_found, precondition, unavailable

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.1
UNTAKEN_ANSWERS_MAX = 256
"""Batches of one stream whose answer the peer has not taken: past it the server stops reading the stream."""
ANSWERS_A_MESSAGE_MAX = 64
"""Answers that were ready together and share a message; with a hundred rejects each it still is far below the limit."""
SNAPSHOT_CALLS_MAX = 4
"""Snapshot and FetchSnapshot calls at once: each holds a thread for as long as the peer takes to read."""
_END, _DRAINED = object(), object()


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Limits of admission: they refuse calls and mean nothing for a model's state."""

    batch_events_max: int = 65_536
    streams_max: int = 32
    update_slots: int = 64
    score_slots: int = 16
    score_users_max: int = 1024
    score_rows_max: int = 1 << 18
    default_preset: str = DEFAULT_PRESET

    @property
    def threads(self) -> int:
        """Workers of the gRPC pool: a few more than all slots, so that health and administration always find one."""
        return self.streams_max + self.update_slots + self.score_slots + SNAPSHOT_CALLS_MAX + 8


class Services:
    """Handlers of all RPCs over one `Hosting`."""

    def __init__(self, hosting: Hosting, settings: ServiceSettings) -> None:
        self._hosting = hosting
        self._settings = settings
        self._updates = guards.Slots(settings.update_slots, "updates")
        self._streams = guards.Slots(settings.streams_max, "streams")
        self._scores = guards.Slots(settings.score_slots, "scores")
        self._snapshots = guards.Slots(SNAPSHOT_CALLS_MAX, "snapshots")
        # Calls parked on min_position may not take all the score slots.
        self._open_streams: set[queue.SimpleQueue[Any]] = set()
        self._lock = threading.Lock()
        self._draining = False
        self._parked = guards.Slots(max(1, settings.score_slots // 2), "scores waiting for min_position")

    def generic_handlers(self) -> list[grpc.GenericRpcHandler]:
        """One handler a service, for `grpc.Server.add_generic_rpc_handlers`."""
        unary = guards.unary

        def stream_out(
            handle: Callable[[bytes, grpc.ServicerContext], Iterator[bytes]],
        ) -> grpc.RpcMethodHandler[bytes, bytes]:
            return guards.stream_out(handle, self._snapshots)

        table = {
            updates_pb2.DESCRIPTOR.services_by_name["UpdateService"]: {
                "OpenProducer": unary(self.open_producer),
                "ApplyUpdates": unary(self.apply_updates),
                "StreamUpdates": grpc.stream_stream_rpc_method_handler(
                    guards.guard_stream(self.stream_updates)
                ),
            },
            scoring_pb2.DESCRIPTOR.services_by_name["ScoringService"]: {"Score": unary(self.score)},
            snapshots_pb2.DESCRIPTOR.services_by_name["SnapshotService"]: {
                "Snapshot": stream_out(self.snapshot),
                "ListSnapshots": unary(self.list_snapshots),
                "FetchSnapshot": stream_out(self.fetch_snapshot),
            },
            models_pb2.DESCRIPTOR.services_by_name["ModelService"]: {
                "CreateModel": unary(self.create_model),
                "DescribeModel": unary(self.describe_model),
                "ListModels": unary(self.list_models),
                "DeleteModel": unary(self.delete_model),
                "RestoreSnapshot": unary(self.restore_snapshot),
                "ReleaseHold": unary(self.release_hold),
            },
        }
        for service, methods in table.items():
            assert set(methods) == {method.name for method in service.methods}, service.full_name
        return [
            grpc.method_handlers_generic_handler(service.full_name, methods)
            for service, methods in table.items()
        ]

    # ------------------------------------------------------------------ updates

    def open_producer(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """OpenProducer."""
        request = guards.parse(updates_pb2.OpenProducerRequest, raw)
        producer = guards.producer_id(request.producer_id.encode())
        if not producer:
            raise invalid("producer_id: empty")
        engine = self._hosting.get(request.model).engine
        with self._updates:
            ack = self._wait(engine, context, OpenProducerChange(), b"", producer, 0, 0, Rejects())
        return updates_pb2.OpenProducerResponse(
            epoch=ack.epoch,
            last_sequence=ack.last_sequence,
            position=encode.position(engine.state.lineage, ack.revision),
        ).SerializeToString()

    def apply_updates(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """ApplyUpdates."""
        update = decode.update_request(raw)
        engine = self._hosting.get(update.model).engine
        with self._updates:
            change, rejects = decode.change_from_wire(
                update, engine.state.spec, self._settings.batch_events_max
            )
            ack = self._wait(
                engine,
                context,
                change,
                update.body,
                guards.producer_id(update.producer_id),
                update.epoch,
                update.sequence,
                rejects,
            )
        return encode.apply_response(engine.state.lineage, ack).SerializeToString()

    def _wait(
        self,
        engine: Any,
        context: grpc.ServicerContext,
        change: Any,
        body: bytes,
        producer: bytes,
        epoch: int,
        sequence: int,
        rejects: Rejects,
    ) -> Ack:
        replies: queue.SimpleQueue[Submission] = queue.SimpleQueue()
        engine.submit(
            Submission(change, body, producer, epoch, sequence, rejects, engine.log.commit, replies.put),
            wait=False,
        )
        try:
            result = replies.get(timeout=guards.remaining(context)).result
        except queue.Empty:
            raise late(
                "update: not acknowledged in time; its outcome is unknown, send the same sequence again"
            ) from None
        if isinstance(result, Refused):
            raise result
        assert result is not None
        return result

    def stream_updates(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """StreamUpdates: a pump of its own reads requests, since a handler blocked on the next request cannot send acks."""
        replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._streams, self._listed(replies):
            window = guards.Window(UNTAKEN_ANSWERS_MAX)
            context.add_callback(window.close)
            pump = threading.Thread(
                target=self._pump, args=(requests, replies, window), name="update-stream", daemon=True
            )
            pump.start()
            answered, expected = 0, None
            while answered != expected:
                ready = _ready(replies)
                if ready[-1][0] is _END:
                    expected = ready.pop()[1]
                drained = bool(ready) and ready[-1][0] is _DRAINED
                if drained:
                    ready.pop()
                if ready:
                    answered += len(ready)
                    yield _answers(ready)
                    window.give(len(ready))
                if drained:
                    raise unavailable("server: draining")

    @contextmanager
    def _listed(self, replies: queue.SimpleQueue[Any]) -> Iterator[None]:
        with self._lock:
            if self._draining:
                raise unavailable("server: draining")
            self._open_streams.add(replies)
        try:
            yield
        finally:
            with self._lock:
                self._open_streams.discard(replies)

    def end_streams(self) -> None:
        """End every update stream behind the answers that it has; for a drain, when all that was accepted is answered."""
        with self._lock:
            self._draining = True
            for replies in self._open_streams:
                replies.put((_DRAINED, 0))

    def _pump(
        self, requests: Iterator[bytes], replies: queue.SimpleQueue[Any], window: guards.Window
    ) -> None:
        index = 0
        try:
            for raw in requests:
                window.take()
                self._submit_from_stream(raw, index, replies)
                index += 1
        except grpc.RpcError:
            pass  # the peer went away; what was submitted goes on
        except Exception as error:
            if not guards.is_cancel(error):
                logger.exception("update stream")
        finally:
            replies.put((_END, index))

    def _submit_from_stream(self, raw: bytes, index: int, replies: queue.SimpleQueue[Any]) -> None:
        sequence = 0
        try:
            update = decode.update_request(raw)
            sequence = update.sequence
            engine = self._hosting.get(update.model).engine
            change, rejects = decode.change_from_wire(
                update, engine.state.spec, self._settings.batch_events_max
            )

            def reply(item: Submission, lineage: Any = engine.state.lineage) -> None:
                replies.put(
                    (item.tag, item.sequence, item.result, lineage)
                )  # not the item: it holds the payload

            engine.submit(
                Submission(
                    change,
                    update.body,
                    guards.producer_id(update.producer_id),
                    update.epoch,
                    sequence,
                    rejects,
                    engine.log.commit,
                    reply,
                    index,
                ),
                wait=True,
            )
        except (Refused, ColumnError) as error:
            replies.put((index, sequence, guards.refusal(error), None))
        except Exception:
            logger.exception("update stream")
            replies.put((index, sequence, unavailable("server: unexpected error"), None))

    # ------------------------------------------------------------------ scoring

    def score(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """Score."""
        started = time.perf_counter()
        query = decode.score_query(raw, self._settings.score_users_max, self._settings.score_rows_max)
        hosted = self._hosting.get(query.model)
        engine = hosted.engine
        with self._scores:
            if query.min_lineage is not None:
                self._await_position(engine, query.min_lineage, query.min_revision, context)
            answer = encode_score_response(hosted.reader.score(query))
        engine.metrics.observe_score(time.perf_counter() - started)
        return answer

    def _await_position(
        self, engine: Any, lineage: bytes, revision: int, context: grpc.ServicerContext
    ) -> None:
        if lineage and lineage != engine.state.lineage.bytes:
            raise precondition("min_position: of another lineage than the model's")
        if revision > engine.revision:
            with self._parked:
                context.add_callback(engine.wake)  # a peer that goes away leaves its slot to others
                if not engine.wait_for(revision, guards.remaining(context), context.is_active):
                    raise late(f"min_position: revision {revision} was not reached in time")

    # ------------------------------------------------------------------ snapshots

    def snapshot(self, raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Snapshot: progress while it is taken, then the manifest."""
        request = guards.parse(snapshots_pb2.SnapshotRequest, raw)
        hosted = self._hosting.get(request.model)
        if request.HasField("min_position"):
            self._await_position(
                hosted.engine, request.min_position.lineage, request.min_position.revision, context
            )
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def take() -> None:
            try:
                events.put(
                    hosted.keeper.take(lambda done, total, revision: events.put((done, total, revision)))
                )
            except BaseException as error:
                events.put(error)

        threading.Thread(target=take, name=f"snapshot-{hosted.name}", daemon=True).start()
        last = 0.0
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if not isinstance(event, tuple):
                break
            if time.monotonic() - last >= PROGRESS_INTERVAL_S:
                last = time.monotonic()
                yield encode.snapshot_progress(hosted.engine.state.lineage, *event)
        yield encode.snapshot_done(event)

    def list_snapshots(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """ListSnapshots."""
        request = guards.parse(snapshots_pb2.ListSnapshotsRequest, raw)
        infos = self._hosting.get(request.model).keeper.store.list()
        return snapshots_pb2.ListSnapshotsResponse(
            snapshots=[encode.snapshot_info(info) for info in infos]
        ).SerializeToString()

    def fetch_snapshot(self, raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """FetchSnapshot: the manifest first, then the files it lists, in chunks."""
        request = guards.parse(snapshots_pb2.FetchSnapshotRequest, raw)
        store = self._hosting.get(request.model).keeper.store
        try:
            for piece in store.pieces(request.snapshot_id):
                yield snapshots_pb2.FetchSnapshotResponse(
                    file_name=piece.file_name, offset=piece.offset, file_size=piece.file_size, data=piece.data
                ).SerializeToString()
        except SnapshotNotFound:
            raise not_found("snapshot: there is none such") from None

    # ------------------------------------------------------------------ models

    def create_model(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """CreateModel."""
        request = guards.parse(models_pb2.CreateModelRequest, raw)
        preset = request.preset or self._settings.default_preset or DEFAULT_PRESET
        try:
            spec = spec_codec.from_message(request.spec, preset)
        except SpecError as error:
            raise invalid(f"spec: {error}") from None
        hosted = self._hosting.create(request.model, spec)
        return models_pb2.CreateModelResponse(description=encode.description(hosted)).SerializeToString()

    def describe_model(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """DescribeModel."""
        request = guards.parse(models_pb2.DescribeModelRequest, raw)
        hosted = self._hosting.get(request.model)
        description = encode.description(hosted, request.with_root_hash)
        report = hosted.engine.observer.report()
        if report is not None:
            description.judgement.CopyFrom(encode.judgement(report))
        return models_pb2.DescribeModelResponse(description=description).SerializeToString()

    def list_models(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """ListModels."""
        guards.parse(models_pb2.ListModelsRequest, raw)
        return models_pb2.ListModelsResponse(
            models=[encode.description(hosted) for hosted in self._hosting.all()]
        ).SerializeToString()

    def delete_model(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """DeleteModel."""
        request = guards.parse(models_pb2.DeleteModelRequest, raw)
        if not request.model:
            raise invalid("model: a name is needed to delete")
        self._hosting.delete(request.model)
        return models_pb2.DeleteModelResponse().SerializeToString()

    def restore_snapshot(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """RestoreSnapshot."""
        request = guards.parse(models_pb2.RestoreSnapshotRequest, raw)
        hosted = self._hosting.restore(request.model, request.source_model, request.snapshot_id)
        return models_pb2.RestoreSnapshotResponse(description=encode.description(hosted)).SerializeToString()

    def release_hold(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """ReleaseHold."""
        hosted = self._hosting.get(guards.parse(models_pb2.ReleaseHoldRequest, raw).model)
        if not hosted.engine.observer.release():
            raise precondition("model: its updates are not on hold")
        return models_pb2.ReleaseHoldResponse(description=encode.description(hosted)).SerializeToString()


def _ready(replies: queue.SimpleQueue[Any]) -> list[Any]:
    """The replies of a stream that are there, at least one; `_END` and `_DRAINED` end the list."""
    ready = [replies.get()]
    while len(ready) < ANSWERS_A_MESSAGE_MAX and ready[-1][0] not in (_END, _DRAINED):
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
