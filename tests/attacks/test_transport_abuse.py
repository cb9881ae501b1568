"""Promise 7 at the transport level.

The tests attack with message sizes, compression, nesting, connections, streams whose answers are
not read, and cancelled calls.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest

from hostile import MODEL, Target, batch_statuses, check_status
from livefactor.v1 import (
    models_pb2,
    scoring_pb2,
    scoring_pb2_grpc,
    snapshots_pb2,
    updates_pb2,
    updates_pb2_grpc,
)
from livefactor_server.snapshots.audit import replay_model
from server_process import Server, WarmStart, wait_until

Serve = Callable[..., Server]
Rows = updates_pb2.Interactions

APPLY = "livefactor.v1.UpdateService/ApplyUpdates"
MESSAGE_BYTES_MAX = 4 << 20
GROWTH_MAX = 64 << 20
STALL_MAX_S = 5.0
"""Another client's call takes no longer while a hostile one is handled, on a busy machine."""


@pytest.fixture(scope="module")
def target(warm: WarmStart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    server = Server(warm, tmp_path_factory.mktemp("attacked") / "data", "--preset", "")
    server.start()
    with server.channel() as channel:
        made = Target(server, channel)
        made.create(MODEL, "clicks_sgd")
        yield made
        made.check_alive()
    server.kill()


@pytest.fixture
def small(serve: Serve) -> Iterator[Target]:
    """Start a server that has few slots for each kind of call."""
    server = serve("--score-slots", "2", "--streams-max", "2", "--update-slots", "2")
    with server.channel() as channel:
        made = Target(server, channel)
        made.create(MODEL, "clicks_sgd", limits=models_pb2.Limits(users_max=20_000, items_max=20_000))
        yield made
        made.check_alive()


def field_bytes(number: int, data: bytes) -> bytes:
    """Return an encoded length-delimited field."""
    size, length = bytearray(), len(data)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2]) + bytes(size) + bytes([length]) + data


# ------------------------------------------------------------------------------------------------
# one message


def test_messages_over_the_limit_are_refused(target: Target) -> None:
    before = target.state()
    ((code, text),) = target.call(APPLY, field_bytes(15, bytes(MESSAGE_BYTES_MAX)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(f"request: at most {MESSAGE_BYTES_MAX} bytes")
    # The transport itself stops what is far larger.
    ((code, _),) = target.call(APPLY, field_bytes(15, bytes(3 * MESSAGE_BYTES_MAX)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert target.state() == before
    rows = Rows(
        user_ids=[1] * 65_536,
        item_ids=[2] * 65_536,
        values=[1] * 65_536,
        weights=[1] * 65_536,
        times_us=[1] * 65_536,
    )
    ack = updates_pb2_grpc.UpdateServiceStub(target.channel).ApplyUpdates(
        updates_pb2.ApplyUpdatesRequest(model=MODEL, interactions=rows), timeout=30
    )
    # The limit leaves room for a full batch.
    assert ack.accepted == 65_536


@pytest.mark.parametrize("size", [64 << 20, 256 << 20])
def test_a_small_message_that_unpacks_to_a_large_one_is_refused_before_it_is_unpacked(
    target: Target, size: int
) -> None:
    before = target.rss
    call = target.channel.unary_unary("/" + APPLY)
    with pytest.raises(grpc.RpcError) as caught:
        call(bytes(size), timeout=30, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert target.rss - before < GROWTH_MAX


def bombs() -> dict[str, bytes]:
    """Return messages that take up about 4 MiB each, by name.

    A careless parser turns them into millions of objects or into deep recursion.
    """
    room = MESSAGE_BYTES_MAX - 64
    model = field_bytes(1, MODEL.encode())
    return {
        "empty unknown messages": model + b"\x7a\x00" * (room // 2),
        "empty stamps": model + b"\x12\x00" * (room // 2),
        "empty interactions": model + b"\x1a\x00" * (room // 2),
        "empty labels": model + field_bytes(4, b"\x08\x01" + b"\x1a\x00" * (room // 2 - 40)),
        "labels without a side": model + field_bytes(4, b"\x1a\x00" * (room // 2 - 40)),
        "ids one by one": model
        + field_bytes(3, (b"\x09" + bytes(8) + b"\x11" + bytes(8)) * (room // 18 - 4)),
        "ids in pieces": model + field_bytes(3, (b"\x0a\x08" + bytes(8)) * (room // 10 - 4)),
        "varints of one byte": model + b"\x78\x01" * (room // 2),
        "groups in groups": model + b"\x7b" * 5000,
        "groups in groups, closed": model + b"\x7b" * 5000 + b"\x7c" * 5000,
        "only ones": b"\xff" * room,
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_without_much_memory_and_others_are_served_meanwhile(
    target: Target, name: str
) -> None:
    raw = bombs()[name]
    assert len(raw) <= MESSAGE_BYTES_MAX
    before, state = target.rss, target.state()
    codes: list[grpc.StatusCode] = []

    def attack() -> None:
        for path in (APPLY, "livefactor.v1.UpdateService/StreamUpdates"):
            codes.extend(call_patiently(target, path, raw))

    attacker = threading.Thread(target=attack)
    attacker.start()
    longest = 0.0
    while attacker.is_alive():
        began = time.monotonic()
        target.models.DescribeModel(models_pb2.DescribeModelRequest(model=MODEL), timeout=20)
        longest = max(longest, time.monotonic() - began)
    attacker.join()
    assert len(codes) == 2 and set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}, codes
    print(
        f"{name}: memory +{(target.rss - before) / 1e6:.0f} MB, longest call of another client {longest * 1e3:.0f} ms"
    )
    assert target.rss - before < GROWTH_MAX
    assert longest < STALL_MAX_S
    assert target.state() == state


def call_patiently(target: Target, path: str, raw: bytes) -> list[grpc.StatusCode]:
    """Make one call and return its statuses.

    An update must fail and gives its one status. A stream gives the statuses of its batches.
    """
    if path == APPLY:
        with pytest.raises(grpc.RpcError) as caught:
            target.channel.unary_unary("/" + path)(raw, timeout=30)
        check_status(caught.value.code(), caught.value.details())
        return [caught.value.code()]
    messages = target.channel.stream_stream("/" + path)(iter([raw]), timeout=30)
    return [code for message in messages for code, _ in batch_statuses(message)]


@pytest.mark.parametrize("size", [17 << 10, 1 << 20])
def test_metadata_over_its_limit_is_refused(target: Target, size: int) -> None:
    call = target.channel.unary_unary("/livefactor.v1.ModelService/ListModels")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=10, metadata=(("x-much", "y" * size),))
    assert caught.value.code() in (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
    )
    target.check_alive()


# ------------------------------------------------------------------------------------------------
# connections


@pytest.mark.parametrize(
    "greeting",
    [b"\x00" * 4096, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000, b""],
    ids=["zeros", "http/1.1", "tls", "broken http/2", "silence"],
)  # fmt: skip
def test_connections_that_speak_something_else_do_no_harm(target: Target, greeting: bytes) -> None:
    sockets = [socket.create_connection(("127.0.0.1", target.server.port), timeout=5) for _ in range(30)]
    try:
        for connection in sockets:
            connection.sendall(greeting)
        target.check_alive()
    finally:
        for connection in sockets:
            connection.close()


def test_calls_that_are_cancelled_at_once_leave_nothing_behind(small: Target) -> None:
    stub = scoring_pb2_grpc.ScoringServiceStub(small.channel)
    request = scoring_pb2.ScoreRequest(model=MODEL, user_ids=[1], top_k=scoring_pb2.TopK(k=5))
    for _ in range(1000):
        stub.Score.future(request, timeout=20).cancel()
    wait_until(lambda: answered(lambda: stub.Score(request, timeout=20)), "a free slot")


def answered(call: Callable[[], object]) -> bool:
    """Return False if the call was refused because no slot was free."""
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
        return False
    return True


def test_short_deadlines_leave_whole_batches_and_free_every_slot(small: Target) -> None:
    """A batch whose client gave up is applied whole or not at all, and the replay agrees."""
    stub = updates_pb2_grpc.UpdateServiceStub(small.channel)
    rows = Rows(user_ids=range(300), item_ids=range(300))
    request = updates_pb2.ApplyUpdatesRequest(model=MODEL, interactions=rows)
    codes = []
    for number in range(1000):
        try:
            stub.ApplyUpdates(request, timeout=(1 + number % 20) / 1000)
            codes.append(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            check_status(error.code(), error.details())
            codes.append(error.code())
    wait_until(lambda: answered(lambda: stub.ApplyUpdates(request, timeout=20)), "a free slot")
    described = small.models.DescribeModel(
        models_pb2.DescribeModelRequest(model=MODEL, with_root_hash=True)
    ).description
    assert described.events % 300 == 0 and described.events >= 300 * codes.count(grpc.StatusCode.OK)
    report = replay_model(small.server.model_folder(MODEL))
    assert (report.revision, report.root_hash) == (described.position.revision, described.root_hash)
    print({code.name: codes.count(code) for code in set(codes)})


# ------------------------------------------------------------------------------------------------
# slots


def test_scores_over_the_slots_wait_for_their_turn(small: Target) -> None:
    updates_pb2_grpc.UpdateServiceStub(small.channel).ApplyUpdates(
        updates_pb2.ApplyUpdatesRequest(
            model=MODEL, interactions=Rows(user_ids=range(10_000), item_ids=range(10_000))
        ),
        timeout=30,
    )
    stub = scoring_pb2_grpc.ScoringServiceStub(small.channel)
    heavy = scoring_pb2.ScoreRequest(model=MODEL, user_ids=range(100), top_k=scoring_pb2.TopK(k=100))
    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(lambda _: answered(lambda: stub.Score(heavy, timeout=30)), range(40)))


def test_streams_over_their_maximum_are_refused_and_ended_streams_free_their_slots(small: Target) -> None:
    stub = updates_pb2_grpc.UpdateServiceStub(small.channel)
    request = updates_pb2.StreamUpdatesRequest(model=MODEL, interactions=Rows(user_ids=[1], item_ids=[1]))
    ended = threading.Event()

    def open_stream() -> grpc.Call:
        def requests() -> Iterator[updates_pb2.StreamUpdatesRequest]:
            yield request
            ended.wait(60)

        return stub.StreamUpdates(requests(), timeout=60)

    streams = [open_stream() for _ in range(2)]
    assert [next(stream).answers[0].response.accepted for stream in streams] == [1, 1]
    for _ in range(3):
        assert not answered(lambda: next(open_stream()))
    streams[0].cancel()
    wait_until(lambda: answered(lambda: next(open_stream())), "a free stream")
    ended.set()


def test_updates_over_the_slots_wait_for_their_turn(small: Target) -> None:
    stub = updates_pb2_grpc.UpdateServiceStub(small.channel)
    request = updates_pb2.ApplyUpdatesRequest(
        model=MODEL, interactions=Rows(user_ids=[1] * 60_000, item_ids=[1] * 60_000)
    )
    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(lambda _: answered(lambda: stub.ApplyUpdates(request, timeout=30)), range(40)))


# ------------------------------------------------------------------------------------------------
# clients that do not read


def test_a_stream_whose_answers_are_not_read_is_held_back(target: Target) -> None:
    """The server stops reading a stream once the transport's window is full.

    Every answer lists a hundred rejects, so the window fills soon.
    """
    row_ids = [1] * 500
    request = updates_pb2.StreamUpdatesRequest(
        model=MODEL, interactions=Rows(user_ids=row_ids, item_ids=row_ids, values=[0.5] * 500)
    )
    sent, ended = [0], threading.Event()

    def requests() -> Iterator[updates_pb2.StreamUpdatesRequest]:
        while not ended.is_set():
            sent[0] += 1
            yield request

    narrow = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 65_535}
    before = target.rss
    with target.server.channel(**narrow) as channel:
        call = updates_pb2_grpc.UpdateServiceStub(channel).StreamUpdates(requests(), timeout=120)
        held_back_after(sent)
        ended.set()
        growth = target.rss - before
        print(f"held back after {sent[0]} batches, memory +{growth / 1e6:.0f} MB")
        assert growth < GROWTH_MAX
        answers = sum(answer.response.rejected_count == 500 for message in call for answer in message.answers)
    # A client that reads on gets every answer.
    assert answers == sent[0]


def held_back_after(sent: list[int], batches_max: int = 15_000) -> None:
    """Wait until the transport has taken no message from the sender for one second."""
    last, since = sent[0], time.monotonic()
    while time.monotonic() - since < 1.0:
        time.sleep(0.01)
        if sent[0] != last:
            last, since = sent[0], time.monotonic()
        assert sent[0] < batches_max, "the server reads on although nobody takes its answers"


def test_a_stream_that_is_held_back_and_cancelled_leaves_no_thread(target: Target) -> None:
    row_ids = [1] * 500
    request = updates_pb2.StreamUpdatesRequest(
        model=MODEL, interactions=Rows(user_ids=row_ids, item_ids=row_ids, values=[0.5] * 500)
    )
    threads = threads_of(target)
    for _ in range(3):
        sent = [0]

        def requests(sent: list[int] = sent) -> Iterator[updates_pb2.StreamUpdatesRequest]:
            while True:
                sent[0] += 1
                yield request

        narrow = {"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 65_535}
        with target.server.channel(**narrow) as channel:
            call = updates_pb2_grpc.UpdateServiceStub(channel).StreamUpdates(requests(), timeout=60)
            held_back_after(sent)
            call.cancel()
    wait_until(lambda: threads_of(target) <= threads + 3, "the end of the streams' threads")


def threads_of(target: Target) -> int:
    return psutil.Process(target.server.pid).num_threads()


def test_fetches_that_are_not_read_leave_the_other_calls_alone(serve: Serve) -> None:
    server = serve()
    with server.channel() as channel:
        target = Target(server, channel)
        target.create(
            MODEL, "clicks_sgd", k=256, limits=models_pb2.Limits(users_max=20_000, items_max=20_000)
        )
        rows = Rows(user_ids=range(15_000), item_ids=range(15_000))
        updates = updates_pb2_grpc.UpdateServiceStub(channel)
        updates.ApplyUpdates(updates_pb2.ApplyUpdatesRequest(model=MODEL, interactions=rows), timeout=60)
        list(channel.unary_stream("/livefactor.v1.SnapshotService/Snapshot")(b"\x0a\x01m", timeout=60))
        fetch = snapshots_pb2.FetchSnapshotRequest(model=MODEL).SerializeToString()
        channels = [server.channel() for _ in range(3)]
        calls = [
            one.unary_stream("/livefactor.v1.SnapshotService/FetchSnapshot")(fetch, timeout=60)
            for one in channels
            for _ in range(60)
        ]
        request = scoring_pb2.ScoreRequest(model=MODEL, user_ids=[1], top_k=scoring_pb2.TopK(k=5))
        for _ in range(20):
            assert (
                scoring_pb2_grpc.ScoringServiceStub(channel).Score(request, timeout=5).position.revision == 1
            )
        for call in calls:
            call.cancel()
        for one in channels:
            one.close()
        assert target.call("livefactor.v1.ModelService/ListModels", b"")[0][0] is grpc.StatusCode.OK
