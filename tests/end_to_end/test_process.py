"""The server as a process: one a folder and port, loopback unless told otherwise, a clean end, its health and figures."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import livefactor_server.rpc.server  # noqa: F401 - every room of the server defines its own metrics
from livefactor.errors import FlushTimeout, LivefactorError, Unavailable
from livefactor.models import Models
from livefactor.pushing.batching import BatchSettings
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer
from livefactor.v1 import scoring_pb2
from livefactor_server.metrics import metric_names
from livefactor_server.snapshots.audit import replay_model
from load import MODEL, Findings, Load, create_model, described
from server_process import Server, environment, wait_until

Serve = Callable[..., Server]

UPDATES = "livefactor.v1.UpdateService"
SCORES = "livefactor.v1.ScoringService"
REFUSED_WITHIN_S = 1.0
"""A second server gives up so soon after its imports, which take longer."""

DRAIN_MAX_S = 15.0
"""Far below the time that running calls are given."""

SEED = 20_261_130


def command(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """`livefactor serve` that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "livefactor", "serve", *arguments],
        capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False,
    )  # fmt: skip


def import_seconds() -> float:
    """How long a command takes that only imports."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "livefactor", "serve", "--help"],
        capture_output=True,
        env=environment(),
        check=True,
    )
    return time.monotonic() - began


# ------------------------------------------------------------------------------------------------ start


def test_a_second_server_on_the_same_folder_is_refused(serve: Serve) -> None:
    server = serve(cold=True)
    create_model(server)
    imports = import_seconds()
    began = time.monotonic()
    result = command("--data", str(server.data), "--port", "0", "--metrics-port", "-1")
    assert (
        time.monotonic() - began < imports + REFUSED_WITHIN_S + imports
    )  # twice: other processes share the machine
    assert result.returncode == 1
    assert "in use by another livefactor server" in result.stderr and "Traceback" not in result.stderr
    assert described(server).events == 0  # the first one goes on


@pytest.mark.parametrize("port", ["--port", "--metrics-port"])
def test_a_second_server_on_the_same_port_is_refused(serve: Serve, tmp_path: Path, port: str) -> None:
    server = serve()
    taken = server.port if port == "--port" else server.metrics_port
    other = ["--metrics-port", "-1"] if port == "--port" else ["--port", "0"]
    result = command("--data", str(tmp_path / "other"), port, str(taken), *other)
    assert result.returncode == 1
    assert (
        "cannot be bound" in result.stderr or "in use" in result.stderr
    ) and "Traceback" not in result.stderr
    with server.channel() as channel:
        assert Models(channel).list() == ()  # the first one goes on


@pytest.mark.parametrize("host", ["0.0.0.0", "example.org"])
def test_an_address_that_is_not_loopback_needs_the_flag(tmp_path: Path, host: str) -> None:
    result = command("--data", str(tmp_path / "data"), "--host", host, "--port", "0")
    assert result.returncode == 2 and "--allow-remote" in result.stderr
    assert not (tmp_path / "data").exists()


def test_with_the_flag_any_address_is_bound(serve: Serve) -> None:
    server = serve("--host", "0.0.0.0", "--allow-remote")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10):
        pass


def test_without_the_flag_nothing_but_loopback_is_bound(serve: Serve) -> None:
    server = serve()
    listening = {
        c.laddr for c in psutil.Process(server.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN
    }
    assert {port for _, port in listening} == {server.port, server.metrics_port}
    assert {address.removeprefix("::ffff:") for address, _ in listening} == {"127.0.0.1"}


# ------------------------------------------------------------------------------------------------ health


class Health:
    """What the health service says."""

    def __init__(self, server: Server) -> None:
        self._channel = server.channel()
        self._stub = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Health:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def serving(self, service: str = "") -> bool:
        answer = self._stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_health_is_true_while_serving_and_stalled_after_a_failed_sync(serve: Serve) -> None:
    server = serve(plants=("sync_on_trial",))
    create_model(server)
    marker = server.model_folder(MODEL) / "log" / "sync-fails"
    settings = BatchSettings(latency_ms_max=0)
    with server.channel() as channel, Health(server) as health:
        producer = Producer(channel, "p", model=MODEL, batch=settings)
        acked = producer.push([1] * 10, [2] * 10).result(30)
        assert health.serving() and health.serving(UPDATES) and health.serving(SCORES)
        marker.touch()
        lost = producer.push([1] * 5, [2] * 5)
        wait_until(lambda: not health.serving(UPDATES), "the health of updates", 10)
        assert not health.serving() and health.serving(SCORES)
        assert Scorer(channel, model=MODEL).score(1, [2]).position == acked.position  # reads go on
        assert not Models(channel).describe(MODEL).writable and metric(server, "livefactor_writable") == 0
        with pytest.raises(FlushTimeout):
            producer.flush(0.3)
        assert not lost.done, "a batch whose sync failed was answered for good"
        marker.unlink()
        with pytest.raises(FlushTimeout):
            producer.flush(0.3)  # a sync that failed is never tried again
        server.kill()
        server.start()
        again = lost.result(60)
        assert again.accepted == 5
        assert described(server).events == 15
        assert health.serving() and health.serving(UPDATES)
        producer.close()
    report = replay_model(server.model_folder(MODEL))
    assert report.root_hash == described(server).root_hash
    assert "planted" in server.log and "no batch is acknowledged until a restart" in server.log


# ------------------------------------------------------------------------------------------------ the end


def test_sigterm_under_load_drains(serve: Serve) -> None:
    server = serve(cold=True)
    create_model(server)
    load = Load(server, SEED)
    load.start()
    load.wait_for_acks()
    with Health(server) as health:
        assert health.serving()
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        not_serving = seconds_until(lambda: not serving_or_gone(health), began)
    code = server.wait()
    seconds, acked = time.monotonic() - began, load.acked_revision
    assert code == 0, server.log[-3000:]
    report = replay_model(server.model_folder(MODEL))
    assert report.revision >= acked and report.good and len(report.snapshots) == 1
    server.start()
    load.finish()
    findings = Findings()
    findings.add_log(server.model_folder(MODEL), load)
    print(f"NOT_SERVING after {not_serving * 1e3:.0f} ms, exit 0 after {seconds:.2f} s: {findings}")
    assert findings.sound, findings
    assert "Traceback" not in server.log
    assert seconds < DRAIN_MAX_S, "streams of producers held the drain up"


def seconds_until(true: Callable[[], bool], began: float) -> float:
    wait_until(true, "NOT_SERVING", 10)
    return time.monotonic() - began


def serving_or_gone(health: Health) -> bool:
    """False once it says NOT_SERVING or is not there any more."""
    try:
        return health.serving()
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return False


def test_a_drain_finishes_what_was_accepted_and_refuses_what_comes_later(serve: Serve) -> None:
    """While calls that were accepted are still running, new batches get UNAVAILABLE."""
    server = serve("--drain-s", "20")
    create_model(server)
    with server.channel() as channel, Health(server) as health:
        producer = Producer(channel, "p", model=MODEL)
        here = producer.push(1, 1).result(30).position
        producer.close()
        ahead = type(here)(here.lineage, here.revision + 1)
        ended: list[Exception] = []
        waiting = threading.Thread(target=lambda: ended.append(error_of(lambda: wait_for(channel, ahead))))
        waiting.start()
        wait_until(lambda: metric_lines(server) is not None, "metrics")
        server.signal(signal.SIGTERM)
        wait_until(lambda: not serving_or_gone(health), "NOT_SERVING", 15)
        late = error_of(lambda: Producer(channel, "q", model=MODEL, open_timeout_s=0.0))
        assert isinstance(late, Unavailable)
        waiting.join(30)
    assert server.wait() == 0
    assert ended and isinstance(ended[0], LivefactorError)


def test_a_drain_does_not_wait_for_a_position_that_will_not_come(serve: Serve) -> None:
    """A call without a deadline waits for a revision; the server ends all the same, and says so."""
    server = serve()
    create_model(server)
    ask = scoring_pb2.ScoreRequest(model=MODEL, user_ids=[1], candidates=scoring_pb2.Candidates(item_ids=[1]))
    ask.min_position.revision = 1000
    with server.channel() as channel:
        call = channel.unary_unary("/livefactor.v1.ScoringService/Score").future(ask.SerializeToString())
        time.sleep(0.5)
        assert not call.done()
        server.signal(signal.SIGTERM)
        assert call.exception(10).code() is grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 0


def wait_for(channel: grpc.Channel, position: object) -> None:
    Scorer(channel, model=MODEL).score(1, [1], min_position=position, deadline_s=2)  # type: ignore[arg-type]


def error_of(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it was not refused")


def test_a_signal_as_soon_as_it_serves_and_many_more_are_not_lost(serve: Serve) -> None:
    """A handler runs between any two steps of the main thread, also while that takes a lock or handles a signal."""
    server = serve()
    for _ in range(8):
        for _ in range(50):
            if server.exit_code() is None:
                server.signal(signal.SIGTERM)
        assert server.wait(20) == 0
        server.start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(serve: Serve, number: signal.Signals) -> None:
    server = serve(cold=True)
    create_model(server)
    began = time.monotonic()
    server.signal(number)
    assert server.wait() == 0
    assert time.monotonic() - began < 10
    assert "drained" in server.log


# ------------------------------------------------------------------------------------------------ figures


def metric_lines(server: Server) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        return answer.read().decode().splitlines()


def metric(server: Server, name: str, **labels: str) -> float:
    """The value of a metric of the model."""
    wanted = [f'{key}="{value}"' for key, value in {"model": MODEL, **labels}.items()]
    found = [
        line
        for line in metric_lines(server)
        if line.split("{")[0] == name and all(label in line for label in wanted)
    ]
    assert len(found) == 1, (name, found)
    return float(found[0].rsplit(" ", 1)[1])


@pytest.fixture
def measured(serve: Serve) -> Iterator[Server]:
    server = serve()
    create_model(server, "clicks_sgd")
    with server.channel() as channel:
        settings = BatchSettings(events_max=100)
        with Producer(channel, "p", model=MODEL, batch=settings, on_reject=lambda _: None) as producer:
            producer.push([n % 50 for n in range(1000)], [n % 20 for n in range(1000)], [0.5] + [1.0] * 999)
        for _ in range(7):
            Scorer(channel, model=MODEL).score(1, [1, 2, 3])
        error_of(lambda: Scorer(channel, model="nosuch").score(1, [1]))
    yield server


def test_the_metrics_show_what_happened(measured: Server) -> None:
    text = "\n".join(metric_lines(measured))
    for name in metric_names():
        assert f"# HELP {name}" in text, name
    assert metric(measured, "livefactor_events_total") == 999
    assert metric(measured, "livefactor_rejected_rows_total") == 1
    assert metric(measured, "livefactor_batches_total") == 11  # with the record that opened the producer
    assert metric(measured, "livefactor_revision") == 11
    assert metric(measured, "livefactor_log_lag_records") == metric(measured, "livefactor_queue_bytes") == 0
    assert metric(measured, "livefactor_log_bytes") >= 11 * 4096
    assert metric(measured, "livefactor_rows", table="users") == 50
    assert metric(measured, "livefactor_rows", table="items") == 20
    assert metric(measured, "livefactor_memory_bytes", table="users") > 50 * 64
    assert metric(measured, "livefactor_score_latency_seconds_count") == 7
    assert metric(measured, "livefactor_apply_latency_seconds_count") == 11
    assert metric(measured, "livefactor_writable") == 1
    assert 'livefactor_refused_calls_total{code="NOT_FOUND"} 1.0' in text
