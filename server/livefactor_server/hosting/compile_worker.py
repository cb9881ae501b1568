"""A process that compiles kernels for another one (`compiling.py`).

Standard input has the plan in the first line, as JSON, and then one number of a step a line. The
process answers each number when the step's kernels are on disk. It ends when its input ends, also
in the middle of a step. So it never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import NoReturn

from livefactor_kernels.numbers import shipped
from livefactor_server.hosting.kernels import Plan

LOWEST_PRIORITY = 19


def main() -> NoReturn:
    """Takes orders until they end."""
    fields = json.loads(sys.stdin.readline())
    if fields.pop("host"):
        os.nice(LOWEST_PRIORITY)
        shipped.ignore()
    orders: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_read_orders, args=(orders,), daemon=True).start()
    plan = Plan.from_json(fields)
    steps = [*plan.steps(), *plan.rest()]
    while True:
        number = orders.get()
        steps[number].run()
        os.write(sys.stdout.fileno(), f"{number}\n".encode())


def _read_orders(orders: queue.SimpleQueue[int]) -> None:
    for line in sys.stdin:
        orders.put(int(line))
    # A compilation cannot be interrupted, and its file is written as a whole or not at all.
    os._exit(0)


if __name__ == "__main__":
    main()
