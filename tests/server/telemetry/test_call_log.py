"""Request ids, the lines and the figures of calls."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from livefactor.v1 import models_pb2, scoring_pb2, updates_pb2
from livefactor_server.telemetry import calls
from livefactor_server.telemetry.lines import FIELDS, JsonFormatter, TextFormatter
from livefactor_server.telemetry.requests import request_id
from stubs import Stubs

LOGGER = "livefactor_server.calls"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        {"level": record.levelname, "message": record.getMessage(), **getattr(record, FIELDS)}
        for record in caplog.records
        if record.name == LOGGER
    ]


def echoed(call: Any) -> str:
    (found,) = [value for name, value in call.trailing_metadata() if name == "x-request-id"]
    return str(found)


def score(stubs: Stubs, model: str, *metadata: tuple[str, str]) -> Any:
    request = scoring_pb2.ScoreRequest(
        model=model, user_ids=[1], candidates=scoring_pb2.Candidates(item_ids=[1])
    )
    return stubs.scoring.Score.with_call(request, timeout=30, metadata=metadata)[1]


def count(**labels: str) -> float:
    return REGISTRY.get_sample_value("livefactor_call_seconds_count", labels) or 0.0


def test_the_id_of_a_request_comes_back(stubs: Stubs) -> None:
    name = stubs.model()
    assert echoed(score(stubs, name, ("x-request-id", "shop-7/42"))) == "shop-7/42"
    made = [echoed(score(stubs, name)) for _ in range(3)]
    assert len(set(made)) == 3
    with pytest.raises(grpc.RpcError) as caught:
        score(stubs, "nosuch", ("x-request-id", "shop-7/43"))
    assert echoed(caught.value) == "shop-7/43"


@pytest.mark.parametrize("bad", ["", "x" * 65, 'a" level="error', "a\nb", "ä", b"raw"])
def test_an_id_that_could_forge_a_line_is_replaced(bad: str | bytes) -> None:
    assert request_id([("x-request-id", bad)]) != bad
    assert request_id(None) != request_id(())


def test_refused_calls_and_changes_of_models_have_a_line(
    stubs: Stubs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    name = stubs.model()
    (created,) = lines(caplog)
    assert (created["rpc"], created["model"], created["status"]) == ("ModelService.CreateModel", name, "OK")
    score(stubs, name)
    stubs.models.ListModels(models_pb2.ListModelsRequest())
    assert len(lines(caplog)) == 1
    with pytest.raises(grpc.RpcError):
        score(stubs, "nosuch", ("x-request-id", "one"))
    refused = lines(caplog)[-1]
    assert refused["level"] == "INFO"
    assert (refused["request_id"], refused["status"], refused["model"]) == ("one", "NOT_FOUND", "nosuch")
    assert "nosuch" in refused["message"]
    assert refused["duration_ms"] >= 0


def test_with_debug_every_call_has_a_line_with_its_revision(
    stubs: Stubs, caplog: pytest.LogCaptureFixture
) -> None:
    name = stubs.model()
    caplog.set_level(logging.DEBUG, LOGGER)
    stubs.updates.OpenProducer(updates_pb2.OpenProducerRequest(model=name, producer_id="till"), timeout=30)
    opened = lines(caplog)[-1]
    assert (opened["rpc"], opened["producer"], opened["revision"]) == (
        "UpdateService.OpenProducer",
        "till",
        1,
    )
    stubs.push(name, [1], [1])
    pushed = lines(caplog)[-1]
    assert pushed["rpc"].startswith("UpdateService.")
    score(stubs, name)
    scored = lines(caplog)[-1]
    assert (scored["rpc"], scored["model"]) == ("ScoringService.Score", name)
    assert scored["revision"] == pushed["revision"] == 2


def test_many_refused_calls_have_few_lines(stubs: Stubs, caplog: pytest.LogCaptureFixture) -> None:
    log = calls.CallLog()
    caplog.set_level(logging.INFO, LOGGER)
    now = [100.0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calls.time, "monotonic", lambda: now[0])
        for _ in range(100):
            log.ended(Fake(), "NOT_FOUND", 0.0, "gone")
        now[0] += 1.5
        log.ended(Fake(), "NOT_FOUND", 0.0, "gone")
    found = lines(caplog)
    assert len(found) == calls.REFUSED_A_SECOND_MAX + 1
    assert found[-1]["refused_without_a_line"] == 100 - calls.REFUSED_A_SECOND_MAX


class Fake:
    rpc, is_change, request_id, model, has_model = "S.M", False, "r", "", False
    producer, revision, caller = b"", 0, ""


def test_figures_name_rpc_model_and_status_and_no_invented_model(stubs: Stubs) -> None:
    name = stubs.model()
    # Other tests of this process may have served a model of this name.
    before = count(rpc="ScoringService.Score", model=name, code="OK")
    for _ in range(3):
        score(stubs, name)
    assert count(rpc="ScoringService.Score", model=name, code="OK") == before + 3
    before = count(rpc="ScoringService.Score", model="", code="NOT_FOUND")
    with pytest.raises(grpc.RpcError):
        score(stubs, "invented")
    assert count(rpc="ScoringService.Score", model="", code="NOT_FOUND") == before + 1
    assert count(rpc="ScoringService.Score", model="invented", code="NOT_FOUND") == 0


def written(formatter: logging.Formatter, work: Callable[[logging.Logger], None]) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("some.room")
    logger.addHandler(handler)
    work(logger)
    return stream.getvalue()


def test_a_json_line_has_one_line_whatever_a_peer_sent() -> None:
    def work(logger: logging.Logger) -> None:
        try:
            raise ValueError("inner\nforged")
        except ValueError:
            logger.exception('a\n{"level": "x"} \x1b[2J', extra={FIELDS: {"producer": "p\nq"}})

    line = written(JsonFormatter(), work)
    assert line.count("\n") == 1
    assert line.isascii()
    found = json.loads(line)
    assert found["level"] == "error"
    assert found["logger"] == "some.room"
    assert found["producer"] == "p\nq"
    assert "ValueError: inner\nforged" in found["exception"]
    assert found["time"].endswith("Z") and "T" in found["time"]


def test_a_text_line_ends_with_the_fields() -> None:
    text = TextFormatter("%(levelname)s %(message)s")
    line = written(text, lambda log: log.warning("slow", extra={FIELDS: {"model": "a\nb", "revision": 7}}))
    assert line == "WARNING slow model=a\\nb revision=7\n"
