"""`livefactor health --wait`: it waits for a server that starts, and no longer."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def ask(target: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "livefactor", "health", "--target", target, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_it_waits_for_a_server_that_starts(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/socket"
    answers = health.HealthServicer()
    answers.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(answers, server)
    server.add_insecure_port(target)

    def start() -> None:
        time.sleep(0.3)
        server.start()
        time.sleep(0.3)
        answers.set("", health_pb2.HealthCheckResponse.SERVING)

    threading.Thread(target=start).start()
    done = ask(target, "--wait", "100")
    assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
    answers.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    refused = ask(target, "--wait", "0.1")
    assert (refused.returncode, refused.stderr) == (1, "livefactor: NOT_SERVING\n")
    server.stop(0).wait()
    assert "no server at" in ask(target, "--wait", "0.1").stderr
