"""The judge of a served model: it publishes figures, reports drift, and holds updates until a
release.
"""

from __future__ import annotations

import json
import struct
import urllib.request
from collections.abc import Callable
from pathlib import Path

import click.testing
import numpy as np
import pytest
import typer

from livefactor import Auditor, FailedPrecondition, Models, Producer, Scorer
from livefactor_server.cli.app import app
from server_process import Server, wait_until

JUDGED = ("--judge-record-share", "1", "--judge-sampled-share", "1", "--judge-ranked-share", "1")
SPEC = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}
ROWS = 256
MANY = 4096


def ratings(seed: int, scale: float, rows: int = MANY) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 30, rows, np.uint64), rng.integers(0, 30, rows, np.uint64)
    return {
        "user_ids": users,
        "item_ids": items,
        "values": (scale * ((users + items) % 2)).astype(np.float32),
    }


def clicks(producer: Producer, batches: int) -> None:
    rng = np.random.default_rng(2)
    for _ in range(batches):
        kinds = rng.integers(0, 2, ROWS).astype(np.uint32)
        rows = (rng.integers(0, 60, ROWS, np.uint64), rng.integers(0, 40, ROWS, np.uint64))
        producer.push(*rows, event_types=kinds).result(30)


def judged_events(models: Models) -> int:
    judgement = models.describe("m").judgement
    return 0 if judgement is None else judgement.judged_events


def push_until_refused(server: Server) -> None:
    with Producer(server.target, "p", model="m") as producer:
        for seed in range(80):
            producer.push(**ratings(seed, 900.0)).result(30)


def typed(server: Server, *arguments: str) -> tuple[int, str]:
    environment = {"LIVEFACTOR_TARGET": server.target}
    result = click.testing.CliRunner().invoke(typer.main.get_command(app), arguments, env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def scraped(server: Server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def records(path: Path) -> list[bytes]:
    """The data of each record in an event file. A record is: u64 length, u32 CRC, data, u32 CRC."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack_from("<Q", data)
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_figures_are_described_scraped_and_written(serve: Callable[..., Server], tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    server = serve(*JUDGED, "--tensorboard", str(tmp_path / "board"))
    with Models(server.target) as models:
        models.create("m", "clicks_sgd", **SPEC)
        with Producer(server.target, "p", model="m") as producer:
            clicks(producer, 40)
        # The judge works after the ack.
        wait_until(lambda: judged_events(models) == 320, "320 judged events")
        judgement = models.describe("m").judgement
        assert models.list()[0].judgement is None
    assert judgement is not None and judgement.judged_events == 320 and judgement.drift_detection
    for metric in ("auc", "recall@10", "ndcg@10", "sampled_recall@10", "sampled_ndcg@10"):
        for scorer in ("model", "popular", "popular_decayed"):
            for kind in (None, 0, 1):
                figure = judgement.figure(metric, scorer, kind)
                assert figure is not None and 0 <= figure.windowed <= 1 and 0 <= figure.decayed <= 1
    shown = scraped(server)
    loss = judgement.figure("loss")
    assert loss is not None
    line = 'livefactor_judge_figure{event_type="all",metric="loss",model="m",scorer="model",span="window"} '
    (value,) = [one for one in shown.splitlines() if one.startswith(line)]
    assert float(value.removeprefix(line)) == loss.windowed
    assert 'livefactor_judged_events{model="m"} 320.0' in shown
    assert 'livefactor_held{model="m"} 0.0' in shown
    code, out = typed(server, "models", "describe", "m")
    assert code == 0 and "sampled_ndcg@10" in out and "judged: 320 events" in out
    assert "new users" in out and "known users" in out and "type 1" in out
    assert (
        json.loads(typed(server, "models", "describe", "m", "--json")[1])["judgement"]["judged_events"] == 320
    )
    server.stop()
    (file,) = (tmp_path / "board" / "m").iterdir()
    events = [Event.FromString(record) for record in records(file)]
    scalars = {value.tag: value.simple_value for event in events for value in event.summary.value}
    assert scalars["loss/model/window"] == pytest.approx(loss.windowed, rel=1e-6)
    assert "auc/type_1/popular/decayed" in scalars
    groups = {"new_users": judgement.new_user_figures, "known_users": judgement.known_user_figures}
    for name, figures in groups.items():
        (figure,) = (one for one in figures if one.metric == "loss")
        users = name.removesuffix("_users")
        labels = f'metric="loss",model="m",scorer="model",span="window",users="{users}"'
        assert f"livefactor_judge_group_figure{{{labels}}} {figure.windowed!r}" in shown.splitlines()
        assert scalars[f"loss/{name}/model/window"] == pytest.approx(figure.windowed, rel=1e-6)


def test_a_diverging_model_holds_updates_until_an_operator_releases_it(serve: Callable[..., Server]) -> None:
    server = serve(*JUDGED, "--judge-events-per-record-max", "64", "--judge-hold")
    with Models(server.target) as models:
        models.create(
            "m", "ratings_sgd", k=8, limits={"users_max": 1000, "items_max": 1000, "value_abs_max": 1000}
        )
        with Producer(server.target, "p", model="m") as producer:
            for seed in range(80):
                producer.push(**ratings(seed, 4.0)).result(30)
                if seed in (20, 40):
                    assert typed(server, "snapshot", "-m", "m")[0] == 0
            assert models.describe("m").hold is None
            with pytest.raises(FailedPrecondition, match="not on hold"):
                models.release("m")
            assert typed(server, "models", "release", "m")[0] == 1
            assert typed(server, "snapshot", "-m", "m")[0] == 0
        with pytest.raises(FailedPrecondition, match="on hold since revision"):
            push_until_refused(server)
        described = models.describe("m", with_root_hash=True)
        hold = described.hold
        assert hold is not None and "loss_above_window" in hold.reason
        assert 0 < hold.good_revision < hold.revision <= described.position.revision < 150
        with Auditor(server.target, model="m") as auditor:
            at = {info.snapshot_id: info.position.revision for info in auditor.list()}
        assert sorted(at.values()) == [22, 42, 81]
        # At the last one it was not yet known to be good.
        assert at[hold.snapshot_id] == 42 < hold.good_revision < 81
        assert 'livefactor_held{model="m"} 1.0' in scraped(server)
        assert 'livefactor_judge_warnings_total{kind="loss_above_window",model="m"} 1.0' in scraped(server)
        # Acknowledged rows stay, other calls go on, and a restart keeps the hold.
        with Scorer(server.target, model="m") as scorer:
            assert scorer.score([1], [1]).position == described.position
        code, out = typed(server, "models", "describe", "m")
        assert code == 0 and "UPDATES ARE ON HOLD" in out
    server.kill()
    server.start()
    with Models(server.target) as models:
        again = models.describe("m", with_root_hash=True)
        assert again.root_hash == described.root_hash and again.hold == hold
        with pytest.raises(FailedPrecondition, match="on hold"):
            push_until_refused(server)
        assert typed(server, "models", "release", "m")[0] == 0
        assert models.describe("m").hold is None
        with Producer(server.target, "p", model="m") as producer:
            ack = producer.push(**ratings(1, 4.0)).result(30)
        assert ack.position.revision > described.position.revision
