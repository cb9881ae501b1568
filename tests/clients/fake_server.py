"""A small server with the contract's exactly-once rules, and with faults that a test orders.

It lets tests check the client alone. The handler's thread applies batches one after the other.
`applied` holds the rows in the order in which they took effect. `script` holds one fault for each
coming request (see `Fault`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import grpc

from livefactor.v1 import updates_pb2
from livefactor.wire.columns import (
    AVAILABILITY,
    INTERACTIONS,
    UpdateRequest,
    decode_apply,
    decode_availability,
    decode_interactions,
    decode_labels,
)

LINEAGE = bytes(range(16))
RING = 64
Answer = updates_pb2.ApplyUpdatesResponse


class Fault(Enum):
    """The fate of one request of the stream."""

    # The stream ends before the server applies the batch.
    DROP_BEFORE = auto()
    # The server applies the batch, and the stream ends before the ack.
    DROP_AFTER = auto()
    # The server answers RESOURCE_EXHAUSTED and applies nothing.
    EXHAUSTED = auto()
    # The server applies the batch and answers UNAVAILABLE.
    UNKNOWN_APPLIED = auto()
    # The server sends the ack twice.
    TWICE = auto()
    NONE = auto()


class Refusal(Exception):
    """An answer with a status for one batch."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass
class ProducerState:
    epoch: int = 0
    last: int = 0
    ring: dict[int, tuple[bytes, Answer]] = field(default_factory=dict)
    note: bytes = b""


class FakeServer:
    """A server on a Unix-domain socket in `folder`, and on the free TCP port `port`.

    `stop` and `start` keep the state, like the restart of a durable server.
    """

    def __init__(self, folder: Path) -> None:
        self.target = f"unix:{folder / 'fake.sock'}"
        self.producers: dict[str, ProducerState] = {}
        self.applied: list[tuple[int, int]] = []
        self.changes: list[tuple[str, Any]] = []
        self.revision = 0
        self.batch_rows: list[int] = []
        self.refuse_users: set[int] = set()
        self.reject_users: set[int] = set()
        self.script: deque[Fault] = deque()
        self.open_status: deque[grpc.StatusCode] = deque()
        self.streams = 0
        self.requests = 0
        # Requests wait for this before the server judges them.
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Condition()
        self.unary: dict[str, Callable[[bytes, Any], Any]] = {}
        self._server: grpc.Server | None = None
        self.port = 0
        self.lock = threading.Lock()

    def serve(self, path: str, handler: Callable[[bytes, Any], Any]) -> None:
        """Answer a further method with bytes. handler: a unary function, or a generator for a
        stream.
        """
        self.unary[path] = handler

    def start(self) -> FakeServer:
        self._server = grpc.server(ThreadPoolExecutor(16))
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self._server.add_insecure_port(self.target)
        self.port = self._server.add_insecure_port("0.0.0.0:0")
        self._server.start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self.gate.set()
            self._server.stop(0).wait()
            self._server = None

    def await_requests(self, count: int) -> None:
        """Wait until `count` batches have arrived since the start."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.requests >= count, 20.0), (
                f"{self.requests} of {count} came"
            )

    # These are the rules of the contract.

    def open_producer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        with self.lock:
            if self.open_status:
                context.abort(self.open_status.popleft(), "as ordered")
            request = updates_pb2.OpenProducerRequest.FromString(data)
            state = self.producers.setdefault(request.producer_id, ProducerState())
            state.epoch += 1
            state.note = request.note or state.note
            response = updates_pb2.OpenProducerResponse(
                epoch=state.epoch, last_sequence=state.last, note=state.note
            )
            response.position.lineage, response.position.revision = LINEAGE, self.revision
            return response.SerializeToString()

    def stream_updates(self, requests: Iterable[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.streams += 1
        for index, data in enumerate(requests):
            with self.arrived:
                self.requests += 1
                self.arrived.notify_all()
            self.gate.wait()
            request = decode_apply(data)
            fault = self.script.popleft() if self.script else Fault.NONE
            if fault is Fault.DROP_BEFORE:
                context.abort(grpc.StatusCode.UNAVAILABLE, "as ordered")
            message = updates_pb2.StreamUpdatesResponse()
            answer = message.answers.add(index=index, sequence=request.stamp.sequence)
            try:
                if fault is Fault.EXHAUSTED:
                    raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full, as ordered")
                answer.response.CopyFrom(self.apply(request))
                if fault is Fault.DROP_AFTER:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "as ordered")
                if fault is Fault.UNKNOWN_APPLIED:
                    raise Refusal(grpc.StatusCode.UNAVAILABLE, "draining, as ordered")
            except Refusal as refusal:
                answer.status.code, answer.status.message = refusal.code.value[0], refusal.text
            if fault is Fault.TWICE:
                message.answers.add().CopyFrom(answer)
            yield message.SerializeToString()

    def apply(self, request: UpdateRequest) -> Answer:
        with self.lock:
            producer, epoch, sequence = request.stamp
            if not producer:
                return self.take(request)
            state = self.producers.get(producer)
            if state is None or state.epoch != epoch:
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"epoch {epoch} of {producer!r} is fenced")
            if sequence <= state.last:
                return self._repeated(state, sequence, request.body)
            if sequence != state.last + 1:
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"gap: expected sequence {state.last + 1}")
            answer = self.take(request)
            state.last = sequence
            state.ring[sequence] = (request.body, answer)
            state.ring.pop(sequence - RING, None)
            return answer

    def _repeated(self, state: ProducerState, sequence: int, body: bytes) -> Answer:
        if sequence not in state.ring:
            return Answer(position=updates_pb2.Position(lineage=LINEAGE, revision=0), duplicate=True)
        first, answer = state.ring[sequence]
        if first != body:
            raise Refusal(grpc.StatusCode.ALREADY_EXISTS, f"sequence {sequence} was used for another payload")
        again = Answer()
        again.CopyFrom(answer)
        again.duplicate = True
        return again

    def take(self, request: UpdateRequest) -> Answer:
        rejects = []
        if request.change == INTERACTIONS:
            columns = decode_interactions(request.body)
            rows = list(zip(columns.user_ids.tolist(), columns.item_ids.tolist(), strict=True))
            if self.refuse_users.intersection(user for user, _ in rows):
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "refused, as ordered")
            rejects = [row for row, (user, _) in enumerate(rows) if user in self.reject_users]
            self.applied += [row for row in rows if row[0] not in self.reject_users]
            self.changes.append((INTERACTIONS, columns))
            count = len(rows)
        elif request.change == AVAILABILITY:
            self.changes.append((AVAILABILITY, decode_availability(request.body)))
            count = len(self.changes[-1][1])
        else:
            self.changes.append(("labels", decode_labels(request.body)))
            count = len(self.changes[-1][1])
        if request.stamp.producer_id:
            self.batch_rows.append(count)
        self.revision += 1
        answer = Answer(accepted=count - len(rejects), rejected_count=len(rejects))
        answer.position.lineage, answer.position.revision = LINEAGE, self.revision
        for row in rejects[:100]:
            reason = updates_pb2.REJECT_REASON_NOT_FINITE
            answer.rejects.add(row=row, reason=reason, text=f"row {row}: not finite")
        return answer


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method
        if method.endswith("/OpenProducer"):
            return grpc.unary_unary_rpc_method_handler(self.fake.open_producer)
        if method.endswith("/StreamUpdates"):
            return grpc.stream_stream_rpc_method_handler(self.fake.stream_updates)
        handler = self.fake.unary.get(method)
        if handler is None:
            return None
        streams = method.endswith(("/Snapshot", "/FetchSnapshot"))
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        return make(handler)
