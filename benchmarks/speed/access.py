"""What TLS, tokens, encryption at rest and traces cost: `python -m benchmarks.speed.access`.

Four servers take turns: in plain text, with TLS, in plain text with an access file, and in plain
text with an encrypted data folder. This process asks each for the scores of 64 candidates, one call
after the other, and sends it a stream of batches of 65,536 events. Figures are medians: the CPU
time of both processes together, and its ratio to plain text. The check of a token and the
spans of an update are timed alone, in this process.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.calls import Server
from benchmarks.speed.ingest import SPECS, Load, serving_process
from benchmarks.speed.streams import ITEMS, KEY_STEP
from livefactor import Access, BatchSettings, Models, Producer, Scorer
from livefactor_server.access.callers import check_role, grant_of
from livefactor_server.access.grants import Grants, Role, digest, new_token
from livefactor_server.telemetry import traces

MODEL = "squared"
CALLS, EVENTS, ROUNDS = 1_000, 1 << 21, 5
CHECKS = 20_000


@contextmanager
def _servers(folder: Path) -> Iterator[dict[str, tuple[Server, Access]]]:
    """The servers by name, with what a client needs to call them."""
    # The authority of the tests stands beside the project's packages.
    sys.path.append(str(Path(__file__).parents[2] / "tests" / "kit"))
    from certificates import Authority

    authority = Authority(folder)
    signed = authority.sign("server")
    token = _access_file(folder / "access.toml")
    flags = {
        "plain": (),
        "tls": ("--tls-cert", str(signed.certificate), "--tls-key", str(signed.key)),
        "token": ("--access", str(folder / "access.toml")),
        "encrypted": ("--encryption-key-file", str(_key_file(folder / "data.key"))),
    }
    access = {"plain": Access(), "tls": Access(ca=authority.file), "token": Access(token=token)}
    access["encrypted"] = Access()
    with ExitStack() as stack:
        found = {}
        for name, own in flags.items():
            ports, process = stack.enter_context(serving_process(flags=own))
            found[name] = Server(f"127.0.0.1:{ports[0]}", process.pid), access[name]
            with Models(found[name][0].target, access=access[name]) as models:
                models.create(MODEL, **SPECS[MODEL])  # type: ignore[arg-type]
        yield found


def _key_file(path: Path) -> Path:
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


def _access_file(path: Path) -> str:
    token = new_token()
    path.touch(mode=0o600)
    path.write_text(f'[[grant]]\nname = "bench"\nrole = "admin"\ntoken_sha256 = "{digest(token)}"\n')
    return token


@contextmanager
def _cpu_s(server: Server, taken: list[float]) -> Iterator[None]:
    """Adds the CPU time of this process and of the server to `taken`, in seconds."""
    own, theirs = time.process_time(), server.cpu_s
    yield
    taken.append(time.process_time() - own + server.cpu_s - theirs)


def _call(server: Server, access: Access, calls: int) -> None:
    items = np.random.default_rng(9).integers(0, ITEMS, 64, np.uint64) * KEY_STEP
    with Scorer(server.target, model=MODEL, access=access) as scorer:
        for user in range(calls):
            scorer.score(user, items)


def _ingest(server: Server, access: Access, load: Load) -> float:
    """Events per second."""
    settings = BatchSettings(events_max=load.batch, latency_ms_max=None)
    started = time.perf_counter()
    with Producer(server.target, "bench", model=MODEL, batch=settings, access=access) as producer:
        for part in load.slices():
            producer.push(**load.columns(part))
        producer.flush(120)
    return len(load.users) / (time.perf_counter() - started)


def token_check_us(checks: int = CHECKS) -> float:
    """Microseconds of CPU time of a call's way from its metadata to its grant."""

    class Context:
        def __init__(self, header: str) -> None:
            self._metadata = (("user-agent", "grpc"), ("authorization", header))

        def invocation_metadata(self) -> Any:
            return self._metadata

    with tempfile.TemporaryDirectory() as name:
        token = _access_file(Path(name) / "access.toml")
        grants, context = Grants(Path(name) / "access.toml"), Context(f"Bearer {token}")
        roles = frozenset({Role.CONSUMER})
        started = time.process_time()
        for _ in range(checks):
            check_role(grant_of(context, grants), roles, "Score")  # type: ignore[arg-type]
        return (time.process_time() - started) / checks * 1e6


def trace_us(sample: float | None, calls: int = CHECKS) -> float:
    """Microseconds of CPU time that the spans of an update take, its steps included.

    sample: the share of the calls that have spans; None for no tracing.
    """
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    traces.use(None if sample is None else traces.Traces(provider, sample))
    started = time.process_time()
    for _ in range(calls):
        trace = traces.begin("UpdateService.ApplyUpdates", (("user-agent", "grpc"),))
        if trace is not None:
            for step in ("queue", "log", "apply"):
                trace.step(step, 0.0, 1.0)
            trace.end("OK", model=MODEL, producer="bench", revision=1)
    taken = (time.process_time() - started) / calls * 1e6
    traces.use(None)
    return taken


def measure(rounds: int = ROUNDS, calls: int = CALLS, events: int = EVENTS) -> dict[str, float]:
    """Flat figures: microseconds of CPU time, and ratios to plain text."""
    load = Load(events, 65_536)
    call: dict[str, list[float]] = {}
    ingest: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="livefactor-bench-", dir=os.environ.get("BENCH_DIR")) as name,
        _servers(Path(name)) as servers,
    ):
        for number in range(rounds + 1):
            for kind, (server, access) in servers.items():
                # The first round warms up.
                kept = (call, ingest, rates) if number else ({}, {}, {})
                with _cpu_s(server, kept[0].setdefault(kind, [])):
                    _call(server, access, calls)
                with _cpu_s(server, kept[1].setdefault(kind, [])):
                    kept[2].setdefault(kind, []).append(_ingest(server, access, load))
    figures = {"access_token_check_us": token_check_us()}
    for name, sample in (("off", None), ("1_percent", 0.01), ("all", 1.0)):
        figures[f"access_trace_{name}_us"] = trace_us(sample)
    for kind, taken in call.items():
        figures[f"access_{kind}_call_cpu_us"] = statistics.median(taken) / calls * 1e6
        figures[f"access_{kind}_ingest_cpu_ns"] = statistics.median(ingest[kind]) / events * 1e9
    for kind in ("tls", "token", "encrypted"):
        for what, taken in (("call_cpu", call), ("ingest_cpu", ingest), ("ingest_rate", rates)):
            pairs = zip(taken[kind], taken["plain"], strict=True)
            figures[f"ratio_access_{kind}_{what}"] = statistics.median(own / plain for own, plain in pairs)
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
