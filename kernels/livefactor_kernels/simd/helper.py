"""A second thread that works on a record together with the thread of the call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any


class Helper:
    """One thread, which lives as long as the process.

    If the two threads wait for each other inside a kernel, the kernel must end its waits when one
    of them fails. The helper cannot do that for them.
    """

    def __init__(self, name: str) -> None:
        """Starts the thread.

        Raises:
            RuntimeError: the system has no thread left.
        """
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        # An executor starts its thread at the first task. If that failed during a record, the task
        # would stay in the queue and run during a later record.
        self._executor.submit(lambda: None).result()

    @contextmanager
    def running(self, task: Callable[..., object], *arguments: Any) -> Iterator[None]:
        """Runs a task in the thread during the context.

        The context ends after the task, even if its body fails, so nothing of the record is in use
        afterwards. It raises the error of its body, else the error of the task.
        """
        future = self._executor.submit(task, *arguments)
        try:
            yield
        finally:
            wait([future])
        future.result()
