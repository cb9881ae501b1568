"""Compiles kernels in several processes beside one another.

A process compiles in one thread at a time. So the kernels of a start are divided among this process
and helpers, processes of their own. They take steps of a plan until none is left, and leave the
code on disk, where this process loads it. Every process compiles the functions that its kernels
contain. So this one begins with the first step and helpers with the last one: neighbours have more
in common.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence

from livefactor_kernels.numbers import shipped
from livefactor_server.hosting import compile_worker, kernels
from livefactor_server.hosting.kernels import Plan, Step, StepReport

PROCESSES_MAX = 4
"""Maximum number of processes. The longest step takes a quarter of the time of all."""

logger = logging.getLogger(__name__)


class Work:
    """The steps that are left. Thread-safe."""

    def __init__(self, steps: Sequence[Step], numbers: Sequence[int], report: StepReport | None = None):
        """`numbers` are the places in `steps` of those that are to be compiled."""
        self._steps, self._left, self._total = steps, deque(numbers), len(numbers)
        self._report, self._lock = report, threading.Lock()

    def take(self, *, last: bool = False) -> int | None:
        """The place of the first step that is left, or of the last one. None if none is left."""
        with self._lock:
            if not self._left:
                return None
            number = self._left.pop() if last else self._left.popleft()
            if self._report is not None:
                self._report(self._steps[number].name, self._total - len(self._left), self._total)
            return number


class Helper:
    """A process that takes steps of a plan. It ends with this process, or when none is left."""

    def __init__(
        self, plan: Plan, work: Work, *, last: bool = False, host: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Starts it.

        Args:
            plan: of the work.
            work: the steps that it takes.
            last: whether it begins with the last ones.
            host: whether it has the lowest priority, and compiles for this processor also what
                came with the package.
            variables: of the environment, beside those of this process.

        Raises:
            OSError: the process cannot be started.
        """
        self._work, self._last = work, last
        self._child = subprocess.Popen(
            [sys.executable, "-m", compile_worker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | dict(variables or {}),
            text=True,
        )
        self._tell(json.dumps(plan.to_json() | {"host": host}))
        self._thread = threading.Thread(target=self._hand_out, name="kernels", daemon=True)
        self._thread.start()

    def _tell(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def _hand_out(self) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            while (number := self._work.take(last=self._last)) is not None:
                self._tell(str(number))
                if not self._child.stdout.readline():
                    break
            self._child.stdin.close()
        except (OSError, ValueError):
            # It has ended, or `end` has closed its input.
            pass
        code = self._child.wait()
        if code > 0:
            # What it has not compiled is compiled where it is needed.
            logger.warning("a process that compiled kernels ended with code %d", code)

    def wait(self) -> int:
        """Waits until no step is left and the process has ended. Returns its exit code."""
        self._thread.join()
        return self._child.wait()

    def end(self) -> None:
        """Ends the process."""
        self._child.kill()
        self._thread.join()


def compile_missing(plan: Plan, report: StepReport | None = None) -> None:
    """Compiles what of a plan is not on disk, in this process and in helpers beside it."""
    if plan.is_on_disk():
        return
    steps = plan.steps()
    missing = [number for number, step in enumerate(steps) if not step.is_on_disk()]
    work = Work(steps, missing, report)
    helpers = start_helpers(plan, work, min(processes(), len(missing)) - 1)
    while (number := work.take()) is not None:
        steps[number].run()
    for helper in helpers:
        helper.wait()


def compile_later(plan: Plan) -> Helper | None:
    """Starts a helper of the lowest priority for what the next start needs beyond this one.

    That are the kernels that read a log, if they are not on disk, and the code for this processor
    of all kernels that came with the package, if it is faster. None if nothing is left to compile.
    """
    steps = [*plan.steps(), *plan.rest()]
    if shipped.is_used() and shipped.is_improvable():
        numbers = list(range(len(steps)))
    else:
        numbers = [
            number for number, step in enumerate(steps) if step is kernels.LOG and not step.is_on_disk()
        ]
    if not numbers:
        return None
    try:
        return Helper(plan, Work(steps, numbers), host=True)
    except OSError as error:
        logger.warning("a process that compiles kernels could not be started: %s", error)
        return None


def start_helpers(plan: Plan, work: Work, count: int) -> list[Helper]:
    """Starts `count` helpers, or fewer if the system refuses more processes."""
    helpers: list[Helper] = []
    try:
        for _ in range(count):
            helpers.append(Helper(plan, work, last=True))
    except OSError as error:
        logger.warning("a process that compiles kernels could not be started: %s", error)
    return helpers


def processes() -> int:
    """How many processes compile at the same time."""
    return min(len(os.sched_getaffinity(0)), PROCESSES_MAX)
