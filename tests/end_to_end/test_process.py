"""The server process: one for each folder and port, on loopback by default, with a clean end,
health and metrics.
"""

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
from certificates import Authority
from livefactor import models as models_module
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
"""Limit for the time from the end of its imports until a second server fails, seconds."""

DRAIN_MAX_S = 15.0
"""Limit for a drain, seconds. It is far below the grace time of running calls."""

SEED = 20_261_130


def command(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a `livefactor serve` that must end without a signal."""
    return subprocess.run(
        [sys.executable, "-m", "livefactor", "serve", *arguments],
        capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False,
    )  # fmt: skip


def livefactor_command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with further environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "livefactor", *arguments],
        capture_output=True, text=True, timeout=60, env=environment() | variables, check=False,
    )  # fmt: skip


def import_seconds() -> float:
    """How long the imports of a server take."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "import livefactor_server.cli.serve.process"],
        capture_output=True,
        env=environment(),
        check=True,
    )
    return time.monotonic() - began


# Tests of the start.


def test_a_second_server_on_the_same_folder_is_refused(serve: Serve) -> None:
    server = serve(cold=True)
    create_model(server)
    imports = import_seconds()
    began = time.monotonic()
    result = command("--data", str(server.data), "--port", "0", "--metrics-port", "-1")
    # Twice: other processes share the machine.
    assert time.monotonic() - began < imports + REFUSED_WITHIN_S + imports
    assert result.returncode == 1
    assert "in use by another livefactor server" in result.stderr and "Traceback" not in result.stderr
    # The first one goes on.
    assert described(server).events == 0


@pytest.mark.parametrize("port", ["--port", "--metrics-port"])
def test_a_second_server_on_the_same_port_is_refused(serve: Serve, tmp_path: Path, port: str) -> None:
    server = serve()
    taken = server.port if port == "--port" else server.metrics_port
    other = ["--metrics-port", "-1"] if port == "--port" else ["--port", "0"]
    result = command("--data", str(tmp_path / "other"), port, str(taken), *other)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("livefactor: ") and port in line
    assert f"127.0.0.1:{taken} cannot be bound (Address already in use)" in line
    with server.channel() as channel:
        # The first one goes on.
        assert Models(channel).list() == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "example.org"])
def test_an_address_that_is_not_loopback_needs_tls_or_the_flag(tmp_path: Path, host: str) -> None:
    result = command("--data", str(tmp_path / "data"), "--host", host, "--port", "0")
    assert result.returncode == 2 and "needs TLS" in result.stderr and "--insecure" in result.stderr
    assert not (tmp_path / "data").exists()


def test_a_server_with_tls_and_tokens_serves_commands_from_their_environment(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, access = Authority(tmp_path / "keys"), tmp_path / "access.toml"
    signed = authority.sign("server")
    made = livefactor_command("token", "create", "root", "--role", "admin", "--access", str(access))
    assert made.returncode == 0, made.stderr
    files = "--tls-cert", str(signed.certificate), "--tls-key", str(signed.key), "--access", str(access)
    server = serve(*files, cold=True)
    target = f"localhost:{server.port}"
    without = livefactor_command("models", "list", "--target", target, LIVEFACTOR_CA=str(authority.file))
    assert without.returncode == 1 and "no bearer token" in without.stderr
    token = made.stdout.strip()
    known = {"LIVEFACTOR_CA": str(authority.file), "LIVEFACTOR_TOKEN": token}
    created = livefactor_command("models", "create", "shop", "--target", target, **known)
    assert created.returncode == 0, created.stderr
    assert token not in server.log


def test_with_the_flag_any_address_is_bound(serve: Serve) -> None:
    server = serve("--host", "0.0.0.0", "--insecure")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10):
        pass


def test_without_the_flag_nothing_but_loopback_is_bound(serve: Serve) -> None:
    server = serve()
    listening = {
        c.laddr for c in psutil.Process(server.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN
    }
    assert {port for _, port in listening} == {server.port, server.metrics_port}
    assert {address.removeprefix("::ffff:") for address, _ in listening} == {"127.0.0.1"}


# Tests of the health service.


class Health:
    """A client of the health service."""

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
        # Reads still work.
        assert Scorer(channel, model=MODEL).score(1, [2]).position == acked.position
        assert not Models(channel).describe(MODEL).writable and metric(server, "livefactor_writable") == 0
        with pytest.raises(FlushTimeout):
            producer.flush(0.3)
        assert not lost.done(), "a batch got a final answer although its sync failed"
        marker.unlink()
        with pytest.raises(FlushTimeout):
            # The server never retries a failed sync.
            producer.flush(0.3)
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


# Tests of the end.


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
    assert seconds < DRAIN_MAX_S, "the streams of producers delayed the drain"


def seconds_until(true: Callable[[], bool], began: float) -> float:
    wait_until(true, "NOT_SERVING", 10)
    return time.monotonic() - began


def serving_or_gone(health: Health) -> bool:
    """Whether the server still answers SERVING."""
    try:
        return health.serving()
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return False


def test_a_drain_finishes_accepted_batches_and_refuses_later_ones(serve: Serve) -> None:
    """New batches get UNAVAILABLE while accepted calls are still running."""
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
        late = error_of(lambda: Producer(channel, "q", model=MODEL, open_timeout=0.0))
        assert isinstance(late, Unavailable)
        waiting.join(30)
    assert server.wait() == 0
    assert ended and isinstance(ended[0], LivefactorError)


def test_a_drain_does_not_wait_for_a_position_that_will_not_come(serve: Serve) -> None:
    """A call without a deadline waits for a revision.

    The server still ends, and the call gets an error.
    """
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


def test_a_drain_ends_in_time_whatever_runs(serve: Serve) -> None:
    server = serve("--drain-s", "1.5", plants=("scores_and_snapshots_never_end",))
    create_model(server)
    ask = scoring_pb2.ScoreRequest(model=MODEL, user_ids=[1], candidates=scoring_pb2.Candidates(item_ids=[1]))
    with server.channel() as channel:
        with Producer(channel, "p", model=MODEL) as producer:
            acknowledged = producer.push(1, 1).result(30).position
        call = channel.unary_unary("/livefactor.v1.ScoringService/Score").future(ask.SerializeToString())
        time.sleep(0.2)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        # The process ends, although a thread of it still computes. The other seconds are for the
        # load of the machine.
        assert server.wait(1.5 + 2) == 0
        assert time.monotonic() - began >= 1.0
        assert isinstance(call.exception(5), grpc.RpcError)
    assert "not drained after 1.5 s" in server.log and "Traceback" not in server.log
    server.plants = ()
    server.start()
    assert described(server).position == acknowledged


def wait_for(channel: grpc.Channel, position: object) -> None:
    Scorer(channel, model=MODEL).score(1, [1], min_position=position, timeout=2)  # type: ignore[arg-type]


def error_of(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it was not refused")


def test_no_signal_is_lost_right_after_the_start_or_in_a_series(serve: Serve) -> None:
    """A signal handler may run at any step of the main thread, also while that holds a lock or
    handles a signal.
    """
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


# Tests of the metrics.


def metric_lines(server: Server) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        return answer.read().decode().splitlines()


def metric(server: Server, name: str, **labels: str) -> float:
    """The value of one metric of the model."""
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
    # The record that opened the producer counts too.
    assert metric(measured, "livefactor_batches_total") == 11
    assert metric(measured, "livefactor_revision") == 11
    assert metric(measured, "livefactor_log_lag_records") == metric(measured, "livefactor_queue_bytes") == 0
    assert metric(measured, "livefactor_log_bytes") >= 11 * 60
    assert metric(measured, "livefactor_rows", table="users") == 50
    assert metric(measured, "livefactor_rows", table="items") == 20
    assert metric(measured, "livefactor_memory_bytes", table="users") > 50 * 64
    assert metric(measured, "livefactor_call_seconds_count", rpc="ScoringService.Score", code="OK") == 7
    assert metric(measured, "livefactor_apply_latency_seconds_count") == 11
    assert metric(measured, "livefactor_writable") == 1
    assert 'livefactor_refused_calls_total{code="NOT_FOUND"} 1.0' in text


# ------------------------------------------------------------------------------------------------
# the first start


def test_a_server_answers_before_its_models_are_open(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Health says NOT_SERVING and calls are UNAVAILABLE; then the same server serves."""
    # A call that only reads is tried again for 10 s.
    monkeypatch.setattr(models_module, "READ_RETRY_S", 0.3)
    server = serve("--log-level", "debug", plants=("models_open_on_trial",))
    create_model(server)
    waiting = server.data.parent / "models-wait"
    server.stop()
    waiting.touch()
    server.launch()
    with server.channel() as channel, Health(server) as health:
        wait_until(lambda: is_listening(server.port), "the port")
        assert not health.serving() and not health.serving(SCORES)
        models = Models(channel)
        for call in (
            lambda: models.list(),
            lambda: models.describe(MODEL),
            lambda: models.create("early", "clicks_sgd"),
            lambda: Scorer(channel, model=MODEL).score(1, [1], timeout=1),
        ):
            error = error_of(call)
            assert isinstance(error, Unavailable) and "starting, models are being opened" in str(error)
        waiting.unlink()
        server.start()
        assert health.serving()
        assert [model.name for model in Models(channel).list()] == [MODEL]


def test_a_signal_during_the_start_ends_it(serve: Serve) -> None:
    server = serve(plants=("models_open_on_trial",))
    server.stop()
    waiting = server.data.parent / "models-wait"
    waiting.touch()
    server.launch()
    wait_until(lambda: is_listening(server.port), "the port")
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0
    assert "stopped before the models were open" in server.log


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("port", ["--port", "--metrics-port"])
def test_a_taken_port_is_found_before_a_model_is_made(tmp_path: Path, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        other = ["--metrics-port", "-1"] if port == "--port" else ["--port", "0"]
        result = command("--data", str(tmp_path / "data"), port, number, *other)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert number in result.stderr and port in result.stderr and "cannot be bound" in result.stderr
    assert list((tmp_path / "data" / "models").iterdir()) == []
    assert "compiling" not in result.stderr


def test_a_variable_that_is_no_setting_is_an_error(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "livefactor", "serve", "--data", str(tmp_path / "data")],
        capture_output=True, text=True, timeout=60, check=False,
        env={**environment(), "LIVEFACTOR_METRICSPORT": "9090"},
    )  # fmt: skip
    assert result.returncode == 2
    assert "LIVEFACTOR_METRICSPORT; did you mean LIVEFACTOR_METRICS_PORT?" in result.stderr
    assert not (tmp_path / "data").exists()


def test_a_setting_comes_from_a_variable_and_a_flag_wins(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        for flags, refused in (([], number), (["--port", "70000"], "70000")):
            result = subprocess.run(
                [sys.executable, "-m", "livefactor", "serve", "--data", str(tmp_path / "data"),
                 "--metrics-port", "-1", *flags],
                capture_output=True, text=True, timeout=60, check=False,
                env={**environment(), "LIVEFACTOR_PORT": number},
            )  # fmt: skip
            assert result.returncode != 0 and (refused in result.stderr or flags)
            assert ("cannot be bound" in result.stderr) == (not flags)
