"""The helper thread: its errors are raised, and its task is over when the context ends."""

from __future__ import annotations

import threading

import pytest

from livefactor_kernels.simd.helper import Helper


def test_the_task_runs_beside_the_body_in_one_thread() -> None:
    helper, meeting, names = Helper("beside"), threading.Barrier(2, timeout=20), set()

    def task() -> None:
        names.add(threading.current_thread().name)
        meeting.wait()

    for _ in range(3):
        with helper.running(task):
            meeting.wait()
    assert len(names) == 1 and names != {threading.current_thread().name}


def test_the_context_raises_the_error_of_the_task() -> None:
    helper = Helper("errors")
    with pytest.raises(ZeroDivisionError), helper.running(divmod, 1, 0):
        pass
    with helper.running(divmod, 1, 1):
        pass


def test_a_body_that_fails_waits_for_the_task() -> None:
    """Otherwise the task would still write to the arrays of a record whose call is over."""
    helper, failed, steps = Helper("waits"), threading.Event(), []

    def task() -> None:
        failed.wait(20)
        steps.append("task")

    def body() -> None:
        threading.Timer(0.05, failed.set).start()
        raise KeyError("body")

    with pytest.raises(KeyError, match="body"), helper.running(task):
        body()
    assert steps == ["task"]


def test_a_system_without_threads_fails_at_the_start(monkeypatch) -> None:
    """It would be too late during a record: the task would stay in the queue."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="thread"):
        Helper("none")
