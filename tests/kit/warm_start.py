"""A process that starts servers in a tenth of a second.

It has imported everything and loaded the kernels. It forks one server for each order.

`python warm_start.py` reads one JSON order a line and answers with one:

    {"start": [arguments], "log": path, "plants": [names]}   answers {"pid": number}
    {"poll": pid}                                            answers {"code": number or null}

The arguments are those of `livefactor`. The names are functions in tests/kit/plants.py. The code is
null while the child runs. A child runs the `livefactor` command from its first line on and has its
own output. The process does not use gRPC before the fork. When the orders end, the children end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys

from livefactor.__main__ import main
from livefactor_kernels.spec.presets import preset
from livefactor_server.hosting import kernels
from livefactor_server.judging import drift


def import_all() -> None:
    """Import the lazy imports of `livefactor serve` and load the kernels of the tests' models.

    A server that does this itself needs seconds of a processor for it.
    """
    for name in ("cli.app", "cli.serve.process"):
        importlib.import_module(f"livefactor_server.{name}")
    for name in ("grpc_health.v1.health", "grpc_reflection.v1alpha.reflection"):
        importlib.import_module(name)
    if drift.available():
        drift.HitDrift()
    for step in (kernels.LOG, *kernels.shared()):
        step.run()
    for name in ("clicks_sgd", "purchases_sgd"):
        kernels.prepare(preset(name, k=8), "cpu")


def become_server(order: dict[str, list[str]]) -> int:
    """Run the command in the child.

    The output goes to the log. The planted bugs are put in before the command runs.
    """
    with open(str(order["log"]), "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    plants = importlib.import_module("plants")
    for name in order["plants"]:
        getattr(plants, name)()
    sys.argv = ["livefactor", *order["start"]]
    return main()


def take_orders() -> int:
    """Take orders until they end. The call returns only in a child, with its exit code."""
    children: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            children.discard(pid)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            pid = os.fork()
            if not pid:
                return become_server(order)
            children.add(pid)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    import_all()
    print(json.dumps({"ready": True}), flush=True)
    sys.exit(take_orders())
