"""The batches of direct calls reach an engine together."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from livefactor.v1 import updates_pb2
from livefactor_server.engine.engine import Engine
from livefactor_server.engine.submission import Submission
from livefactor_server.rpc.direct import core, gathering
from stubs import Stubs

PATIENCE_S = 60.0


def pushed(stubs: Stubs, calls: int, is_idle: threading.Event, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make calls to a server that always has another event until `is_idle` is set.

    Return the sizes of the groups.
    """
    sizes: list[int] = []
    enqueue, reserve, is_timeout = Engine.enqueue, Engine.reserve, core.Core.is_timeout
    arrived = threading.Semaphore(0)

    def counted(engine: Engine, items: Sequence[Submission]) -> None:
        sizes.append(len(items))
        enqueue(engine, items)

    def noted(engine: Engine, item: Submission) -> bool:
        arrived.release()
        return reserve(engine, item)

    monkeypatch.setattr(Engine, "enqueue", counted)
    monkeypatch.setattr(Engine, "reserve", noted)
    monkeypatch.setattr(
        core.Core, "is_timeout", staticmethod(lambda each: is_idle.is_set() and is_timeout(each))
    )
    model = stubs.model()
    futures = [
        stubs.updates.ApplyUpdates.future(
            updates_pb2.ApplyUpdatesRequest(
                model=model, interactions=updates_pb2.Interactions(user_ids=[user], item_ids=[7])
            ),
            timeout=PATIENCE_S,
        )
        for user in range(calls)
    ]
    for _ in futures:
        assert arrived.acquire(timeout=PATIENCE_S)
    is_idle.set()
    revisions = sorted(future.result().position.revision for future in futures)
    assert revisions == list(range(1, calls + 1))
    return sizes


def test_batches_that_arrive_while_messages_are_handled_become_one_group(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "GATHER_S", 10 * PATIENCE_S)
    assert pushed(stubs, 5, threading.Event(), monkeypatch) == [5]


def test_a_busy_server_hands_the_batches_over_nevertheless(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    monkeypatch.setattr(never, "set", lambda: None)
    assert sum(pushed(stubs, 5, never, monkeypatch)) == 5
