"""The producers of a model, and how far each one is behind."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from livefactor import InvalidArgument, NotFound
from livefactor.in_process import Local, local
from livefactor_server.cli.app import app

AGE_S = 90


def push(server: Local, producer: str, count: int, late: bool = False) -> None:
    times = np.full(count, int(time.time()) - AGE_S) if late else None
    values = np.ones(count, np.float32)
    values[0] = 7 if late else 1
    with server.producer(producer, on_reject=lambda rejects: None) as opened:
        opened.push(np.arange(count), np.arange(count) % 3, values=values, times=times).result(60)


def test_those_that_sent_last_come_first_with_their_lag(tmp_path: Path) -> None:
    with local("clicks_sgd", tmp_path) as server:
        push(server, "tills", 5)
        push(server, "a feed [b]", 4, late=True)
        with server.producer("silent"):
            pass
        models = server.models()
        found = models.producers()
        assert [each.id for each in found] == ["a feed [b]", "tills", "silent"]
        feed, tills, silent = found
        assert AGE_S <= (feed.behind_s or 0) < AGE_S + 60
        assert (tills.behind_s, silent.arrived_us) == (None, None)
        assert (feed.rejected, tills.rejected, feed.waiting) == (1, 0, 0)
        assert (feed.last_sequence, silent.last_sequence) == (1, 0)
        assert models.producers(limit=1) == (feed,)
        shown = CliRunner().invoke(app, ["models", "producers", "--target", server.target])
        assert "a feed [b]" in shown.output and "90." in shown.output
        scripted = CliRunner().invoke(app, ["models", "producers", "--target", server.target, "--json"])
        assert json.loads(scripted.output)[0]["last_sequence"] == 1
        with pytest.raises(NotFound):
            models.producers("nothing")
        with pytest.raises(InvalidArgument, match="limit"):
            models.producers(limit=1001)
    with local("clicks_sgd", tmp_path) as server:
        again = server.models().producers()
        assert {each.id: each.last_sequence for each in again} == {"tills": 1, "a feed [b]": 1, "silent": 0}
        assert {each.arrived_us for each in again} == {None}
