"""A process that forks: what a child may use of the clients that its parent made.

Each case runs in a process of its own, because gRPC in the tests' process has many threads.
"""

from __future__ import annotations

import subprocess
import sys

from fake_scoring import Scoring
from fake_server import FakeServer

PRELUDE = """
import os, sys, threading
import livefactor
from livefactor.in_process import Local

def forked(child):
    pid = os.fork()
    if pid == 0:
        threading.Timer(20, os._exit, [9]).start()
        try:
            child()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print("exit", os.waitstatus_to_exitcode(status), flush=True)

target = sys.argv[1]
"""


def run(code: str, target: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, target], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_scorer_works_in_a_child(fake: FakeServer) -> None:
    Scoring(fake)
    said = run(
        """
with livefactor.Scorer(target) as scorer:
    ask = lambda: print(scorer.score(9, [1], timeout=10)[0].scores.tolist(), flush=True)
    ask()
    forked(ask)
    ask()
""",
        fake.target,
    )
    assert said == ["[8.0]", "[8.0]", "exit 0", "[8.0]"]


CALLS = (
    "producer.push([1], [2])",
    "producer.push_labels('item', [1], ['one'])",
    "producer.set_available([1], False)",
    "producer.flush()",
    "producer.status",
    "receipt.result()",
    "receipt.exception()",
)


def test_a_producer_refuses_to_work_in_a_child(fake: FakeServer) -> None:
    said = run(
        f"""
producer = livefactor.Producer(target, "parent", batch=livefactor.BatchSettings(latency_ms_max=None))
receipt = producer.push([1], [2])
for call in {CALLS}:
    forked(lambda: eval(call))
producer.close()
print(receipt.result(), flush=True)
""",
        fake.target,
    )
    errors, codes = said[:-1:2], said[1:-1:2]
    assert len(errors) == len(codes) == len(CALLS)
    assert all(error.startswith("ForkError: producer 'parent': process ") for error in errors), errors
    assert set(codes) == {"exit 3"}
    assert said[-1] == "Ack(1 accepted, revision 1)"
    assert fake.applied == [(1, 2)]


def test_the_end_of_a_child_closes_nothing_of_its_parent(fake: FakeServer) -> None:
    said = run(
        """
stopped = []
local = Local(target, livefactor.open_channel(target), lambda: stopped.append(1))
producer = local.producer("parent")

def child():
    producer.close()
    local.close()
    with producer:
        pass
    assert not stopped

forked(child)
print(producer.push([1], [2]).result(), flush=True)
local.close()
assert stopped
""",
        fake.target,
    )
    assert said == ["exit 0", "Ack(1 accepted, revision 1)"]
