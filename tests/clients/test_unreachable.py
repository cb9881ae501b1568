"""A server that cannot be reached: how long each client waits for it, and what its error says."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from livefactor.auditor import Auditor
from livefactor.errors import Unavailable
from livefactor.models import Models
from livefactor.pushing.producer import Producer
from livefactor.scorer import Scorer


@pytest.fixture
def target() -> Iterator[str]:
    """The address of a bound port on which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_the_error_names_the_target_after_3_s_and_suggests_a_command(target: str) -> None:
    began = monotonic()
    with Models(target) as models, pytest.raises(Unavailable) as caught:
        models.list()
    assert monotonic() - began >= 1.5
    text = rf"no server at {re.escape(target)} after 3 s \(.+\); start one with `livefactor serve`"
    assert re.fullmatch(text, str(caught.value))
    assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize(
    "call",
    [
        lambda target: Scorer(target, connect_s=0.2).recommend(1, k=1),
        lambda target: Auditor(target, connect_s=0.2).list(),
        lambda target: Auditor(target, connect_s=0.2).snapshot(),
        lambda target: Models(target, connect_s=0.2).describe(),
        lambda target: Producer(target, "p", connect_s=0.2),
    ],
    ids=["recommend", "list", "snapshot", "describe", "producer"],
)
def test_every_client_waits_connect_s_for_an_unreachable_server(
    call: Callable[[str], Any], target: str
) -> None:
    with pytest.raises(Unavailable, match=rf"no server at {re.escape(target)} after 0\.2 s"):
        call(target)


def test_a_missing_socket_file_is_an_unreachable_server(tmp_path: Path) -> None:
    target = f"unix:{tmp_path / 'missing.sock'}"
    with pytest.raises(Unavailable, match=rf"no server at {re.escape(target)} after 0\.2 s"):
        Models(target, connect_s=0.2).list()


def test_a_name_that_does_not_resolve_is_an_unreachable_server() -> None:
    with pytest.raises(Unavailable, match=r"no server at nosuch\.invalid:1 after 0\.2 s"):
        Models("nosuch.invalid:1", connect_s=0.2).list()
